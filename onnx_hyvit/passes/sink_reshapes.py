"""Move element-wise nodes from behind a Reshape to before it, so that Reshapes meet and cancel.

Before
    f(Reshape(x))          Reshape(x) op Reshape(y)          LayerNormalization(Reshape(x)) over the last axis
After
    Reshape(f(x))          Reshape(x op y)                   Reshape(LayerNormalization(x))
Conditions
    1. x has rank 2 (rows of a Gemm) and the Reshape keeps the last axis, so only its leading axes are split;
    2. f is element-wise with one variable operand, or op is a binary node whose Reshapes have the same target and
       the same output shape (a row for all samples, [1, T, C], would have to be repeated);
    3. the node's output is no graph output.
Between two Gemms of a transformer block nothing then remains of the Reshapes that their lowering put in.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from ..graph.edit import (
    add_node,
    constant_of,
    dim_of,
    ints_of,
    is_graph_output,
    new_variable,
    producer_of,
    rank_of,
    same_shape,
    take_over_output,
)
from ..graph.elementwise import ARITHMETIC, UNARY
from ..graph.io import Model
from ..graph.pattern import NearMiss
from .infrastructure import GraphPass


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Visit nodes in graph order until nothing moves; each move brings a node nearer to the inputs."""
    graph = model.graph
    total = 0
    while True:
        graph.toposort()
        count = sum(_visit(graph, node) for node in list(graph.nodes))
        if not count:
            return total
        total += count
        graph.cleanup()


def _visit(graph: gs.Graph, node: gs.Node) -> int:
    if node.domain not in (None, "", "ai.onnx") or len(node.outputs) != 1 or is_graph_output(graph, node.outputs[0]):
        return 0
    if node.op in UNARY or _is_last_axis_norm(node):
        reshapes = [_row_reshape(node.inputs[0])]
    elif node.op in ARITHMETIC:
        reshapes = [_row_reshape(tensor) for tensor in node.inputs]
        if any(r is None and not _is_scalar(t) for r, t in zip(reshapes, node.inputs, strict=True)):
            return 0
    else:
        return 0
    found = [reshape for reshape in reshapes if reshape is not None]
    if not found or not _agree(found):
        return 0
    _move(graph, node, found[0])
    return 1


def _is_last_axis_norm(node: gs.Node) -> bool:
    return node.op == "LayerNormalization" and node.attrs.get("axis", -1) == -1 and len(node.outputs) == 1


def _is_scalar(tensor: gs.Tensor) -> bool:
    value = constant_of(tensor)
    return value is not None and value.size == 1 and value.ndim <= 2


def _row_reshape(tensor: gs.Tensor) -> gs.Node | None:
    node = producer_of(tensor)
    if node is None or node.op != "Reshape" or rank_of(node.inputs[0]) != 2 or node.attrs.get("allowzero", 0):
        return None
    target, last, rank = ints_of(node, "shape", 1), dim_of(node.inputs[0], 1), rank_of(tensor)
    if target is None:  # computed from the shape of another tensor, whose last axis is this one's too
        return node if rank is not None and rank > 2 and last is not None and dim_of(tensor, -1) == last else None
    return node if len(target) > 2 and last is not None and target[-1] == last and 0 not in target[:-1] else None


def _agree(reshapes: list[gs.Node]) -> bool:
    first = reshapes[0]
    target = ints_of(first, "shape", 1)
    return all(
        (other.inputs[1] is first.inputs[1] or (target is not None and ints_of(other, "shape", 1) == target))
        and (other.inputs[0] is first.inputs[0] or same_shape(other.outputs[0], first.outputs[0]))
        for other in reshapes[1:]
    )


def _move(graph: gs.Graph, node: gs.Node, reshape: gs.Node) -> None:
    output = node.outputs[0]
    flat = new_variable(graph, f"{node.name}_rows", dtype=output.dtype, shape=list(reshape.inputs[0].shape))
    target = reshape.inputs[1]
    for index, tensor in enumerate(list(node.inputs)):
        before = _row_reshape(tensor)
        if before is not None:
            node.inputs[index] = before.inputs[0]
    shaped = add_node(
        graph, "Reshape", [flat, target], [new_variable(graph, f"{node.name}_shaped")], stem=f"{node.name}_reshape"
    )
    take_over_output(shaped, output)
    node.outputs = [flat]


PASS = GraphPass("sink_reshapes", apply)
