"""Write int8 linear layers as 1x1 convolutions on channels last.

Before
    Gemm(x; W, b) [-> Relu or Clip] -> y
After
    Reshape(x) -> Transpose -> Conv(W as [N, K, 1, 1], b) [-> Relu or Clip] -> Transpose -> Reshape -> y
    with a map ``[1, K, M, 1]`` of the M rows; what moves codes is carried, with the scale of its input
Conditions
    1. the plan asks for it, and has the layer, what it reads and what it makes in int8, each with one scale;
    2. x is not transposed, and alpha and beta are 1;
    3. nothing else reads W, and b has one axis.
ONNX Runtime's int8 convolutions work on channels last, so there the two transpositions cancel out and the rows are
multiplied as they lie. They requantize a tile while it is in the cache; QGemm first stores all sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.edit import constant_of, new_variable
from ..numerics import QParams
from ..placement import Plan
from .carry import TO_FIRST, TO_LAST, carry, reshape, transpose


def linear_to_convolution(
    graph: gs.Graph, plan: Plan, qparams: Mapping[str, QParams]
) -> tuple[Plan, Mapping[str, QParams]]:
    """Rewrite the layers that ``plan.as_convolution`` names where the conditions hold.

    Args:
        graph: Float graph that the plan was made for, without any Q/DQ pairs; edited in place.
        plan: The plan.
        qparams: Scales of activations and weights.

    Returns:
        The plan and the scales of the graph as it is now.
    """
    followers: dict[str, gs.Node] = {}
    for node in graph.nodes:
        if node.name in plan.absorbed:
            followers[plan.absorbed[node.name]] = node
    for node in [node for node in graph.nodes if node.name in plan.as_convolution]:
        last = followers.get(node.name, node)
        if _is_plain(node, plan) and last.outputs[0].name in plan.activations:
            plan, qparams = _rewrite(graph, node, last, plan, qparams)
    return plan, qparams


def _is_plain(node: gs.Node, plan: Plan) -> bool:
    if node.op != "Gemm" or node.name not in plan.int8_nodes or node.name in plan.absorbed:
        return False
    source, weight, *bias = node.inputs
    values = [constant_of(tensor) for tensor in bias if tensor.name]
    return (
        not node.attrs.get("transA", 0)
        and node.attrs.get("alpha", 1.0) == node.attrs.get("beta", 1.0) == 1.0
        and source.name in plan.activations
        and plan.activations[source.name].axis is None
        and isinstance(weight, gs.Constant)
        and weight.name in plan.weights
        and len(weight.outputs) == 1
        and all(value is not None and value.ndim == 1 for value in values)
    )


def _rewrite(
    graph: gs.Graph, node: gs.Node, last: gs.Node, plan: Plan, qparams: Mapping[str, QParams]
) -> tuple[Plan, Mapping[str, QParams]]:
    source, result, weight = node.inputs[0], last.outputs[0], node.inputs[1]
    is_wide_first = bool(node.attrs.get("transB", 0))
    values = weight.values if is_wide_first else np.ascontiguousarray(weight.values.T)
    wide, deep = values.shape
    weight.values = values.reshape(wide, deep, 1, 1)
    before = [reshape(graph, node.name, source, [1, -1, 1, deep])]
    before.append(transpose(graph, node.name, before[0].outputs[0], TO_FIRST))
    node.op, node.attrs = "Conv", {"kernel_shape": [1, 1]}
    node.inputs[0] = before[1].outputs[0]
    maps = new_variable(graph, f"{result.name}_Map", np.float32)
    if last is not node:
        node.outputs[0].shape = None  # was that of the rows
    last.outputs[0] = maps
    behind = [transpose(graph, node.name, maps, TO_LAST)]
    behind.append(reshape(graph, node.name, behind[0].outputs[0], [-1, wide], result))
    plan, qparams = _made_by_kernel(plan, qparams, result.name, maps.name, weight.name)
    return carry(carry(plan, before, source.name), behind, maps.name), qparams


def _made_by_kernel(
    plan: Plan, qparams: Mapping[str, QParams], result: str, maps: str, weight: str
) -> tuple[Plan, Mapping[str, QParams]]:
    """``maps``, which the int8 kernel makes now, has the scale that ``result`` had; the weight is that of a Conv."""
    spec = replace(plan.weights[weight], axis=None if plan.weights[weight].axis is None else 0)
    changed = dict(qparams)
    changed[maps] = changed.pop(result)
    if weight in changed:
        changed[weight] = replace(changed[weight], spec=spec)
    plan = replace(
        plan,
        activations={**plan.activations, maps: plan.activations[result]},
        weights={**plan.weights, weight: spec},
        tied={name: maps if origin == result else origin for name, origin in plan.tied.items()},
    )
    return plan, changed
