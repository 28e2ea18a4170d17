"""Exact rewrites for speed: cheaper movement of data, fewer nodes, shapes that int8 kernels like."""

from __future__ import annotations

from ..infrastructure import GraphPass
from . import compose_movement

LAYOUT: tuple[GraphPass, ...] = (compose_movement.PASS,)

__all__ = ["LAYOUT"]
