"""Write decomposed softmax as one Softmax node.

Before
    e = exp(x - m); e / sum(e)                              m any tensor that is constant along the summed axes
    exp(x - (log(sum(exp(x - m))) + m))                     log-sum-exp form
    exp(x - ReduceLogSumExp(x))
    Reshape(Softmax(Flatten(x)), Shape(x))                  opset < 13, as the version converter writes it
After
    Softmax(x)                                              one summed axis
    Reshape(Softmax(Reshape(x)))                            several trailing axes, joined
Conditions
    1. the sum keeps its axes and runs over trailing axes; several axes must have known sizes;
    2. m has size 1 along the summed axes (ReduceMax with kept axes), which cancels exactly;
    3. nobody else reads an inner tensor that depends on the exponentials;
    4. flattened form: the last axis stays whole and the shape of x is restored.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.edit import (
    add_node,
    constant_of,
    dim_of,
    ints_of,
    is_graph_output,
    new_constant,
    new_variable,
    only_consumer_of,
    producer_of,
    rank_of,
    static_shape,
    take_over_output,
)
from ..graph.io import Model
from ..graph.pattern import Match, NearMiss, OneOf, Op, Var, find_matches
from .infrastructure import GraphPass


def _patterns() -> tuple[Op, ...]:
    x, m = Var("x", lambda tensor: constant_of(tensor) is None), Var("m")
    shifted = OneOf(Op("Exp", Op("Sub", x, m)), Op("Exp", x))
    ratio = Op("Div", shifted, Op("ReduceSum", shifted, name="sum", more_inputs=True))
    total = Op("ReduceSum", Op("Exp", Op("Sub", x, m)), name="sum", more_inputs=True)
    stable = Op("Exp", Op("Sub", x, Op("Add", Op("Log", total), m)))
    plain = Op("Exp", Op("Sub", x, Op("ReduceLogSumExp", x, name="sum", more_inputs=True)))
    return ratio, stable, plain


PATTERNS = _patterns()


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Rewrite every decomposed softmax over trailing axes."""
    graph = model.graph
    count = sum(_unwrap(graph, node) for node in list(graph.nodes) if node.op == "Softmax")
    for pattern in PATTERNS:
        matches = find_matches(graph, pattern, _check, closed=False, near_misses=near_misses, near_depth=3)
        for match in list(matches):
            if _closed(graph, match):
                _rewrite(graph, match)
                count += 1
    return count


def _unwrap(graph: gs.Graph, node: gs.Node) -> int:
    """``Reshape(Softmax(rows of x))`` that restores the shape of x."""
    before, after = producer_of(node.inputs[0]), only_consumer_of(graph, node.outputs[0])
    if before is None or after is None or after.op != "Reshape" or before.op not in ("Flatten", "Reshape"):
        return 0
    x = before.inputs[0]
    rank, flat = rank_of(x), rank_of(node.inputs[0])
    if rank is None or rank < 2 or flat != 2 or node.attrs.get("axis", -1) not in (-1, 1):
        return 0
    if before.op == "Flatten":
        whole = before.attrs.get("axis", 1) in (rank - 1, -1)
    else:
        whole = dim_of(x, -1) is not None and dim_of(x, -1) == dim_of(node.inputs[0], -1)
    if not whole or not _restores(after, x):
        return 0
    result = new_variable(graph, f"{node.name}_softmax")
    take_over_output(add_node(graph, "Softmax", [x], [result], stem=node.name, attrs={"axis": -1}), after.outputs[0])
    return 1


def _restores(reshape: gs.Node, x: gs.Tensor) -> bool:
    shape = producer_of(reshape.inputs[1])
    if shape is not None and shape.op == "Shape" and not shape.attrs:
        return shape.inputs[0] is x
    target, stated = ints_of(reshape, "shape", 1), static_shape(x)
    if target is None or len(target) != rank_of(x):
        return False
    if stated is not None:
        return list(target) == list(stated)
    known = [dim_of(x, axis) for axis in range(len(target))]
    return list(target).count(-1) == 1 and all(want in (-1, have) for want, have in zip(target, known, strict=True))


def _axes(match: Match) -> tuple[int, ...] | None:
    node, rank = match.node("sum"), rank_of(match.tensor("x"))
    axes = ints_of(node, "axes", 1)
    if not axes or rank is None or not node.attrs.get("keepdims", 1):
        return None
    return tuple(sorted(axis - rank if axis >= 0 else axis for axis in axes))


def _check(match: Match) -> str | None:
    axes = _axes(match)
    if axes is None or axes != tuple(range(-len(axes), 0)):
        return "the sum of exponentials does not run over known trailing axes"
    if len(axes) > 1 and any(dim_of(match.tensor("x"), axis) is None for axis in axes):
        return "the sizes of the summed axes are unknown"
    if "m" in match.tensors:
        shift = match.tensor("m")
        rank = rank_of(shift)
        if rank is None or any(-axis <= rank and dim_of(shift, axis) != 1 for axis in axes):
            return f"the shift {shift.name!r} is not constant along the summed axes"
    return None


def _closed(graph: gs.Graph, match: Match) -> bool:
    inside = {id(node) for node in match.nodes}
    for node in match.nodes[1:]:
        for tensor in node.outputs:
            if is_graph_output(graph, tensor) or any(id(user) not in inside for user in tensor.outputs):
                return False
    return True


def _rewrite(graph: gs.Graph, match: Match) -> None:
    axes, x, stem = _axes(match), match.tensor("x"), match.root.name
    assert axes is not None
    result = new_variable(graph, f"{stem}_softmax")
    if len(axes) == 1:
        take_over_output(add_node(graph, "Softmax", [x], [result], stem=stem, attrs={"axis": -1}), match.output)
        return
    leading = [0] * (len(x.shape) - len(axes))
    sizes = [dim_of(x, axis) or 0 for axis in axes]
    joined = new_constant(graph, f"{stem}_joined", np.array([*leading, int(np.prod(sizes))], np.int64))
    apart = new_constant(graph, f"{stem}_apart", np.array([*leading, *sizes], np.int64))
    shape = [*x.shape[: len(leading)], int(np.prod(sizes))]
    flat = new_variable(graph, f"{stem}_flat", dtype=x.dtype, shape=shape)
    add_node(graph, "Reshape", [x, joined], [flat], stem=f"{stem}_join")
    soft = new_variable(graph, f"{stem}_soft", dtype=x.dtype, shape=shape)
    add_node(graph, "Softmax", [flat], [soft], stem=stem, attrs={"axis": -1})
    take_over_output(add_node(graph, "Reshape", [soft, apart], [result], stem=f"{stem}_split"), match.output)


PASS = GraphPass("fuse_softmax", apply)
