"""Let an elementwise operator repeat its operand instead of an Expand in front of it.

Before
    z = Op(a, Expand(e, shape))          Op: Add, Sub, Mul, Div, Pow, Max, Min of two operands, on either side
After
    z = Op(a, e)
Conditions
    1. shape is fixed; along every axis that it may enlarge, the other operand has just that size;
    2. the other operand has at least as many axes.
torch writes ``x / norm(x).expand_as(x)`` for cosine attention: the copy costs as much as the division.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from ..graph.edit import dim_of, ints_of, rank_of
from ..graph.io import Model
from ..graph.pattern import NearMiss
from .infrastructure import GraphPass

BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"})


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Bypass every Expand for each of its readers that repeats by itself."""
    count = 0
    for node in [node for node in model.graph.nodes if node.op == "Expand"]:
        for reader in list(dict.fromkeys(map(id, node.outputs[0].outputs))):
            count += _bypass(node, next(item for item in node.outputs[0].outputs if id(item) == reader))
    model.graph.cleanup()
    return count


def _bypass(expand: gs.Node, reader: gs.Node) -> int:
    shape, expanded = ints_of(expand, "shape", 1), expand.outputs[0]
    if shape is None or reader.op not in BROADCASTING or len(reader.inputs) != 2:
        return 0
    index = 0 if reader.inputs[0] is expanded else 1
    other = reader.inputs[1 - index]
    rank = rank_of(other)
    if other is expanded or rank is None or len(shape) > rank:
        return 0
    source = expand.inputs[0]
    enlarged = [(axis, size) for axis, size in enumerate(shape) if size not in (1, dim_of(source, axis - len(shape)))]
    if any(size != dim_of(other, axis + rank - len(shape)) for axis, size in enlarged):
        return 0
    reader.inputs[index] = expand.inputs[0]
    return 1


PASS = GraphPass("drop_broadcast_expand", apply)
