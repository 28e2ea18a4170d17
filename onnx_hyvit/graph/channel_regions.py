"""Tensors whose channels belong together: what one layer makes, until other layers have read all of it.

A region is a set of maps ``[N, C, H, W]`` joined by operators that treat every channel alike and apart: activations,
sums and products of maps, pooling, depthwise convolutions. Convolutions without groups make its channels and read them.
Nothing else may touch it, so its channels can be repeated, dropped or reordered in the weights at its ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from .edit import constant_of, has_input, ints_of, is_graph_output, names_used_by_subgraphs
from .elementwise import ARITHMETIC, UNARY

NARY = ARITHMETIC | {"Min", "Max", "Sum", "Pow"}
POOLS = frozenset({"GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool"})
REDUCTIONS = frozenset({"ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum"})
Role = Literal["made", "read", "each", "size"]


@dataclass(frozen=True, eq=False)
class Part:
    """A constant that follows the channels of a region.

    Args:
        node: The node that reads it.
        index: Which of its inputs it is.
        axis: Axis of the channels; of a ``size``, the entry that is their number.
        role: ``made`` and ``read`` are the weights of layers at the ends of a region, ``each`` are numbers per channel
            (of a depthwise convolution, too), ``size`` is a shape.
    """

    node: gs.Node
    index: int
    axis: int
    role: Role


@dataclass(frozen=True, eq=False)
class ChannelRegion:
    """Maps whose channels belong together.

    Args:
        tensors: The maps, in graph order.
        channels: Their number of channels.
        parts: What follows the channels.
    """

    tensors: tuple[gs.Tensor, ...]
    channels: int
    parts: tuple[Part, ...]

    @property
    def convolutions(self) -> tuple[gs.Node, ...]:
        """Convolutions at its ends and inside, in graph order."""
        return tuple({id(part.node): part.node for part in self.parts if part.node.op == "Conv"}.values())

    @property
    def depthwise(self) -> tuple[gs.Node, ...]:
        """Convolutions inside of it, in graph order."""
        return tuple(node for node in self.convolutions if int(node.attrs.get("group", 1)) > 1)


@dataclass
class _Search:
    """What is known so far: which tensors belong together, which are out, and the constants of each."""

    shapes: Mapping[str, tuple[int, ...]]
    home: dict[int, gs.Tensor] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    parts: list[tuple[gs.Tensor, Part]] = field(default_factory=list)

    def root(self, tensor: gs.Tensor) -> gs.Tensor:
        while (above := self.home.get(id(tensor), tensor)) is not tensor:
            tensor = above
        return tensor

    def join(self, first: gs.Tensor, other: gs.Tensor) -> None:
        first, other = self.root(first), self.root(other)
        if first is not other:
            self.home[id(other)] = first
            if id(other) in self.refused:
                self.refused.add(id(first))

    def refuse(self, tensor: gs.Tensor) -> None:
        self.refused.add(id(self.root(tensor)))

    def channels(self, tensor: gs.Tensor) -> int | None:
        """Channels of a map; None when it is none."""
        shape = self.shapes.get(tensor.name, ())
        return shape[1] if len(shape) == 4 else None


def find_channel_regions(graph: gs.Graph, shapes: Mapping[str, tuple[int, ...]]) -> list[ChannelRegion]:
    """All regions of a graph, in graph order.

    Args:
        graph: The graph, sorted; not changed.
        shapes: Concrete shapes of all tensors.
    """
    search = _Search(shapes)
    outer = names_used_by_subgraphs(graph)
    for node in graph.nodes:
        if not (node.domain in (None, "", "ai.onnx") and _visit(node, search)):
            for tensor in (*_variables(node), *node.outputs):
                search.refuse(tensor)
    found: dict[int, list[gs.Tensor]] = {}
    for tensor in [*graph.inputs, *(output for node in graph.nodes for output in node.outputs)]:
        if not tensor.inputs or is_graph_output(graph, tensor) or tensor.name in outer:
            search.refuse(tensor)
        found.setdefault(id(search.root(tensor)), []).append(tensor)
    regions = []
    for home, tensors in found.items():
        counts = {search.channels(tensor) for tensor in tensors}
        parts = tuple(part for tensor, part in search.parts if id(search.root(tensor)) == home)
        channels = counts.pop()
        if home not in search.refused and not counts and channels and parts:
            regions.append(ChannelRegion(tuple(tensors), channels, parts))
    return regions


def _variables(node: gs.Node) -> list[gs.Tensor]:
    return [tensor for tensor in node.inputs if not tensor.is_empty() and constant_of(tensor) is None]


def _visit(node: gs.Node, search: _Search) -> bool:
    """Join what ``node`` joins; False when it does something else with channels."""
    if node.op == "Conv":
        return _visit_convolution(node, search)
    if node.op in NARY:
        return _visit_nary(node, search)
    source, output = node.inputs[0] if node.inputs else None, node.outputs[0] if len(node.outputs) == 1 else None
    if source is None or output is None or _variables(node) != [source]:
        return False
    if search.channels(source) is None or search.channels(source) != search.channels(output):
        return False
    if node.op == "Resize" and not _keeps_channels(node, source, search):
        return False
    if node.op == "BatchNormalization":
        search.parts += [(output, Part(node, index, 0, "each")) for index in range(1, 5)]
    plain = node.op in UNARY | POOLS | {"Resize", "BatchNormalization"}
    if not plain and not (node.op in REDUCTIONS and _over_space(node)) and not (node.op == "Pad" and _around(node)):
        return False
    search.join(source, output)
    return True


def _visit_convolution(node: gs.Node, search: _Search) -> bool:
    weight = constant_of(node.inputs[1])
    source, output, group = node.inputs[0], node.outputs[0], int(node.attrs.get("group", 1))
    if weight is None or weight.ndim != 4 or _variables(node) != [source]:
        return False
    biased = has_input(node, 2)
    if group == 1:
        search.parts.append((output, Part(node, 1, 0, "made")))
        search.parts.append((source, Part(node, 1, 1, "read")))
    elif weight.shape[:2] == (group, 1):
        search.parts.append((output, Part(node, 1, 0, "each")))
        search.join(source, output)
    else:
        return False
    if biased:
        search.parts.append((output, Part(node, 2, 0, "each")))
    return True


def _visit_nary(node: gs.Node, search: _Search) -> bool:
    output = node.outputs[0]
    channels = search.channels(output)
    if channels is None:
        return False
    for index, tensor in enumerate(node.inputs):
        value = constant_of(tensor)
        if value is None:
            if search.channels(tensor) == channels:
                search.join(tensor, output)
            elif search.channels(tensor) != 1:
                return False
            else:
                search.refuse(tensor)  # one map for all channels is no region of its own
        elif value.ndim > 4:
            return False
        elif value.ndim >= 3 and value.shape[-3] != 1:
            search.parts.append((output, Part(node, index, value.ndim - 3, "each")))
    return True


def _over_space(node: gs.Node) -> bool:
    axes = ints_of(node, "axes", 1)
    return axes is not None and int(node.attrs.get("keepdims", 1)) == 1 and {axis % 4 for axis in axes} <= {2, 3}


def _around(node: gs.Node) -> bool:
    pads = ints_of(node, "pads", 1)
    return pads is not None and len(pads) == 8 and not has_input(node, 3) and not any((*pads[:2], *pads[4:6]))


def _keeps_channels(node: gs.Node, source: gs.Tensor, search: _Search) -> bool:
    axes = node.attrs.get("axes")
    if axes is not None:
        return {int(axis) % 4 for axis in axes} <= {2, 3}
    if has_input(node, 3):
        search.parts.append((source, Part(node, 3, 1, "size")))
        sizes = constant_of(node.inputs[3])
        return sizes is not None and sizes.size == 4
    scales = constant_of(node.inputs[2]) if has_input(node, 2) else None
    return scales is not None and scales.size == 4 and bool(np.all(scales.reshape(-1)[:2] == 1))
