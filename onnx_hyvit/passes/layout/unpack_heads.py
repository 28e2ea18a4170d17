"""Take queries, keys and values apart before their heads are moved, not after.

Before
    x = Reshape(p [B, N, P*H*D])                        [B, N, P, H, D]
    t = Transpose(x, perm = [2, ...]);  q, k, v = Squeeze(Split(t, axis=0)) | Gather(t, i, axis=0)
After
    q, k, v = Transpose(Reshape(part))                  for each part of Split(p, axis=-1)
Conditions
    1. p is written by a linear operator (MatMul, maybe with Add, or Gemm), which split_linear then splits as well;
    2. the packed axis is the third of five and comes first; it is split into single parts, or gathered by fixed numbers
       that name each part once;
    3. nobody else reads p, x, t or the parts, and none is a graph output.
So no copy remains for the split, and each part gets the one Transpose that it needs: that of the keys, or of all parts
in an attention over channels, is a swap of two groups of axes, which is fast. Behind the packed Transpose all parts
would first be moved as short blocks, or, after the runtime's own rewriting, as single numbers.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ...graph.edit import (
    add_node,
    constant_of,
    dim_of,
    ints_of,
    is_graph_output,
    new_constant,
    new_variable,
    only_consumer_of,
    producer_of,
    take_over_output,
)
from ...graph.io import Model
from ...graph.pattern import NearMiss
from ..infrastructure import GraphPass

PACKED = 2


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Rewrite every packed projection."""
    graph = model.graph
    count = 0
    for node in list(graph.nodes):
        perm = tuple(node.attrs.get("perm", ())) if node.op == "Transpose" else ()
        if len(perm) != 5 or perm[0] != PACKED or is_graph_output(graph, node.outputs[0]):
            continue
        parts, target = _parts(graph, node.outputs[0]), _target(graph, node)
        if parts is None:
            near_misses.append(NearMiss("the packed axis is not taken apart by Split or Gather alone", node.name))
        elif target is None:
            near_misses.append(NearMiss("the packed tensor does not come from a linear operator", node.name))
        else:
            _rewrite(graph, node, perm, parts, target)
            count += 1
    return count


def _target(graph: gs.Graph, node: gs.Node) -> list[int] | None:
    """Target of the Reshape of one part, when what is packed is the output of a linear operator."""
    reshape, shape = producer_of(node.inputs[0]), node.inputs[0].shape
    if reshape is None or reshape.op != "Reshape" or only_consumer_of(graph, node.inputs[0]) is not node:
        return None
    target, packed = ints_of(reshape, "shape", 1), reshape.inputs[0]
    linear = producer_of(packed)
    if linear is None or linear.op not in ("MatMul", "Gemm", "Add") or only_consumer_of(graph, packed) is not reshape:
        return None
    if target is None or len(target) != 5 or not packed.shape or not isinstance(packed.shape[-1], int):
        return None
    sizes = list(shape or [])[PACKED:]
    if len(sizes) != 3 or not all(isinstance(size, int) for size in sizes) or np.prod(sizes) != packed.shape[-1]:
        return None
    return [*target[:PACKED], *sizes[1:]]


def _parts(graph: gs.Graph, packed: gs.Tensor) -> list[tuple[int, gs.Tensor]] | None:
    """Index and tensor of each part, or None when a reader is no plain selection."""
    found: list[tuple[int, gs.Tensor]] = []
    for user in packed.outputs:
        selected = _of_split(graph, user) if user.op == "Split" else _of_gather(user)
        if selected is None:
            return None
        found += selected
    each_once = sorted(index for index, _ in found) == list(range(dim_of(packed, 0) or 0))
    return found if each_once else None


def _of_split(graph: gs.Graph, split: gs.Node) -> list[tuple[int, gs.Tensor]] | None:
    parts = dim_of(split.inputs[0], 0)
    if int(split.attrs.get("axis", 0)) != 0 or parts != len(split.outputs):
        return None
    found = []
    for index, tensor in enumerate(split.outputs):
        squeeze = only_consumer_of(graph, tensor)
        if squeeze is None or squeeze.op != "Squeeze" or ints_of(squeeze, "axes", 1) != (0,):
            return None
        found.append((index, squeeze.outputs[0]))
    return found


def _of_gather(node: gs.Node) -> list[tuple[int, gs.Tensor]] | None:
    index = constant_of(node.inputs[1]) if node.op == "Gather" and int(node.attrs.get("axis", 0)) == 0 else None
    return None if index is None or index.ndim else [(int(index), node.outputs[0])]


def _rewrite(
    graph: gs.Graph, node: gs.Node, perm: tuple[int, ...], parts: list[tuple[int, gs.Tensor]], target: list[int]
) -> None:
    packed, dtype = node.inputs[0].inputs[0].inputs[0], node.outputs[0].dtype
    rank, size = len(packed.shape), target[-1] * target[-2]
    lead = list(node.inputs[0].shape[:PACKED])
    pieces = [new_variable(graph, f"{node.name}_part", dtype, [*packed.shape[:-1], size]) for _ in parts]
    sizes = new_constant(graph, f"{node.name}_sizes", np.full(len(parts), size, np.int64))
    add_node(graph, "Split", [packed, sizes], pieces, stem=f"{node.name}_split", attrs={"axis": rank - 1})
    order = [axis - (axis > PACKED) for axis in perm[1:]]
    shape = new_constant(graph, f"{node.name}_heads_shape", np.array(target, np.int64))
    for index, output in parts:
        heads = new_variable(graph, f"{node.name}_heads", dtype, [*lead, *target[-2:]])
        last = add_node(graph, "Reshape", [pieces[index], shape], [heads], stem=f"{node.name}_reshape")
        if order != sorted(order):
            last = add_node(graph, "Transpose", [heads], [], stem=f"{node.name}_order", attrs={"perm": order})
        former = producer_of(output)
        take_over_output(last, output)
        assert former is not None
        former.inputs.clear()


PASS = GraphPass("unpack_heads", apply)
