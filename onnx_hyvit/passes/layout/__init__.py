"""Exact rewrites for speed: cheaper movement of data, fewer nodes, shapes that int8 kernels like."""

from __future__ import annotations

from ..infrastructure import GraphPass

LAYOUT: tuple[GraphPass, ...] = ()

__all__ = ["LAYOUT"]
