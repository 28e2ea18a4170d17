"""Where the channels of a projection end up after Reshape, Transpose, Split, Slice and Gather.

The channel index of a linear operator's output is pushed through the layout nodes as plain integers (free dimensions
set to 1), so any layout is followed exactly, whatever its spelling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from .edit import constant_of, producer_of
from .evaluate import evaluate_node
from .linear import channel_axis, weight_of
from .symbolic.dims import Monomial, parse_dim

LAYOUT = frozenset({"Reshape", "Transpose", "Split", "Slice", "Gather", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
POINTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Relu", "Cast", "Clip", "Sigmoid", "LayerNormalization", "Softmax"})


@dataclass(frozen=True)
class Trace:
    """A tensor traced back to a linear operator.

    Args:
        source: The linear operator.
        path: Layout nodes from the operator to the tensor.
        channels: Array of the tensor's shape (free dimensions 1): the operator's output channel of each element.
    """

    source: gs.Node
    path: tuple[gs.Node, ...]
    channels: np.ndarray


def sample_shape(tensor: gs.Tensor) -> tuple[int, ...] | None:
    """Shape of ``tensor`` with every free dimension set to 1, or None when it is unknown."""
    if tensor.shape is None:
        return None
    result: list[int] = []
    for dim in tensor.shape:
        parsed = parse_dim(dim)
        if isinstance(parsed, Monomial) and parsed.coefficient.denominator == 1:
            parsed = int(parsed.coefficient)
        if not isinstance(parsed, int):
            return None
        result.append(parsed)
    return tuple(result)


def trace_channels(tensor: gs.Tensor, opset: int, through_pointwise: bool = True, limit: int = 24) -> Trace | None:
    """Follow ``tensor`` back to the linear operator that made its channels.

    Args:
        tensor: Any tensor, for example the queries of an attention.
        opset: Default-domain opset.
        through_pointwise: Step over element-wise nodes (bias, scale, norm) along their first variable operand.
        limit: How many nodes to step over.

    Returns:
        The trace, or None when no linear operator is found or a shape is unknown.
    """
    path: list[tuple[gs.Node, gs.Tensor]] = []
    for _ in range(limit):
        node = producer_of(tensor)
        if node is None:
            return None
        if weight_of(node) is not None:
            return _forward(node, path[::-1], opset)
        if node.op in LAYOUT:
            path.append((node, tensor))
            tensor = node.inputs[0]
        elif through_pointwise and node.op in POINTWISE:
            variable = [operand for operand in node.inputs if constant_of(operand) is None and not operand.is_empty()]
            if not variable:
                return None
            tensor = variable[0]
        else:
            return None
    return None


def _forward(source: gs.Node, path: list[tuple[gs.Node, gs.Tensor]], opset: int) -> Trace | None:
    shape = sample_shape(source.outputs[0])
    if shape is None:
        return None
    axis = channel_axis(source) % len(shape)
    view = [1] * len(shape)
    view[axis] = -1
    channels = np.broadcast_to(np.arange(shape[axis]).reshape(view), shape)
    for node, tensor in path:
        inputs = [channels, *(constant_of(extra) for extra in node.inputs[1:])]
        if any(value is None for value in inputs[1:]):
            return None
        results = evaluate_node(node, inputs, opset)
        if results is None:
            return None
        channels = results[next(i for i, output in enumerate(node.outputs) if output is tensor)]
    return Trace(source, tuple(node for node, _ in path), channels)


def varies_along(channels: np.ndarray, axis: int) -> bool:
    """Whether the channel index changes along ``axis``: the axis holds channels rather than positions."""
    return bool(channels.shape[axis] > 1 and np.any(np.diff(channels, axis=axis) != 0))
