"""Exact rewrites for speed: cheaper movement of data, fewer nodes, shapes that int8 kernels like.

``LAYOUT`` is exact. ``gelu_to_sigmoid`` is not: the caller decides by measured accuracy where to run it.
"""

from __future__ import annotations

from ..infrastructure import GraphPass
from . import (
    channels_last_region,
    compose_movement,
    cubic_resize_to_matmul,
    pad_stem,
    resize_to_matmul,
    split_linear,
    transpose_before_expand,
    unpack_heads,
)
from .gelu_to_sigmoid import gelu_to_sigmoid
from .pad_channels import pad_channels, padded_sizes, resize_channels
from .unpad_stem import unpad_stem

LAYOUT: tuple[GraphPass, ...] = (
    unpack_heads.PASS,
    split_linear.PASS,
    channels_last_region.PASS,
    transpose_before_expand.PASS,
    compose_movement.PASS,
    pad_stem.PASS,
    resize_to_matmul.PASS,
    cubic_resize_to_matmul.PASS,
)
# Where the caller found that it pays: ``pad_channels(regions)`` before placement; after it, for the nodes that it keeps
# float, ``unpad_stem(names)`` and ``gelu_to_sigmoid(factors)``.
__all__ = ["LAYOUT", "gelu_to_sigmoid", "pad_channels", "padded_sizes", "resize_channels", "unpad_stem"]
