"""Who reads the channels of a tensor, behind nodes that only move them.

The counterpart of ``channel_trace``, forwards: labels of channels are pushed through Reshape, Transpose, Slice, Concat
and the like as plain integers (free dimensions set to 1), so every layout is followed exactly, whatever its spelling.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from .channel_trace import LAYOUT, sample_shape
from .edit import constant_of, is_graph_output
from .evaluate import evaluate_node

MOVES = LAYOUT | {"Expand"}


@dataclass(frozen=True)
class ChannelReader:
    """A node that computes with the channels.

    Args:
        node: The node.
        index: Which of its inputs they come in by.
        labels: Array of that input's shape (free dimensions 1): the label of each element.
    """

    node: gs.Node
    index: int
    labels: np.ndarray


@dataclass(frozen=True)
class Spread:
    """Where the channels of a tensor go.

    Args:
        readers: Nodes that compute with them, in graph order.
        labels: Tensor name -> labels, for the tensor itself and every moved copy.
    """

    readers: tuple[ChannelReader, ...]
    labels: Mapping[str, np.ndarray]


def axis_labels(tensor: gs.Tensor, axis: int) -> np.ndarray | None:
    """The index along ``axis`` for each element of ``tensor`` (free dimensions 1); None when a size is unknown."""
    shape = sample_shape(tensor)
    if not shape:
        return None
    view = [1] * len(shape)
    view[axis] = -1
    return np.broadcast_to(np.arange(shape[axis]).reshape(view), shape)


def spread_channels(
    graph: gs.Graph,
    tensor: gs.Tensor,
    labels: np.ndarray,
    opset: int,
    *,
    outer: Collection[str] = (),
    passing: Collection[str] = (),
) -> Spread | None:
    """Follow the channels of ``tensor`` to the nodes that compute with them.

    Args:
        graph: Sorted graph of the tensor.
        tensor: Where they start.
        labels: Integer array of the tensor's shape with free dimensions 1.
        opset: Default-domain opset.
        outer: Names of tensors that bodies of If and Loop read.
        passing: Names of further nodes to pass: they have one output, and keep the shape of what they read.

    Returns:
        The readers; None when the tensor or a moved copy is read from outside: by the user or by a body.
    """
    found = {tensor.name: labels}
    if is_graph_output(graph, tensor) or tensor.name in outer:
        return None
    readers = []
    for node in graph.nodes:
        indices = [index for index, operand in enumerate(node.inputs) if operand.name in found]
        if not indices:
            continue
        moved = None
        if node.name in passing and len(indices) == 1:
            moved = [found[node.inputs[indices[0]].name]]
        elif node.domain in (None, "", "ai.onnx") and node.outputs:
            moved = _move(node, found, opset)
        if moved is None:
            readers += [ChannelReader(node, index, found[node.inputs[index].name]) for index in indices]
            continue
        for output, values in zip(node.outputs, moved, strict=True):
            if is_graph_output(graph, output) or output.name in outer:
                return None
            found[output.name] = values
    return Spread(tuple(readers), found)


def _move(node: gs.Node, found: Mapping[str, np.ndarray], opset: int) -> list[np.ndarray] | None:
    """Labels of the node's outputs; None when it does not just move its first input, or all that Concat joins."""
    if node.op == "Concat":
        parts: list[np.ndarray | None] = [found.get(operand.name) for operand in node.inputs]
    elif node.op in MOVES and node.inputs[0].name in found:
        parts = [found[node.inputs[0].name]]
        parts += [None if extra.is_empty() else constant_of(extra) for extra in node.inputs[1:]]
        if any(part is None and not extra.is_empty() for part, extra in zip(parts, node.inputs, strict=True)):
            return None
    else:
        return None
    if node.op == "Concat" and any(part is None for part in parts):
        return None
    return evaluate_node(node, parts, opset)


def along_axis(labels: np.ndarray, axis: int) -> np.ndarray | None:
    """Labels [size of ``axis``] when they vary along that axis only, else None."""
    rows = np.moveaxis(labels, axis, -1).reshape(-1, labels.shape[axis])
    return rows[0] if (rows == rows[0]).all() else None
