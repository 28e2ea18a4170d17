"""Fold a fixed per-channel Mul, Div, Add or Sub into the neighbouring linear operator.

Before
    y = linear(x) * s | linear(x) / s | linear(x) + t | linear(x) - t       (LayerScale, folded BatchNorm, bias)
    y = linear(x * s) | linear(x + t)
After
    y = linear'(x)                   (MatMul keeps one Add for its bias, which is the form that is lowered to Gemm)
Conditions
    1. s, t are fixed and vary along the channel axis only;
    2. nobody else reads the tensor between the two nodes (closed), and it is no graph output;
    3. linear has fixed weights and a fixed plain bias; a MatMul may be followed by the Add of its bias;
    4. t before a convolution: no padding, since padded zeros would become t.
Algebra
    s (W x + b) + t = (s W) x + (s b + t);     W (s x + t) + b = (W s) x + (b + W t).
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.edit import bypass, constant_of, is_graph_output, new_constant, only_consumer_of, producer_of, rank_of
from ..graph.io import Model
from ..graph.linear import (
    bias_of,
    channel_axis,
    channel_vector,
    foldable,
    output_channels,
    output_rank,
    scale_outputs,
    set_bias,
    weight_of,
)
from ..graph.pattern import NearMiss
from .infrastructure import GraphPass

AFFINE = ("Mul", "Div", "Add", "Sub")


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Fold backwards where possible, otherwise forwards; repeated until nothing changes."""
    graph = model.graph
    total = 0
    while True:
        count = sum(
            _fold_back(graph, node) or _fold_forward(graph, node)
            for node in list(graph.nodes)
            if node.op in AFFINE and len(node.outputs) == 1
        )
        if not count:
            return total
        total += count
        graph.cleanup().toposort()


def _operands(node: gs.Node) -> tuple[gs.Tensor, np.ndarray] | None:
    """The variable operand and the fixed one; Div and Sub only with the fixed one last."""
    for index in (1, 0) if node.op in ("Mul", "Add") else (1,):
        value = constant_of(node.inputs[index])
        if value is not None and constant_of(node.inputs[1 - index]) is None:
            return node.inputs[1 - index], value
    return None


def _as_affine(op: str, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    ones, zeros = np.ones_like(vector), np.zeros_like(vector)
    if op == "Div":
        return (1.0 / vector, zeros) if np.all(vector != 0) else None
    return {"Mul": (vector, zeros), "Add": (ones, vector), "Sub": (ones, -vector)}[op]


def _fold_back(graph: gs.Graph, node: gs.Node) -> int:
    operands = _operands(node)
    if operands is None:
        return 0
    source, value = operands
    if len(source.outputs) != 1 or is_graph_output(graph, source):
        return 0
    before = producer_of(source)
    if before is None:
        return 0
    if before.op == "Add":
        return _fold_into_matmul_bias(graph, node, before, value)
    if not foldable(before):
        return 0
    vector = channel_vector(value, output_channels(before), channel_axis(before), output_rank(before))
    affine = None if vector is None else _as_affine(node.op, vector)
    if affine is None or (before.op == "MatMul" and node.op in ("Add", "Sub")):
        return 0
    if not bypass(graph, node, 0 if node.inputs[0] is source else 1):
        return 0
    scale, shift = affine
    scale_outputs(graph, before, scale, shift if node.op in ("Add", "Sub") else None)
    return 1


def _fold_into_matmul_bias(graph: gs.Graph, node: gs.Node, add: gs.Node, value: np.ndarray) -> int:
    """``node(Add(MatMul(x, W), b))``."""
    inner = _operands(add)
    if inner is None:
        return 0
    linear = producer_of(inner[0])
    if linear is None or linear.op != "MatMul" or not foldable(linear) or only_consumer_of(graph, inner[0]) is None:
        return 0
    channels, rank = output_channels(linear), output_rank(linear)
    vector, bias = channel_vector(value, channels, -1, rank), channel_vector(inner[1], channels, -1, rank)
    affine = None if vector is None else _as_affine(node.op, vector)
    if affine is None or bias is None:
        return 0
    if not bypass(graph, node, 0 if node.inputs[0] is add.outputs[0] else 1):
        return 0
    scale, shift = affine
    scale_outputs(graph, linear, scale)
    merged = new_constant(graph, f"{linear.name}_bias", (bias * scale + shift).astype(value.dtype))
    add.inputs[0 if add.inputs[0] is not inner[0] else 1] = merged
    return 1


def _fold_forward(graph: gs.Graph, node: gs.Node) -> int:
    operands = _operands(node)
    after = only_consumer_of(graph, node.outputs[0])
    if operands is None or after is None or not foldable(after) or after.inputs[0] is not node.outputs[0]:
        return 0
    source, value = operands
    affine = _input_affine(node, after, value, source)
    if affine is None:
        return 0
    scale, shift = affine
    moves = bool(np.any(shift))
    if moves and (after.op not in ("Conv", "Gemm") or _pads(after)):
        return 0
    if not bypass(graph, node, 0 if node.inputs[0] is source else 1):
        return 0
    _scale_inputs(graph, after, scale, shift if moves else None)
    return 1


def _input_affine(
    node: gs.Node, after: gs.Node, value: np.ndarray, source: gs.Tensor
) -> tuple[np.ndarray, np.ndarray] | None:
    weight = weight_of(after)
    assert weight is not None
    if after.op in ("Gemm",) and after.attrs.get("transA", 0):
        return None
    rank = weight.ndim if after.op in ("Conv", "ConvTranspose") else rank_of(source)
    vector = channel_vector(value, _input_channels(after, weight), channel_axis(after), rank)
    return None if vector is None else _as_affine(node.op, vector)


def _input_channels(node: gs.Node, weight: np.ndarray) -> int:
    if node.op == "Conv":
        return int(weight.shape[1]) * int(node.attrs.get("group", 1))
    return int(weight.shape[1 if node.op == "Gemm" and node.attrs.get("transB", 0) else 0])


def _pads(node: gs.Node) -> bool:
    if node.op != "Conv":
        return False
    return any(node.attrs.get("pads", ())) or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")


def _scale_inputs(graph: gs.Graph, node: gs.Node, scale: np.ndarray, shift: np.ndarray | None) -> None:
    weight = weight_of(node)
    assert weight is not None
    wide = weight.astype(np.float64)
    if node.op == "Conv":
        groups = int(node.attrs.get("group", 1))
        grouped = wide.reshape(groups, -1, *wide.shape[1:])
        tail = [1] * (wide.ndim - 2)
        scaled = grouped * scale.reshape(groups, 1, -1, *tail)
        moved = None if shift is None else (grouped * shift.reshape(groups, 1, -1, *tail))
        added = None if moved is None else moved.sum(axis=tuple(range(2, moved.ndim))).reshape(-1)
    else:
        by_row = node.op == "Gemm" and bool(node.attrs.get("transB", 0))
        shape = (1, -1) if by_row else (-1, *[1] * (wide.ndim - 1))
        scaled = wide * scale.reshape(shape)
        alpha = float(node.attrs.get("alpha", 1.0)) if node.op == "Gemm" else 1.0
        added = None if shift is None else alpha * (wide * shift.reshape(shape)).sum(axis=1 if by_row else 0)
    node.inputs[1] = new_constant(graph, f"{node.name}_weight", scaled.reshape(wide.shape).astype(weight.dtype))
    if added is not None:
        bias = bias_of(node)
        set_bias(graph, node, added if bias is None else bias + added)


PASS = GraphPass("fold_channel_scale", apply)
