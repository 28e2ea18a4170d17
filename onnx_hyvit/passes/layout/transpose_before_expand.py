"""Transpose what is repeated before it is repeated.

Before
    y = Transpose(Expand(x, shape), perm)
After
    y = Expand(Transpose(x, perm), shape[perm])
Conditions
    1. shape is fixed, and x has as many axes as it;
    2. nobody else reads the repeated values, and they are no graph output.
torch writes the relative positions of BoTNet and its kin so. Of 32 x 32 positions only one in 32 values is moved now,
and the sum behind repeats by itself (see ``drop_broadcast_expand``).
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ...graph.edit import add_node, ints_of, new_constant, new_variable, only_consumer_of, rank_of, take_over_output
from ...graph.io import Model
from ...graph.pattern import NearMiss
from ..infrastructure import GraphPass


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Swap every such pair."""
    count = 0
    for node in [node for node in model.graph.nodes if node.op == "Expand"]:
        reader = only_consumer_of(model.graph, node.outputs[0])
        if reader is None or reader.op != "Transpose":
            continue
        shape = ints_of(node, "shape", 1)
        if shape is None or rank_of(node.inputs[0]) != len(shape):
            near_misses.append(NearMiss("the shape that it expands to is not fixed, or has more axes", node.name))
            continue
        _swap(model.graph, node, reader, shape)
        count += 1
    model.graph.cleanup()
    return count


def _swap(graph: gs.Graph, expand: gs.Node, transpose: gs.Node, shape: tuple[int, ...]) -> None:
    source, result = expand.inputs[0], transpose.outputs[0]
    perm = [int(axis) for axis in transpose.attrs.get("perm", range(len(shape) - 1, -1, -1))]
    before = None if source.shape is None else [source.shape[axis] for axis in perm]
    moved = new_variable(graph, f"{transpose.name}_before", source.dtype, before)
    add_node(graph, "Transpose", [source], [moved], stem=f"{transpose.name}_before", attrs={"perm": perm})
    target = new_constant(graph, f"{expand.name}_shape", np.array([shape[axis] for axis in perm], np.int64))
    repeated = add_node(graph, "Expand", [moved, target], [], stem=f"{expand.name}_behind")
    take_over_output(repeated, result)


PASS = GraphPass("transpose_before_expand", apply)
