"""Fold inference BatchNormalization into the linear operator before it.

Before
    y = BatchNormalization(linear(x), gamma, beta, mean, var)       linear: Conv, ConvTranspose, Gemm, MatMul
    y = BatchNormalization(reorder(linear(x)), ...)                 reorder: Reshape([-1, C]), Flatten or Transpose
After
    y = linear'(x), resp. reorder(linear'(x))                       (MatMul: followed by an Add of the bias)
    y = x * s + t with s, t of shape [C, 1, ...] when nothing linear stands before it
Conditions
    1. not in training mode and no further outputs are used;
    2. the linear operator has fixed weights, a fixed plain bias, and nobody else reads its output (closed);
    3. the reordered axis 1 is the linear operator's channel axis.
Algebra
    s = gamma / sqrt(var + epsilon), t = beta - mean * s; W' = s W per output channel, b' = s b + t.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.edit import add_node, bypass, constant_of, ints_of, new_constant, only_consumer_of, producer_of, rank_of
from ..graph.io import Model
from ..graph.linear import (
    add_bias_after,
    channel_axis,
    foldable,
    output_channels,
    output_rank,
    scale_outputs,
)
from ..graph.pattern import NearMiss
from .infrastructure import GraphPass


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Fold where a linear operator stands before; otherwise spell the node as Mul and Add."""
    graph = model.graph
    count = 0
    for node in [node for node in graph.nodes if node.op == "BatchNormalization"]:
        affine = scale_and_shift(node)
        if affine is None:
            near_misses.append(NearMiss("BatchNormalization in training mode or with computed statistics", node.name))
            continue
        linear, reason = _linear_before(graph, node, len(affine[0]))
        if linear is not None:
            count += _fold(graph, node, linear, *affine)
        else:
            near_misses.append(NearMiss(f"BatchNormalization stands alone: {reason}", node.name))
            count += _spell_out(graph, node, *affine)
    return count


def scale_and_shift(node: gs.Node) -> tuple[np.ndarray, np.ndarray] | None:
    """``(s, t)`` in float64, each [C]; None when the statistics are not fixed or the node trains."""
    if node.attrs.get("training_mode", 0) or any(tensor.outputs for tensor in node.outputs[1:]):
        return None
    values = [constant_of(tensor) for tensor in node.inputs[1:5]]
    if any(value is None for value in values):
        return None
    gamma, beta, mean, var = (np.asarray(value, np.float64).reshape(-1) for value in values)
    scale = gamma / np.sqrt(var + float(node.attrs.get("epsilon", 1e-5)))
    return scale, beta - mean * scale


def _linear_before(graph: gs.Graph, node: gs.Node, channels: int) -> tuple[gs.Node | None, str]:
    """The linear operator whose channels arrive on axis 1, seen through closed reorderings."""
    tensor, axis = node.inputs[0], 1
    for _ in range(8):
        producer = producer_of(tensor)
        if producer is None:
            return None, f"its input {tensor.name!r} is no operator's output"
        if only_consumer_of(graph, tensor) is None:
            return None, f"tensor {tensor.name!r} is read elsewhere too"
        if foldable(producer):
            rank = output_rank(producer)
            if rank is None or output_channels(producer) != channels or axis != channel_axis(producer) % rank:
                return None, f"axis 1 is not the channel axis of {producer.name}"
            return producer, ""
        source = _axis_before(producer, axis, channels)
        if source is None:
            return None, f"{producer.op} {producer.name} stands before it"
        axis, tensor = source, producer.inputs[0]
    return None, "too many reorderings stand before it"


def _axis_before(node: gs.Node, axis: int, channels: int) -> int | None:
    """Where ``axis`` of a reordering's output comes from, when channels stay one unsplit axis."""
    if node.op == "Transpose" and "perm" in node.attrs:
        return int(node.attrs["perm"][axis])
    if node.op == "Identity":
        return axis
    rank = rank_of(node.inputs[0])
    if node.op == "Flatten" and rank is not None and axis == 1 and node.attrs.get("axis", 1) in (rank - 1, -1):
        return rank - 1
    target = ints_of(node, "shape", 1) if node.op == "Reshape" else None
    if target is None or rank is None:
        return None
    last = node.inputs[0].shape[rank - 1]
    return rank - 1 if axis == len(target) - 1 and last == channels and target[-1] in (channels, -1) else None


def _fold(graph: gs.Graph, node: gs.Node, linear: gs.Node, scale: np.ndarray, shift: np.ndarray) -> int:
    node.outputs = node.outputs[:1]
    if not bypass(graph, node):
        return 0
    if linear.op == "MatMul":
        scale_outputs(graph, linear, scale)
        add_bias_after(graph, linear, shift)
    else:
        scale_outputs(graph, linear, scale, shift)
    return 1


def _spell_out(graph: gs.Graph, node: gs.Node, scale: np.ndarray, shift: np.ndarray) -> int:
    rank = rank_of(node.inputs[0])
    if rank is None or rank < 2:
        return 0
    source, output = node.inputs[0], node.outputs[0]
    gamma = constant_of(node.inputs[1])
    assert gamma is not None
    shape = (-1, *[1] * (rank - 2))
    factor = new_constant(graph, f"{node.name}_scale", scale.astype(gamma.dtype).reshape(shape))
    offset = new_constant(graph, f"{node.name}_shift", shift.astype(gamma.dtype).reshape(shape))
    node.inputs.clear()
    node.outputs.clear()
    scaled = add_node(graph, "Mul", [source, factor], stem=f"{node.name}_mul")
    scaled.outputs[0].shape = output.shape
    add_node(graph, "Add", [scaled.outputs[0], offset], [output], stem=f"{node.name}_add")
    return 1


PASS = GraphPass("fold_batchnorm", apply)
