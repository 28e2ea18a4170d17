"""Compute once what several nodes compute alike.

Before
    a = op(x, c1);  b = op(x, c2)            the same operator and attributes, c1 and c2 constants of equal value
After
    a = op(x, c1);  b is a
Conditions
    1. op moves data (Reshape, Transpose, Squeeze, Unsqueeze, Flatten, Slice): several readers of rows each bring their
       own; arithmetic written twice on purpose is left alone;
    2. b is no graph output.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from ...graph.edit import constant_of, is_graph_output, replace_uses
from ...graph.io import Model
from ...graph.pattern import NearMiss
from ..infrastructure import GraphPass

MERGED = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice"})


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Merge in topological order, so that chains of equal nodes merge too."""
    graph = model.graph
    graph.toposort()
    known: dict[object, gs.Node] = {}
    count = 0
    for node in list(graph.nodes):
        if node.op not in MERGED or node.domain not in (None, "", "ai.onnx") or len(node.outputs) != 1:
            continue
        first = known.setdefault(_key(node), node)
        if first is not node and not is_graph_output(graph, node.outputs[0]):
            replace_uses(graph, node.outputs[0], first.outputs[0])
            count += 1
    return count


def _key(node: gs.Node) -> object:
    attributes = tuple(sorted((name, repr(value)) for name, value in node.attrs.items()))
    return node.op, attributes, tuple(_identity(tensor) for tensor in node.inputs)


def _identity(tensor: gs.Tensor) -> object:
    value = constant_of(tensor)
    return id(tensor) if value is None else (value.shape, str(value.dtype), value.tobytes())


PASS = GraphPass("merge_equal_nodes", apply)
