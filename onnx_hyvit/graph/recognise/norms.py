"""Normalizations, as operators or spelled out."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_graphsurgeon as gs

from ..edit import constant_of, dim_of, ints_of, only_consumer_of, producer_of, rank_of
from ..pattern import Const, Match, NearMiss, OneOf, Op, Pattern, Var, find_matches
from .layer_norm import iter_layer_norms
from .results import Norm

STANDARD = (None, "", "ai.onnx")


def _nodes_of(graph: gs.Graph, op: str) -> list[gs.Node]:
    return [node for node in graph.nodes if node.op == op and node.domain in STANDARD and node.outputs]


def _ordered(graph: gs.Graph, norms: Iterable[Norm]) -> list[Norm]:
    position = {node.name: index for index, node in enumerate(graph.nodes)}
    return sorted(norms, key=lambda norm: position[norm.nodes[-1]])


def _names(graph: gs.Graph, nodes: Iterable[gs.Node]) -> tuple[str, ...]:
    wanted = {id(node) for node in nodes}
    return tuple(node.name for node in graph.nodes if id(node) in wanted)


def find_layer_norms(graph: gs.Graph, near_misses: list[NearMiss] | None = None) -> list[Norm]:
    """LayerNormalization operators, and decomposed ones over trailing axes, in graph order."""
    found = []
    for node in _nodes_of(graph, "LayerNormalization"):
        axis = int(node.attrs.get("axis", -1))
        rank = rank_of(node.inputs[0])
        first = axis if axis < 0 else None if rank is None else axis - rank
        axes = None if first is None else tuple(range(first, 0))
        eps = float(node.attrs.get("epsilon", 1e-5))
        source, output = node.inputs[0].name, node.outputs[0].name
        bias = len(node.inputs) > 2 and not node.inputs[2].is_empty()
        found.append(Norm("layer_norm", (node.name,), source, output, axes, eps, scale=True, bias=bias))
    found.extend(_decomposed(graph, "layer_norm", lambda axes, rank: axes == tuple(range(-len(axes), 0)), near_misses))
    return _ordered(graph, found)


def _decomposed(
    graph: gs.Graph,
    kind: str,
    accepts: Callable[[tuple[int, ...], int | None], bool],
    near_misses: list[NearMiss] | None = None,
) -> list[Norm]:
    result = []
    for found in iter_layer_norms(graph, near_misses):
        if accepts(found.axes, rank_of(found.source)):
            names = _names(graph, found.match.nodes)
            scale, bias = found.gamma is not None, found.beta is not None
            output = found.output.name
            result.append(Norm(kind, names, found.source.name, output, found.axes, found.eps, scale=scale, bias=bias))
    return result


def find_layer_norms_2d(graph: gs.Graph, near_misses: list[NearMiss] | None = None) -> list[Norm]:
    """Layer normalization over channels of [N, C, ...]: decomposed, or LayerNormalization between two Transposes."""
    found = _decomposed(
        graph, "layer_norm_2d", lambda axes, rank: rank is not None and axes == (1 - rank,), near_misses
    )
    for node in _nodes_of(graph, "LayerNormalization"):
        before, after = producer_of(node.inputs[0]), only_consumer_of(graph, node.outputs[0])
        if node.attrs.get("axis", -1) != -1 or not _channels_last(before, False) or not _channels_last(after, True):
            continue
        assert before is not None and after is not None
        names = _names(graph, [before, node, after])
        eps = float(node.attrs.get("epsilon", 1e-5))
        source, output, bias = before.inputs[0].name, after.outputs[0].name, len(node.inputs) > 2
        found.append(Norm("layer_norm_2d", names, source, output, (1,), eps, scale=True, bias=bias))
    return _ordered(graph, found)


def _channels_last(node: gs.Node | None, back: bool) -> bool:
    if node is None or node.op != "Transpose":
        return False
    perm = list(node.attrs.get("perm", ()))
    rank = len(perm)
    wanted = [0, rank - 1, *range(1, rank - 1)] if back else [0, *range(2, rank), 1]
    return rank >= 3 and perm == wanted


def find_group_norms(graph: gs.Graph, near_misses: list[NearMiss] | None = None) -> list[Norm]:
    """Group normalization: the operator, or Reshape - InstanceNormalization - Reshape [- Mul [- Add]]."""
    found = []
    for node in _nodes_of(graph, "GroupNormalization"):
        source, output = node.inputs[0].name, node.outputs[0].name
        eps, groups = float(node.attrs.get("epsilon", 1e-5)), int(node.attrs["num_groups"])
        found.append(Norm("group_norm", (node.name,), source, output, None, eps, groups, True, True))
    for node in _nodes_of(graph, "InstanceNormalization"):
        norm = _grouped(graph, node)
        if isinstance(norm, Norm):
            found.append(norm)
        elif near_misses is not None and norm is not None:
            near_misses.append(NearMiss(norm, node.name))
    return _ordered(graph, found)


def _grouped(graph: gs.Graph, node: gs.Node) -> Norm | str | None:
    """A GroupNorm around an InstanceNormalization; a reason when it nearly is one, None when it plainly is none."""
    before, after = producer_of(node.inputs[0]), only_consumer_of(graph, node.outputs[0])
    if before is None or before.op != "Reshape":
        return None
    if after is None or after.op != "Reshape":
        return "InstanceNormalization after a Reshape, but no single Reshape follows"
    target = ints_of(before, "shape", 1)
    groups = dim_of(node.inputs[0], 1) or (target[1] if target is not None and len(target) > 1 else None)
    if groups is None or groups <= 0:
        return "the number of groups is not fixed"
    if rank_of(before.inputs[0]) is not None and rank_of(before.inputs[0]) != rank_of(after.outputs[0]):
        return "the second Reshape does not restore the shape"
    nodes, output, affine = [before, node, after], after.outputs[0], [False, False]
    for index, op in enumerate(("Mul", "Add")):
        follower = only_consumer_of(graph, output)
        if follower is None or follower.op != op or not _per_channel(follower, output):
            break
        nodes.append(follower)
        output, affine[index] = follower.outputs[0], True
    plain = not any(affine) and not _trivial(node)
    eps = float(node.attrs.get("epsilon", 1e-5))
    names = _names(graph, nodes)
    source = before.inputs[0].name
    return Norm("group_norm", names, source, output.name, None, eps, groups, affine[0] or plain, affine[1] or plain)


def _per_channel(node: gs.Node, data: gs.Tensor) -> bool:
    other = node.inputs[1] if node.inputs[0] is data else node.inputs[0]
    value = constant_of(other)
    return value is not None and (value.size == 1 or (value.ndim >= 2 and value.shape[-1] == 1))


def _trivial(node: gs.Node) -> bool:
    scale, bias = constant_of(node.inputs[1]), constant_of(node.inputs[2])
    return scale is not None and bias is not None and bool(np.all(scale == 1) and np.all(bias == 0))


def find_instance_norms(graph: gs.Graph) -> list[Norm]:
    """InstanceNormalization operators that are not the middle of a group normalization."""
    grouped = {name for norm in find_group_norms(graph) for name in norm.nodes}
    found = []
    for node in _nodes_of(graph, "InstanceNormalization"):
        if node.name not in grouped:
            source, output = node.inputs[0].name, node.outputs[0].name
            eps = float(node.attrs.get("epsilon", 1e-5))
            found.append(Norm("instance_norm", (node.name,), source, output, None, eps, scale=True, bias=True))
    return found


def find_batch_norms(graph: gs.Graph) -> list[Norm]:
    """BatchNormalization operators (those that folding left, or all of an untouched model)."""
    found = []
    for node in _nodes_of(graph, "BatchNormalization"):
        source, output = node.inputs[0].name, node.outputs[0].name
        eps = float(node.attrs.get("epsilon", 1e-5))
        found.append(Norm("batch_norm", (node.name,), source, output, (1,), eps, scale=True, bias=True))
    return found


def _rms_patterns() -> tuple[Op, ...]:
    roots: list[Op] = []
    for with_scale in (True, False):
        for divides in (True, False):
            x = Var("x", lambda tensor: constant_of(tensor) is None)
            mean = Op(
                "ReduceMean", OneOf(Op("Pow", x, Const(value=2.0)), Op("Mul", x, x)), name="mean", more_inputs=True
            )
            total = Op("Add", mean, Const("eps", check=lambda array: array.size == 1))
            root = OneOf(Op("Sqrt", total), Op("Pow", total, Const(value=0.5)))
            inverse = OneOf(
                Op("Reciprocal", root), Op("Div", Const(value=1.0), root), Op("Pow", total, Const(value=-0.5))
            )
            core = Op("Div", x, root) if divides else Op("Mul", x, inverse)
            roots.append(Op("Mul", core, Const("gamma")) if with_scale else core)
    return tuple(roots)


def _l2_patterns() -> tuple[Op, ...]:
    x = Var("x", lambda tensor: constant_of(tensor) is None)
    square = OneOf(Op("Pow", x, Const(value=2.0)), Op("Mul", x, x))
    norm: Pattern = OneOf(
        Op("ReduceL2", x, name="mean", more_inputs=True),
        Op("Sqrt", Op("ReduceSum", square, name="mean", more_inputs=True)),
        Op("Sqrt", Op("ReduceSumSquare", x, name="mean", more_inputs=True)),
    )
    limited = OneOf(
        norm,
        Op("Clip", norm, Const("eps"), more_inputs=True),
        Op("Clip", norm, attrs=lambda attrs: "min" in attrs),
        Op("Max", norm, Const("eps")),
        Op("Add", norm, Const("eps")),
    )
    return (Op("Div", x, OneOf(limited, Op("Expand", limited, Var("shape")))),)


RMS, L2 = _rms_patterns(), _l2_patterns()


def _spelled(graph: gs.Graph, kind: str, patterns: tuple[Op, ...], near: list[NearMiss] | None) -> list[Norm]:
    found: list[Norm] = []
    taken: set[int] = set()
    for pattern in patterns:
        for match in find_matches(graph, pattern, near_misses=near, near_depth=4):
            if not any(id(node) in taken for node in match.nodes):
                taken.update(id(node) for node in match.nodes)
                found.append(_as_norm(graph, kind, match))
    return found


def _as_norm(graph: gs.Graph, kind: str, match: Match) -> Norm:
    axes = ints_of(match.node("mean"), "axes", 1)
    eps = float(match.value("eps").reshape(-1)[0]) if "eps" in match.tensors else None
    names, scale = _names(graph, match.nodes), "gamma" in match.tensors
    return Norm(kind, names, match.tensor("x").name, match.output.name, axes, eps, scale=scale)


def find_rms_norms(graph: gs.Graph, near_misses: list[NearMiss] | None = None) -> list[Norm]:
    """RMS normalization, ``x / sqrt(mean(x^2) + eps) * gamma``: operator or spelled out."""
    found = []
    for node in _nodes_of(graph, "RMSNormalization"):
        source, output = node.inputs[0].name, node.outputs[0].name
        axis, eps = int(node.attrs.get("axis", -1)), float(node.attrs.get("epsilon", 1e-5))
        axes = tuple(range(axis, 0)) if axis < 0 else None
        found.append(Norm("rms_norm", (node.name,), source, output, axes, eps, scale=True))
    return _ordered(graph, [*found, *_spelled(graph, "rms_norm", RMS, near_misses)])


def find_l2_norms(graph: gs.Graph, near_misses: list[NearMiss] | None = None) -> list[Norm]:
    """L2 normalization, ``x / max(||x||, eps)``: LpNormalization or spelled out."""
    found = []
    for node in _nodes_of(graph, "LpNormalization"):
        if int(node.attrs.get("p", 2)) == 2:
            axes = (int(node.attrs.get("axis", -1)),)
            found.append(Norm("l2_norm", (node.name,), node.inputs[0].name, node.outputs[0].name, axes, 0.0))
    return _ordered(graph, [*found, *_spelled(graph, "l2_norm", L2, near_misses)])


def find_norms(graph: gs.Graph, near_misses: list[NearMiss] | None = None) -> list[Norm]:
    """All normalizations, each once: a LayerNorm2d made of Transposes counts as that, not as a LayerNorm too."""
    over_channels = find_layer_norms_2d(graph)
    taken = {name for norm in over_channels for name in norm.nodes}
    others = [
        *find_layer_norms(graph, near_misses),
        *find_group_norms(graph, near_misses),
        *find_instance_norms(graph),
        *find_rms_norms(graph),
        *find_l2_norms(graph),
        *find_batch_norms(graph),
    ]
    return _ordered(graph, [*over_channels, *(norm for norm in others if not taken.intersection(norm.nodes))])
