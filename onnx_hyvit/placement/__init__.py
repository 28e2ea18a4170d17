"""Placement: which tensors of a graph are quantized for a target. Decides, never edits; says why a node stays float."""

from .make_plan import make_plan
from .plan import BiasSpec, FullMode, Plan

__all__ = ["BiasSpec", "FullMode", "Plan", "make_plan"]
