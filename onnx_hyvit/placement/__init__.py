"""Placement: which tensors of a graph are quantized for a target. Decides, never edits; says why a node stays float."""

from .make_plan import make_plan
from .plan import BiasSpec, Plan

__all__ = ["BiasSpec", "Plan", "make_plan"]
