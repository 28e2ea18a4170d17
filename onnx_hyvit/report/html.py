"""Build HTML and SVG from elements. Every text and attribute is escaped on its way in.

Why not a template engine: names of nodes, tensors and files come from untrusted models, and here a string cannot reach
the page unescaped whatever place it stands in; the page needs no loop or condition that Python does not have; and a
report of ``quantize`` works without any package beyond the standard library (jinja2 would be one more to keep).
"""

from __future__ import annotations

import html
import re

# control characters are not allowed in HTML; bidirectional overrides would let a name rewrite the text around it
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_VOID = frozenset({"img", "meta", "br", "hr"})


class Markup(str):
    """Text that is already HTML."""


Child = str | int | float | None | list | tuple


def escape(text: object) -> Markup:
    """Text as HTML, safe in content and in attributes."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(_FORBIDDEN.sub("\ufffd", str(text)), quote=True))


def join(*children: Child) -> Markup:
    """Children one after the other; lists are flattened, None is left out."""
    parts = []
    for child in children:
        if isinstance(child, (list, tuple)):
            parts.append(join(*child))
        elif child is not None:
            parts.append(escape(child))
    return Markup("".join(parts))


def element(tag: str, *children: Child, **attributes: object) -> Markup:
    """An element.

    Args:
        tag: Its name; never from a report.
        children: Text (escaped), elements, lists of them, or None.
        attributes: Values are escaped; None leaves the attribute out, True gives it without a value. A trailing
            underscore is dropped (``class_``), others become hyphens (``stroke_width``).
    """
    given = []
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        key = name.rstrip("_").replace("_", "-")
        given.append(f" {key}" if value is True else f' {key}="{escape(value)}"')
    start = f"<{tag}{''.join(given)}>"
    return Markup(start) if tag in _VOID else Markup(f"{start}{join(*children)}</{tag}>")


def code(text: object) -> Markup:
    """A name from a model or file, or a command."""
    return element("code", str(text))
