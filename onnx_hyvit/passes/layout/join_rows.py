"""Let the residual stream of a transformer live in rows, as its Gemms do.

Before
    y = x op Reshape(g)                                      g [rows, C] of a Gemm, op a binary element-wise operator
After
    y = Reshape(Reshape(x, [-1, C]) op g)
Conditions
    1. the Reshape keeps the last axis of g and nobody else reads it;
    2. x is no constant, and its shape is that of Reshape(g);
    3. y is read by an operator that sink_reshapes moves behind, or by a Reshape to rows: the stream goes on in rows.
With sink_reshapes and eliminate_noops after it, one Reshape remains before and one behind the stream.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ...graph.edit import (
    add_node,
    constant_of,
    dim_of,
    is_graph_output,
    new_constant,
    new_variable,
    only_consumer_of,
    producer_of,
    rank_of,
    same_shape,
    take_over_output,
)
from ...graph.elementwise import ARITHMETIC
from ...graph.io import Model
from ...graph.pattern import NearMiss
from ..infrastructure import GraphPass

GOES_ON = ARITHMETIC | frozenset({"LayerNormalization", "Reshape", "Relu", "Gelu", "Sigmoid"})


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Visit binary nodes in graph order, so that a stream is followed from its beginning."""
    graph = model.graph
    graph.toposort()
    count = 0
    for node in list(graph.nodes):
        if node.op in ARITHMETIC and node.domain in (None, "", "ai.onnx") and len(node.inputs) == 2:
            count += _join(graph, node)
    return count


def _join(graph: gs.Graph, node: gs.Node) -> int:
    output = node.outputs[0]
    reshapes = [_from_rows(graph, tensor) for tensor in node.inputs]
    position = next((index for index, reshape in enumerate(reshapes) if reshape is not None), None)
    if position is None or is_graph_output(graph, output) or not any(user.op in GOES_ON for user in output.outputs):
        return 0
    reshape, other = reshapes[position], node.inputs[1 - position]
    if reshape is None or constant_of(other) is not None or not same_shape(other, node.inputs[position]):
        return 0
    rows, columns = reshape.inputs[0], dim_of(reshape.inputs[0], 1)
    flat = new_variable(graph, f"{node.name}_other_rows", other.dtype, list(rows.shape))
    target = new_constant(graph, f"{node.name}_rows_shape", np.array([-1, columns], np.int64))
    add_node(graph, "Reshape", [other, target], [flat], stem=f"{node.name}_to_rows")
    result = new_variable(graph, f"{node.name}_rows", output.dtype, list(rows.shape))
    shaped = add_node(graph, "Reshape", [result, reshape.inputs[1]], [], stem=f"{node.name}_from_rows")
    take_over_output(shaped, output)
    node.inputs = [flat if index != position else rows for index in range(2)]
    node.outputs = [result]
    return 1


def _from_rows(graph: gs.Graph, tensor: gs.Tensor) -> gs.Node | None:
    node = producer_of(tensor)
    if node is None or node.op != "Reshape" or rank_of(node.inputs[0]) != 2 or (rank_of(tensor) or 0) < 3:
        return None
    target, last = constant_of(node.inputs[1]), dim_of(node.inputs[0], 1)
    if target is None or last is None or dim_of(tensor, -1) != last or (target == 0).any():
        return None
    return node if only_consumer_of(graph, tensor) is not None else None


PASS = GraphPass("join_rows", apply)
