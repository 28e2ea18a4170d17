"""Exact rewrites for speed: cheaper movement of data, fewer nodes, shapes that int8 kernels like.

``LAYOUT`` is exact. ``APPROXIMATE`` is not: its passes change values by less than a step of 8 bits, and the caller
decides by measured accuracy whether to run them.
"""

from __future__ import annotations

from ..infrastructure import GraphPass
from . import (
    channels_last_region,
    compose_movement,
    gelu_to_sigmoid,
    pad_stem,
    resize_to_matmul,
    split_linear,
    unpack_heads,
)
from .unpad_stem import unpad_stem

LAYOUT: tuple[GraphPass, ...] = (
    unpack_heads.PASS,
    split_linear.PASS,
    channels_last_region.PASS,
    compose_movement.PASS,
    pad_stem.PASS,
    resize_to_matmul.PASS,
)
# After placement, for the nodes that it keeps float: ``unpad_stem(names)``.
APPROXIMATE: tuple[GraphPass, ...] = (gelu_to_sigmoid.PASS,)

__all__ = ["APPROXIMATE", "LAYOUT", "unpad_stem"]
