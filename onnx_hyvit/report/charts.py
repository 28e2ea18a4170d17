"""Bars and the strip of shares as inline SVG, coloured by the page's style sheet (also in dark mode and in print)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .html import Markup, element, join

WIDTH = 1000


def bar(share: float, css: str, label: str) -> Markup:
    """One horizontal bar that fills ``share`` (0 to 1) of the width it is given."""
    width = round(WIDTH * min(max(share, 0.0), 1.0), 1)
    return element(
        "svg",
        element("rect", class_="track", x=0, y=0, width=WIDTH, height=10),
        element("rect", class_=css, x=0, y=0, width=width, height=10),
        class_="bar",
        viewBox=f"0 0 {WIDTH} 10",
        preserveAspectRatio="none",
        role="img",
        aria_label=label,
    )


def before_after(rows: Sequence[tuple[str, float, str, float, str]]) -> Markup:
    """Pairs of bars: (title, float value, its text, int8 value, its text); each pair has its own scale from 0."""
    figures = []
    for title, before, before_text, after, after_text in rows:
        longest = max(before, after) or 1.0
        figures.append(
            element(
                "figure",
                element("figcaption", title),
                _labelled("float", before / longest, before_text, "fill-float"),
                _labelled("int8", after / longest, after_text, "fill-int8"),
                class_="pair",
            )
        )
    return element("div", *figures, class_="pairs")


def _labelled(name: str, share: float, value: str, css: str) -> Markup:
    return element(
        "div", element("span", name), bar(share, css, f"{name}: {value}"), element("b", value), class_="labelled"
    )


def shares(title: str, parts: Iterable[tuple[str, str, float]]) -> Markup:
    """One bar cut into parts: (name, kind of block, value)."""
    rows = [(name, kind, value) for name, kind, value in parts if value > 0]
    total = sum(value for _, _, value in rows) or 1.0
    pieces, start = [], 0.0
    for name, kind, value in rows:
        width = WIDTH * value / total
        pieces.append(
            element(
                "rect",
                element("title", f"{name}: {100 * value / total:.1f} %"),
                class_=f"piece {kind_class(kind)}",
                x=round(start, 2),
                y=0,
                width=round(max(width, 0.01), 2),
                height=24,
            )
        )
        start += width
    drawing = element(
        "svg",
        join(*pieces),
        class_="shares",
        viewBox=f"0 0 {WIDTH} 24",
        preserveAspectRatio="none",
        role="img",
        aria_label=title,
    )
    return element("figure", element("figcaption", title), drawing)


def kind_class(kind: str) -> str:
    """Style class of a kind of block."""
    return f"kind-{kind}" if kind in ("stem", "conv", "bridge", "transformer", "head") else "kind-other"
