"""Fold fixed scales and biases into a linear operator from behind Reshape, Transpose, Split, Slice and Gather.

Before
    q = select(reshape(linear(x))) * s                      pre-scaled queries; sqrt(scale) on queries and keys
    MatMul(q, k) * s                                        s a number: scale of the logits
    reshape(linear(x)) + t                                  bias per head and channel (Keras, flax)
After
    q = select(reshape(linear'(x))), MatMul(q', k), reshape(linear'(x))
Conditions
    1. s, t are fixed and, followed back through the layout nodes, are one number for each channel of linear;
    2. every element of those channels passes the folded node: other readers along the way select other channels;
    3. no tensor along the way is a graph output or read by a body;
    4. linear has fixed weights and a fixed plain bias; a MatMul may be followed by the Add of its bias.
Algebra
    layout nodes only move elements, so s * layout(W x + b) + t = layout(s' (W x + b) + t') with s', t' per channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.channel_trace import LAYOUT, sample_shape
from ..graph.edit import bypass, constant_of, is_graph_output, new_constant, only_consumer_of, producer_of, scalar_of
from ..graph.evaluate import evaluate_node
from ..graph.io import Model
from ..graph.linear import (
    add_bias_after,
    channel_axis,
    channel_vector,
    foldable,
    output_channels,
    output_rank,
    scale_outputs,
)
from ..graph.pattern import NearMiss
from .infrastructure import GraphPass

LIMIT = 16


@dataclass
class _Source:
    """A linear operator, the Add of its bias when it is a MatMul that has one, and its result."""

    linear: gs.Node
    add: gs.Node | None
    bias: np.ndarray | None

    @property
    def result(self) -> gs.Tensor:
        return (self.add or self.linear).outputs[0]


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Fold nodes that read a moved linear result, then scales of logits."""
    graph = model.graph
    count = 0
    for node in list(graph.nodes):
        if node.op not in ("Mul", "Div", "Add", "Sub") or len(node.inputs) != 2 or not node.outputs:
            continue
        fixed = 1 if constant_of(node.inputs[1]) is not None else 0
        value, data = constant_of(node.inputs[fixed]), node.inputs[1 - fixed]
        if value is None or constant_of(data) is not None or (fixed == 0 and node.op in ("Div", "Sub")):
            continue
        if value.dtype.kind != "f" or only_consumer_of(graph, data) is None:
            continue
        targets = [data, *_operands_of_product(graph, node, data)]
        count += any(_try(model, node, tensor, value, 1 - fixed) for tensor in targets)
    return count


def _operands_of_product(graph: gs.Graph, node: gs.Node, data: gs.Tensor) -> list[gs.Tensor]:
    """Queries and keys, when ``node`` scales their product by a number."""
    product = producer_of(data)
    scales = node.op in ("Mul", "Div") and any(scalar_of(tensor) is not None for tensor in node.inputs)
    if product is None or product.op != "MatMul" or not scales or foldable(product):
        return []
    return [tensor for tensor in product.inputs if only_consumer_of(graph, tensor) is not None]


def _try(model: Model, node: gs.Node, tensor: gs.Tensor, value: np.ndarray, data_index: int) -> bool:
    graph = model.graph
    path: list[tuple[gs.Node, gs.Tensor]] = []
    source: _Source | None = None
    at = tensor
    for _ in range(LIMIT):
        source = _source(graph, at)
        producer = producer_of(at)
        if source is not None or producer is None or producer.op not in LAYOUT:
            break
        path.append((producer, at))
        at = producer.inputs[0]
    if source is None or not path:
        return False
    path.reverse()
    channels = _closed_channels(graph, source, path, model.opset)
    vector = None if channels is None else _per_channel(value, channels, output_channels(source.linear), node.op)
    if vector is None or not bypass(graph, node, data_index):
        return False
    _fold(graph, source, node.op, vector)
    return True


def _source(graph: gs.Graph, tensor: gs.Tensor) -> _Source | None:
    node = producer_of(tensor)
    if node is None:
        return None
    if foldable(node):
        return _Source(node, None, None)
    if node.op != "Add":
        return None
    for data, other in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        linear, value = producer_of(data), constant_of(other)
        if linear is None or value is None or linear.op != "MatMul" or not foldable(linear):
            continue
        bias = channel_vector(value, output_channels(linear), -1, output_rank(linear))
        if bias is not None and only_consumer_of(graph, data) is not None:
            return _Source(linear, node, bias)
    return None


def _closed_channels(
    graph: gs.Graph, source: _Source, path: list[tuple[gs.Node, gs.Tensor]], opset: int
) -> np.ndarray | None:
    """Channel of every element of the path's end, if nothing else reads those channels."""
    shape = sample_shape(source.result)
    if shape is None or shape == ():
        return None
    axis = channel_axis(source.linear) % len(shape)
    view = [1] * len(shape)
    view[axis] = -1
    stages = [np.broadcast_to(np.arange(shape[axis]).reshape(view), shape)]
    siblings: list[np.ndarray] = []
    tensor = source.result
    for node, output in path:
        if is_graph_output(graph, tensor):
            return None
        for user in tensor.outputs:
            results = _moved(user, stages[-1], opset) if user.op in LAYOUT and user.inputs[0] is tensor else None
            if results is None or any(is_graph_output(graph, other) for other in user.outputs):
                return None
            if user is not node:
                siblings.extend(results)
                continue
            following = next(array for array, other in zip(results, user.outputs, strict=True) if other is output)
            siblings.extend(
                array
                for array, other in zip(results, user.outputs, strict=True)
                if other is not output and other.outputs
            )
        stages.append(following)
        tensor = output
    used = np.unique(stages[-1])
    return None if any(np.isin(used, array).any() for array in siblings) else stages[-1]


def _moved(node: gs.Node, channels: np.ndarray, opset: int) -> list[np.ndarray] | None:
    inputs = [channels, *(None if extra.is_empty() else constant_of(extra) for extra in node.inputs[1:])]
    if any(value is None and not extra.is_empty() for value, extra in zip(inputs, node.inputs, strict=True)):
        return None
    return evaluate_node(node, inputs, opset)


def _per_channel(value: np.ndarray, channels: np.ndarray, count: int, op: str) -> np.ndarray | None:
    """The constant as one number per channel; channels that do not pass keep the neutral element."""
    neutral = 1.0 if op in ("Mul", "Div") else 0.0
    vector = np.full(count, neutral)
    if value.size == 1 and value.ndim <= channels.ndim:
        vector[np.unique(channels)] = float(value.reshape(-1)[0])
        return None if op == "Div" and np.any(vector == 0) else vector
    try:
        spread = np.broadcast_to(value, channels.shape).reshape(-1).astype(np.float64)
    except ValueError:
        return None
    flat = channels.reshape(-1)
    vector[flat] = spread
    if not np.array_equal(vector[flat], spread) or (op == "Div" and np.any(vector == 0)):
        return None
    return vector


def _fold(graph: gs.Graph, source: _Source, op: str, vector: np.ndarray) -> None:
    scale = vector if op == "Mul" else 1.0 / vector if op == "Div" else np.ones_like(vector)
    shift = vector if op == "Add" else -vector if op == "Sub" else None
    linear = source.linear
    if source.add is not None and source.bias is not None:
        scale_outputs(graph, linear, scale)
        index = 0 if constant_of(source.add.inputs[0]) is not None else 1
        total = source.bias * scale + (0.0 if shift is None else shift)
        dtype = source.add.inputs[index].dtype
        source.add.inputs[index] = new_constant(graph, f"{linear.name}_bias", total.astype(dtype))
    elif linear.op == "MatMul" and shift is not None:
        add_bias_after(graph, linear, shift)
    else:
        scale_outputs(graph, linear, scale, shift)


PASS = GraphPass("fold_scale_through_layout", apply)
