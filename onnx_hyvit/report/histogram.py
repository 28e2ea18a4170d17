"""Histograms of tensors with the chosen range, drawn by matplotlib into inline SVG."""

from __future__ import annotations

import io
import re
from typing import Any

from ..errors import ConfigError
from .html import Markup
from .values import items, number

# drawn in these colours, then replaced by variables of the page, so that dark mode and print reach the drawing
_INK, _FILL, _CUT, _EDGE = "#010203", "#010204", "#010205", "#010206"
_VARIABLES = {_INK: "var(--muted)", _FILL: "var(--int8)", _CUT: "var(--bad)", _EDGE: "var(--ink)"}
_SIZE = (4.6, 1.9)  # inches, of 72 units each


def require_matplotlib() -> None:
    """Check, before any work, that histograms can be drawn.

    Raises:
        ConfigError: matplotlib is not installed; names the extra.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "histograms in a report need matplotlib: install the extra, pip install 'onnx-hyvit[report]'"
        ) from error


def histogram_svg(entry: dict[str, Any], number_on_page: int) -> Markup | None:
    """Draw one histogram.

    Args:
        entry: ``counts`` of equal bins from ``low`` to ``high``, and ``range``, the two ends of the codes.
        number_on_page: Keeps the identifiers of several drawings apart.

    Returns:
        The drawing; None when the entry lacks what is drawn. The same entry gives the same text.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    counts = [number(value) for value in items(entry.get("counts"))]
    low, high = number(entry.get("low")), number(entry.get("high"))
    limits = [number(value) for value in items(entry.get("range"))]
    if not counts or None in counts or low is None or high is None or high <= low or len(limits) != 2 or None in limits:
        return None
    require_matplotlib()
    return _draw([value or 0.0 for value in counts], low, high, (limits[0] or 0.0, limits[1] or 0.0), number_on_page)


def _draw(counts: list[float], low: float, high: float, limits: tuple[float, float], salt: int) -> Markup:
    from matplotlib import rc_context, rcdefaults, rcParams
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    width = (high - low) / len(counts)
    centers = [low + (place + 0.5) * width for place in range(len(counts))]
    colours = [_FILL if limits[0] - width / 2 <= center <= limits[1] + width / 2 else _CUT for center in centers]
    settings: dict[Any, Any] = {"svg.hashsalt": f"onnx-hyvit-{salt}", "svg.fonttype": "none", "font.size": 9}
    with rc_context():
        rcdefaults()  # not what a matplotlibrc of this machine says: the same result gives the same page everywhere
        rcParams.update(settings)
        figure = Figure(figsize=_SIZE)
        axes = figure.add_axes((0.1, 0.16, 0.87, 0.76))
        axes.bar(centers, counts, width=width, color=colours, linewidth=0)
        axes.set_yscale("log")
        axes.set_ylim(0.5, max(counts) * 2 + 1)
        for limit in limits:
            axes.axvline(limit, color=_EDGE, linewidth=1.2, linestyle=(0, (3, 2)))
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        axes.tick_params(colors=_INK, which="both", labelsize=8)
        axes.minorticks_off()
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_INK)
        stream = io.StringIO()
        metadata = {"Creator": None, "Date": None, "Format": None, "Type": None}
        FigureCanvasSVG(figure).print_svg(stream, metadata=metadata)
    return Markup(_inline(stream.getvalue(), f"plot-{salt}-"))


def _inline(document: str, prefix: str) -> str:
    """The svg element alone, sized and coloured by the page, with identifiers that no other drawing has."""
    drawing = document[document.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.S)
    drawing = re.sub(r"<style[^>]*>.*?</style>", "", drawing, flags=re.S)  # would rule the whole page
    drawing = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", drawing, count=1)
    drawing = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 class="plot" role="img"', drawing, count=1)
    drawing = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}", drawing)
    for colour, variable in _VARIABLES.items():
        drawing = drawing.replace(colour, variable)
    return drawing.strip()
