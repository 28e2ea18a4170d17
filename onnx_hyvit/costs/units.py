"""Units that are int8 or float as a whole, and what each costs either way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import onnx_graphsurgeon as gs

from ..graph.edit import constant_of, scalar_of
from ..placement import Plan
from .kernels import MOVES, Shape, Work, convolution_kind, kernel_name, transpose_name, work_of
from .profile import Profile

FREE_MOVES = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
CHANNELS_LAST = ([0, 2, 3, 1], [0, 3, 1, 2])


@dataclass(frozen=True)
class Unit:
    """Nodes that share one choice: a layer with what it absorbed, or a SiLU.

    Args:
        nodes: Its nodes; the first names it.
        is_free: Whether the plan lets it be int8; if not, it is float.
        float_us: Microseconds in float.
        int8_us: Microseconds on codes; 0 where it is not free.
        weights: Elements of its weight.
    """

    nodes: tuple[gs.Node, ...]
    is_free: bool
    float_us: float = 0.0
    int8_us: float = 0.0
    weights: int = 0

    @property
    def name(self) -> str:
        """Name of the unit in messages."""
        return str(self.nodes[0].name)

    @property
    def is_silu(self) -> bool:
        """Whether it is ``x * sigmoid(c x)``, one kernel in float and two in int8."""
        return len(self.nodes) >= 2 and self.nodes[0].op == "Sigmoid" and self.nodes[1].op == "Mul"


def find_units(
    graph: gs.Graph, plan: Plan, shapes: Mapping[str, Shape], profile: Profile, all_free: bool = False
) -> list[Unit]:
    """The units of a graph in order.

    A unit whose cost the profile does not know is not free; with ``all_free`` it is, at no cost on either side.
    """
    on_codes = {*plan.int8_nodes, *plan.carried_nodes}
    followers: dict[str, list[gs.Node]] = {}
    for node in graph.nodes:
        if node.name in plan.absorbed:
            followers.setdefault(plan.absorbed[node.name], []).append(node)
    units, taken = [], set(plan.absorbed)
    for node in graph.nodes:
        if node.name in taken:
            continue
        gate = _gate(node)
        same_side = len({member.name in on_codes for member in gate}) == 1
        if gate and same_side and not any(member.name in taken for member in gate):
            nodes: tuple[gs.Node, ...] = (*gate, *followers.get(gate[1].name, ()))
        else:
            nodes = (node, *followers.get(node.name, ()))
        taken.update(member.name for member in nodes)
        units.append(_with_costs(nodes, node.name in on_codes, plan, shapes, profile, all_free))
    return units


def _gate(node: gs.Node) -> tuple[gs.Node, ...]:
    """Sigmoid, Mul and perhaps the product by a number of ``x * sigmoid(c x)``, when ``node`` is the first to run."""
    if node.op == "Sigmoid":
        return _gated(node, node.inputs[0])
    users = node.outputs[0].outputs if node.op == "Mul" else []
    if len(users) != 1 or users[0].op != "Sigmoid":
        return ()
    factors = [tensor for tensor in node.inputs if scalar_of(tensor) is not None]
    sources = [tensor for tensor in node.inputs if scalar_of(tensor) is None]
    gate = _gated(users[0], sources[0]) if len(factors) == len(sources) == 1 else ()
    return (*gate, node) if gate else ()


def _gated(sigmoid: gs.Node, source: gs.Tensor) -> tuple[gs.Node, ...]:
    """``sigmoid`` and the Mul that multiplies it by ``source``; nothing when something else reads it."""
    users = sigmoid.outputs[0].outputs
    if len(users) != 1 or users[0].op != "Mul":
        return ()
    others = [tensor for tensor in users[0].inputs if tensor is not sigmoid.outputs[0]]
    return (sigmoid, users[0]) if len(others) == 1 and others[0] is source else ()


def _with_costs(
    nodes: tuple[gs.Node, ...],
    is_free: bool,
    plan: Plan,
    shapes: Mapping[str, Shape],
    profile: Profile,
    all_free: bool,
) -> Unit:
    unit = Unit(nodes, is_free)
    if not is_free:
        return unit
    if unit.is_silu:
        work = _work("Silu", nodes[0], shapes)  # the product by a number costs nothing: one kernel, or a scale
        costs = [profile.us(kernel_name("Silu", False), work) if work else None]
        eight = [node_us(node, True, shapes, profile) for node in nodes[:2]]
    else:
        costs = [node_us(nodes[0], False, shapes, profile)]
        eight = [node_us(nodes[0], True, shapes, profile)]
        if nodes[-1].outputs[0].name in plan.activations and (other := convolution_us(nodes[0], shapes, profile)):
            eight = [min(us for us in (*eight, other) if us is not None)]
    weights = prod(weight_shape(nodes[0]) or (0,))
    if any(cost is None for cost in costs + eight):
        return Unit(nodes, all_free, weights=weights)
    return Unit(nodes, True, sum(cost or 0.0 for cost in costs), sum(cost or 0.0 for cost in eight), weights)


def node_us(node: gs.Node, int8: bool, shapes: Mapping[str, Shape], profile: Profile) -> float | None:
    """Microseconds of one node by itself, None when a shape or the kernel is unknown."""
    if node.op in FREE_MOVES:
        return profile.us(kernel_name("Move", int8), Work())
    if int8 and node.op == "Transpose" and _meets_convolution(node):
        return 0.0
    if int8 and node.op == "Transpose":
        before, after = (tuple(shapes.get(tensor.name, ())) for tensor in (node.inputs[0], node.outputs[0]))
        return profile.us(transpose_name(before, after), work_of(node.op, (before,), (after,))) if before else None
    if copies_pixels(node):  # profiles do not know these; their kernels move every value about once
        size = max(elements(node.inputs[0], shapes), elements(node.outputs[0], shapes))
        name = kernel_name("Transpose", True) if int8 else kernel_name("Reorder", False)
        return profile.us(name, Work(0, size, size)) if size else None
    op = "Move" if node.op in MOVES else "Gemm" if node.op == "MatMul" and weight_shape(node) else node.op
    detail = ""
    if op == "Conv":
        weight = weight_shape(node)
        if weight is None:
            return None
        detail = convolution_kind(weight, int(node.attrs.get("group", 1)), int8)
        if pad := _padding_of_channels(node, shapes):
            return _padded_us(node, pad, int8, shapes, profile)
    work = _work(op, node, shapes)
    return None if work is None else profile.us(kernel_name(op, int8, detail), work)


def convolution_us(node: gs.Node, shapes: Mapping[str, Shape], profile: Profile) -> float | None:
    """Microseconds of an int8 Gemm as a 1x1 convolution on channels last, with a Reshape on either side.

    None for any other node, or where a shape or a kernel is unknown.
    """
    weight = weight_shape(node) if node.op == "Gemm" else None
    work = _work("Gemm", node, shapes)
    if weight is None or work is None or node.attrs.get("transA", 0):
        return None
    wide, deep = weight if node.attrs.get("transB", 0) else weight[::-1]
    name = kernel_name("Conv", True, convolution_kind((wide, deep, 1, 1), 1, True))
    own, move = profile.us(name, work), profile.us(kernel_name("Move", True), Work())
    return None if own is None or move is None else own + 2 * move


def faster_as_convolution(graph: gs.Graph, plan: Plan, shapes: Mapping[str, Shape], profile: Profile) -> frozenset[str]:
    """Int8 Gemms of ``plan`` with int8 outputs that had better be 1x1 convolutions; see ``convolution_us``."""
    int8 = set(plan.int8_nodes)
    results = {plan.absorbed.get(node.name, node.name): node.outputs[0] for node in graph.nodes if node.outputs}
    found = set()
    for node in graph.nodes:
        if node.op != "Gemm" or node.name not in int8 or results[node.name].name not in plan.activations:
            continue
        plain, other = node_us(node, True, shapes, profile), convolution_us(node, shapes, profile)
        if plain is not None and other is not None and other < plain:
            found.add(node.name)
    return frozenset(found)


def _padding_of_channels(convolution: gs.Node, shapes: Mapping[str, Shape]) -> gs.Node | None:
    """The Pad that gives a map more channels for ``convolution`` alone, as int8 stems have it."""
    source = convolution.inputs[0]
    pad = source.inputs[0] if source.inputs else None
    if pad is None or pad.op != "Pad" or len(source.outputs) != 1 or int(convolution.attrs.get("group", 1)) != 1:
        return None
    before, after = shapes.get(pad.inputs[0].name, ()), shapes.get(source.name, ())
    same = len(before) == len(after) > 2 and (before[0], *before[2:]) == (after[0], *after[2:])
    return pad if same and before[1] < after[1] else None


def _padded_us(node: gs.Node, pad: gs.Node, int8: bool, shapes: Mapping[str, Shape], profile: Profile) -> float | None:
    """Microseconds of a stem: with its Pad in int8, without the padding in float, which ``unpad_stem`` takes back."""
    weight, output = weight_shape(node), shapes.get(node.outputs[0].name)
    if weight is None or output is None:
        return None
    before, after = shapes[pad.inputs[0].name], shapes[node.inputs[0].name]
    if not int8:
        weight = (weight[0], before[1], *weight[2:])
    work = work_of("Conv", (after if int8 else before,), (output,), weight)
    costs = [profile.us(kernel_name("Conv", int8, convolution_kind(weight, 1, int8)), work)]
    if int8:  # a profile without it is older than this cost
        costs.append(profile.us(kernel_name("Pad", False), work_of("Pad", (before,), (after,))) or 0.0)
    return None if costs[0] is None else sum(cost or 0.0 for cost in costs)


def _meets_convolution(node: gs.Node) -> bool:
    """Whether a transposition to or from channels-last meets an int8 convolution, which wants just that order."""
    if list(node.attrs.get("perm", ())) not in CHANNELS_LAST:
        return False
    return any(near.op == "Conv" for near in (*node.inputs[0].inputs, *node.outputs[0].outputs))


def weight_shape(node: gs.Node) -> Shape | None:
    """Shape of the constant weight of a layer."""
    if node.op not in ("Conv", "Gemm", "MatMul") or len(node.inputs) < 2:
        return None
    weight = constant_of(node.inputs[1])
    return None if weight is None else tuple(weight.shape)


def _work(op: str, node: gs.Node, shapes: Mapping[str, Shape]) -> Work | None:
    weight = weight_shape(node)
    activations = [tensor for tensor in node.inputs if tensor.name and constant_of(tensor) is None]
    if weight is not None:
        activations = activations[:1]
    names = [*(tensor.name for tensor in activations), *(tensor.name for tensor in node.outputs)]
    if not activations or any(name not in shapes for name in names):
        return None
    inputs = tuple(tuple(shapes[tensor.name]) for tensor in activations)
    outputs = tuple(tuple(shapes[tensor.name]) for tensor in node.outputs)
    return work_of(op, inputs, outputs, weight)


def copies_pixels(node: gs.Node) -> bool:
    """Whether it is a MaxPool, or a Resize that copies values: channels last in int8, blocks of them in float."""
    return node.op == "MaxPool" or (node.op == "Resize" and node.attrs.get("mode", "nearest") == "nearest")


def elements(tensor: gs.Tensor, shapes: Mapping[str, Shape]) -> int:
    """Number of elements of ``tensor``, 0 when unknown."""
    shape = shapes.get(tensor.name)
    return 0 if shape is None else prod(shape)
