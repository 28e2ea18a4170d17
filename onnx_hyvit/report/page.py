"""The whole page: one HTML file without scripts, fonts or anything else from outside."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..graph.write import write_bytes
from .blocks import gather_blocks
from .details import advice_section, block_section, gelu_section, precision_section
from .html import Markup, element, join
from .results import Results, sort_results
from .sections import (
    before_after_section,
    error_section,
    footer,
    histogram_section,
    picture_section,
    settings_section,
    strip_section,
    verdict_section,
)
from .values import mapping, text
from .verdict import find_verdict

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@cache
def _style() -> Markup:
    return Markup((Path(__file__).parent / "style.css").read_text(encoding="utf-8"))


def render_report(*reports: Mapping[str, Any]) -> str:
    """The page of one or more results.

    Args:
        reports: What ``quantize`` (its ``report``), ``compare``, ``compare_for_report``, ``debug`` or the demo gave;
            keys that are missing leave their part of the page out.

    Returns:
        HTML. The same results give the same text.

    Raises:
        ConfigError: A report is of no known command, or histograms need matplotlib and it is missing.
    """
    return render_results(sort_results(reports))


def render_results(results: Results) -> str:
    """As ``render_report``, of results that are already sorted."""
    blocks = gather_blocks(results)
    name = text(mapping(results.quantize.get("found")).get("model") or results.compare.get("float"), "model")
    parts = [
        verdict_section(results, find_verdict(results)),
        element(
            "main",
            before_after_section(results),
            strip_section(blocks),
            error_section(results, blocks),
            histogram_section(results),
            picture_section(results),
            advice_section(results),
            precision_section(results),
            gelu_section(results),
            block_section(results, blocks),
            settings_section(results),
        ),
        footer(results),
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("title", f"Quantization report: {name}"),
        element("style", _style()),
    )
    return join(Markup("<!DOCTYPE html>\n"), element("html", head, element("body", *parts), lang="en"), "\n")


def write_report(path: str | os.PathLike[str], reports: Iterable[Mapping[str, Any]] | Results) -> Path:
    """Write the page to ``path`` through a temporary file.

    Args:
        path: Where to write the HTML page.
        reports: What ``quantize(...).report``, ``compare`` and ``debug`` gave for one model.

    Returns:
        The path.

    Raises:
        ConfigError: A report is of no known command, or matplotlib is missing.
        OutputError: The file cannot be written.
    """
    results = reports if isinstance(reports, Results) else sort_results(reports)
    destination = Path(path)
    write_bytes(destination, render_results(results).encode("utf-8"))
    return destination
