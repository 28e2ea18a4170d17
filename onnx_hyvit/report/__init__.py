"""A result as one self-contained HTML page; reads plain values only, never a model."""

from .histogram import require_matplotlib
from .page import render_report, write_report
from .results import Results, read_results, sort_results

__all__ = ["Results", "read_results", "render_report", "require_matplotlib", "sort_results", "write_report"]
