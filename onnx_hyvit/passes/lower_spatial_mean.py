"""Write the mean of a map over both its sides as GlobalAveragePool.

Before
    y = ReduceMean<keepdims = 1>(x [N, C, H, W], axes = 2, 3)
    y = ReduceMean<keepdims = 0>(x [N, C, H, W], axes = 2, 3)
After
    y = GlobalAveragePool(x)
    y = Flatten<axis = 1>(GlobalAveragePool(x))
Conditions
    1. x has four axes, and the fixed axes of the mean are the last two.
ONNX Runtime has an int8 kernel for the pooling and none for the mean, and keeps its blocked float layout across it.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from ..graph.edit import add_node, ints_of, new_variable, rank_of
from ..graph.io import Model
from ..graph.pattern import NearMiss
from .infrastructure import GraphPass


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Rewrite every mean over the two sides of a map."""
    means = [node for node in model.graph.nodes if node.op == "ReduceMean" and _is_spatial(node)]
    for node in means:
        source, output = node.inputs[0], node.outputs[0]
        node.op, node.inputs = "GlobalAveragePool", [source]
        keeps = int(node.attrs.get("keepdims", 1)) == 1
        node.attrs = {}
        if keeps:
            continue
        shape = [*source.shape[:2], 1, 1]
        pooled = new_variable(model.graph, f"{output.name}_pooled", output.dtype, shape)
        node.outputs = [pooled]
        add_node(model.graph, "Flatten", [pooled], [output], stem=f"{node.name}_flatten", attrs={"axis": 1})
    return len(means)


def _is_spatial(node: gs.Node) -> bool:
    axes = ints_of(node, "axes", 1)
    return rank_of(node.inputs[0]) == 4 and axes is not None and sorted(axis % 4 for axis in axes) == [2, 3]


PASS = GraphPass("lower_spatial_mean", apply)
