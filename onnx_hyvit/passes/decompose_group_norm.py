"""Spell GroupNormalization by InstanceNormalization, the form that has a fast kernel on CPU.

Before
    GroupNormalization(x, gamma, beta; num_groups = G)
After
    Reshape(x, [0, G, -1]) -> InstanceNormalization -> Reshape(., shape of x) -> Mul(gamma) -> Add(beta)
Conditions
    1. x has a known rank and number of channels; gamma and beta are fixed;
    2. gamma and beta hold one number per channel (opset 21; the form of opset 18 was withdrawn);
    3. the shape of x is a constant when all axes but the batch are known, else read at run time.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.edit import add_node, constant_of, dim_of, new_constant, new_variable, rank_of, take_over_output
from ..graph.io import Model
from ..graph.pattern import NearMiss
from .infrastructure import GraphPass


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Rewrite every GroupNormalization with fixed parameters."""
    graph = model.graph
    count = 0
    for node in [node for node in graph.nodes if node.op == "GroupNormalization"]:
        x, groups = node.inputs[0], int(node.attrs["num_groups"])
        parameters = [constant_of(tensor) for tensor in node.inputs[1:3]]
        rank, channels = rank_of(x), dim_of(x, 1)
        if rank is None or channels is None or any(value is None for value in parameters):
            near_misses.append(NearMiss("GroupNormalization with computed parameters or unknown channels", node.name))
            continue
        fitted = [_per_channel(np.asarray(value), channels, rank) for value in parameters]
        _rewrite(graph, node, groups, fitted)
        count += 1
    return count


def _per_channel(values: np.ndarray, channels: int, rank: int) -> np.ndarray:
    return np.broadcast_to(values, (channels,)).reshape(channels, *[1] * (rank - 2))


def _rewrite(graph: gs.Graph, node: gs.Node, groups: int, parameters: list[np.ndarray]) -> None:
    x, output, stem = node.inputs[0], node.outputs[0], node.name
    dtype = parameters[0].dtype
    joined = new_constant(graph, f"{stem}_groups", np.array([0, groups, -1], np.int64))
    rows = add_node(graph, "Reshape", [x, joined], stem=f"{stem}_join").outputs[0]
    unit = [new_constant(graph, f"{stem}_{name}", np.full(groups, v, dtype)) for name, v in (("one", 1), ("zero", 0))]
    attrs = {"epsilon": float(node.attrs.get("epsilon", 1e-5))}
    normed = add_node(graph, "InstanceNormalization", [rows, *unit], stem=f"{stem}_norm", attrs=attrs).outputs[0]
    whole = add_node(graph, "Reshape", [normed, _shape(graph, x, stem)], stem=f"{stem}_split").outputs[0]
    gamma, beta = (new_constant(graph, f"{stem}_{k}", v) for k, v in zip(("gamma", "beta"), parameters, strict=True))
    scaled = add_node(graph, "Mul", [whole, gamma], stem=f"{stem}_scale").outputs[0]
    whole.shape = scaled.shape = list(x.shape)
    last = add_node(graph, "Add", [scaled, beta], [new_variable(graph, f"{stem}_shifted")], stem=f"{stem}_shift")
    take_over_output(last, output)


def _shape(graph: gs.Graph, x: gs.Tensor, stem: str) -> gs.Tensor:
    rest = [dim_of(x, axis) for axis in range(1, len(x.shape))]
    if all(dim is not None for dim in rest):
        return new_constant(graph, f"{stem}_shape", np.array([0, *rest], np.int64))
    sizes = new_variable(graph, f"{stem}_shape", dtype=np.int64, shape=[len(x.shape)])
    add_node(graph, "Shape", [x], [sizes], stem=f"{stem}_shape")
    return sizes


PASS = GraphPass("decompose_group_norm", apply)
