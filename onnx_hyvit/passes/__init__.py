"""Exact graph rewrites, one per file, and the order in which they run."""

from .infrastructure import GraphPass, PassResult, run_passes

__all__ = ["GraphPass", "PassResult", "run_passes"]
