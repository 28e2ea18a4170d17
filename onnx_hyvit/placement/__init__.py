"""Placement: which tensors of a graph are quantized for a target. Decides, never edits; says why a node stays float."""

from .make_plan import ASKED, make_plan
from .plan import BiasSpec, Conversion, FullMode, Plan
from .widths import WIDE_BITS, converted_name

__all__ = ["ASKED", "WIDE_BITS", "BiasSpec", "Conversion", "FullMode", "Plan", "converted_name", "make_plan"]
