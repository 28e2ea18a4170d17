"""Give convolutions the number of channels that int8 kernels like, where the caller found that it pays.

Before
    y = Conv(act(DepthwiseConv(act(Conv(x, V)), K)), W)             24 channels between V and W
After
    y = Conv(act(DepthwiseConv(act(Conv(x, [V, V[:8]])), [K, K[:8]])), [W, 0])                  32 channels
Conditions
    1. the maps with these channels are a closed region (see ``graph.channel_regions``): convolutions without groups
       make and read them, and nothing in between mixes channels;
    2. all weights are fixed.
The new channels repeat the first ones, so they are in the same range as them, whatever is computed in between; the
weights of what reads them are 0. No node is added, and ``unpad`` gives the arrays back as they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from ...graph.channel_regions import ChannelRegion, Part
from ...graph.edit import constant_of, unique_name
from ...graph.io import Model
from ...graph.pattern import NearMiss
from ..infrastructure import GraphPass

DEPTHWISE, DENSE = 16, 4  # channels that int8 kernels of x86 work on at once


def padded_sizes(region: ChannelRegion) -> tuple[int, ...]:
    """Numbers of channels, larger than the region has, at which kernels of its convolutions have whole blocks."""
    blocks = (DEPTHWISE, DENSE) if region.depthwise else (DENSE,)
    sizes = {-(-region.channels // block) * block for block in blocks}
    return tuple(sorted(sizes - {region.channels}))


def resize_channels(region: ChannelRegion, channels: int, graph: gs.Graph | None = None) -> ChannelRegion:
    """Repeat the first channels of ``region``, or drop the last ones, until there are ``channels``.

    Dropping is exact only for channels that were added here.

    Args:
        region: The region; its nodes are edited in place.
        channels: Number of channels.
        graph: Its graph, for new names of maps and constants; None keeps the names.

    Returns:
        The same region with that number of channels.
    """
    for node in region.depthwise:
        node.attrs["group"] = channels
    for part in region.parts:
        tensor = part.node.inputs[part.index]
        values = constant_of(tensor)
        assert values is not None, part.node.name
        name = tensor.name if graph is None else unique_name(graph, f"{tensor.name}_padded")
        part.node.inputs[part.index] = gs.Constant(name, _resized(values, part, channels))
    for tensor in region.tensors:
        if tensor.shape is not None:
            tensor.shape = [tensor.shape[0], channels, *tensor.shape[2:]]
        if graph is not None:
            tensor.name = unique_name(graph, f"{tensor.name}_padded")
    return replace(region, channels=channels)


def _resized(values: np.ndarray, part: Part, channels: int) -> np.ndarray:
    if part.role == "size":
        sizes = values.copy()
        sizes[part.axis] = channels
        return sizes
    before = values.shape[part.axis]
    if part.role == "read" and channels > before:
        pads = [(0, channels - before if axis == part.axis else 0) for axis in range(values.ndim)]
        return np.pad(values, pads)
    return np.take(values, np.arange(channels) % before, axis=part.axis)


def pad_channels(regions: Mapping[ChannelRegion, int]) -> GraphPass:
    """The pass that gives each of ``regions`` that number of channels; it counts their convolutions."""

    def apply(model: Model, near_misses: list[NearMiss]) -> int:
        padded: set[str] = set()
        for region, channels in regions.items():
            resize_channels(region, channels, model.graph)
            padded |= {node.name for node in region.convolutions}
        return len(padded)

    return GraphPass("pad_channels", apply)
