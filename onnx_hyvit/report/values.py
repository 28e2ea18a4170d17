"""Read a result that may lack keys or hold other types than expected: it may be older, newer, or edited by hand."""

from __future__ import annotations

import math
from typing import Any

LONGEST = 20_000


def mapping(value: Any) -> dict[str, Any]:
    """``value`` when it is a dict, else an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    """``value`` when it is a list (at most 20,000 entries of it), else an empty one."""
    return value[:LONGEST] if isinstance(value, list) else []


def mappings(value: Any) -> list[dict[str, Any]]:
    """The dicts in a list."""
    return [item for item in items(value) if isinstance(item, dict)]


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def text(value: Any, default: str = "") -> str:
    """A string; numbers are written out, everything else is ``default``."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else default


def percent(value: Any, digits: int = 2) -> str:
    """A share of 0 to 1 in percent."""
    found = number(value)
    return "-" if found is None else f"{100 * found:.{digits}f} %"


def decibel(value: Any) -> str:
    """An SQNR; equal tensors have the cap of 200 dB."""
    found = number(value)
    return "-" if found is None else "exact" if found >= 199 else f"{found:.1f} dB"


def size(value: Any) -> str:
    """Bytes."""
    found = number(value)
    if found is None:
        return "-"
    return f"{found / 1e6:.2f} MB" if found >= 1e5 else f"{found / 1e3:.1f} kB"


def count(value: Any) -> str:
    """A count with a unit."""
    found = number(value)
    if found is None:
        return "-"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if found >= limit:
            return f"{found / limit:.1f} {unit}"
    return f"{found:.0f}"


def plain(value: Any) -> str:
    """Any JSON value on one line, for settings and keys that this page does not know."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {plain(inner)}" for key, inner in list(value.items())[:20])
    if isinstance(value, list):
        return ", ".join(plain(inner) for inner in value[:20]) or "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return {None: "-", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)
