"""Shapes and shape arithmetic with symbols for free dimensions: exact for every batch size."""

from .dims import Dim, Monomial
from .infer import Inferred, infer

__all__ = ["Dim", "Inferred", "Monomial", "infer"]
