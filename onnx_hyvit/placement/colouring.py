"""Colour each node int8, carried, paired or float: weighted nodes first, then glue and movement beside them.

Order matters: one sweep forwards lets int8 spread from weighted nodes through glue and movement, one sweep backwards
lets movement in front of int8 nodes work on codes, and last the outputs that only float nodes read are released.

*Paired* nodes are those of mode full without an int8 kernel: what they read and write is quantized, and they compute in
float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.edit import constant_of, has_subgraph, is_graph_output, names_used_by_subgraphs, scalar_of
from ..targets import OpRule, Target
from .residual import refuse_addition
from .weighted import DEFAULT_DOMAINS, Weighted, inspect_weighted, is_quantizable

INT8, CARRIED, PAIRED, FLOAT = "int8", "carried", "paired", "float"
ALL_OPERANDS = frozenset({"Add", "Sub", "Mul", "Div", "Concat", "MatMul"})
CHEAP_SHARE = 0.25
CLAMPS = frozenset({"Relu", "Clip"})
BETWEEN_PAIRS = "computed in float between Q/DQ pairs (mode full)"


@dataclass
class Colouring:
    """Colours of the nodes of one graph while they are decided, and what was found on the way."""

    graph: gs.Graph
    shapes: Mapping[str, tuple[int, ...]]
    target: Target
    full: bool = False
    colours: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    weighted: dict[str, Weighted] = field(default_factory=dict)
    bias_adds: dict[str, gs.Node] = field(default_factory=dict)
    absorbed: dict[str, str] = field(default_factory=dict)
    tails: dict[str, gs.Node] = field(default_factory=dict)
    float_outputs: set[str] = field(default_factory=set)
    outer_names: set[str] = field(default_factory=set)

    def of(self, node: gs.Node) -> str:
        """Colour of ``node``; nodes inside If, Loop and Scan bodies are float."""
        return self.colours.get(node.name, FLOAT)

    def is_int8(self, node: gs.Node) -> bool:
        """Whether ``node`` reads and writes codes: int8, carried or paired."""
        return self.of(node) != FLOAT

    def made_in_int8(self, tensor: gs.Tensor) -> bool:
        """Whether the node that writes ``tensor`` writes codes."""
        return bool(tensor.inputs) and self.is_int8(tensor.inputs[0])

    def unit_output(self, node: gs.Node) -> gs.Tensor:
        """Output of ``node`` with what it absorbed: the tensor that is quantized."""
        return self.tails.get(node.name, node).outputs[0]

    def quantized_inputs(self, node: gs.Node) -> list[gs.Tensor]:
        """Activations that ``node`` would read as codes."""
        operands = node.inputs if node.op in ALL_OPERANDS else node.inputs[:1]
        return [tensor for tensor in operands if tensor.name and constant_of(tensor) is None]

    def reads_codes(self, node: gs.Node, tensor: gs.Tensor) -> bool:
        """Whether ``node`` works on codes and reads ``tensor`` as codes (not, say, as a shape)."""
        return self.is_int8(node) and any(operand is tensor for operand in self.quantized_inputs(node))

    def size_of(self, tensor: gs.Tensor) -> int | None:
        """Number of elements of ``tensor``, None when unknown."""
        shape = self.shapes.get(tensor.name)
        return None if shape is None else int(np.prod(shape, dtype=np.int64))

    def only_consumer(self, tensor: gs.Tensor) -> gs.Node | None:
        """The one node that reads ``tensor``, when nothing else does: no output, no body of an If or Loop."""
        if len(tensor.outputs) != 1 or tensor.name in self.outer_names or is_graph_output(self.graph, tensor):
            return None
        return tensor.outputs[0]

    def absorb(self, into: gs.Node, node: gs.Node) -> None:
        """Make ``node`` part of the int8 node ``into``."""
        self.colours[node.name] = INT8
        self.absorbed[node.name] = into.name
        self.tails[into.name] = node


def colour_nodes(
    graph: gs.Graph,
    shapes: Mapping[str, tuple[int, ...]],
    target: Target,
    residual: str,
    float_names: Mapping[str, str],
    int8_names: frozenset[str],
    full: bool = False,
) -> Colouring:
    """Colour every node of ``graph`` (see the module); see ``make_plan`` for the arguments."""
    state = Colouring(graph, shapes, target, full, outer_names=names_used_by_subgraphs(graph))
    for node in graph.nodes:
        if node.name in state.colours:
            continue
        reason = float_names.get(node.name) or _refuse(state, node, residual, int8_names)
        state.colours[node.name] = FLOAT if reason else _colour_of(node, target)
        if reason:
            state.reasons[node.name] = reason
        elif state.of(node) == PAIRED:
            state.reasons[node.name] = BETWEEN_PAIRS
        elif state.of(node) == INT8:
            _absorb_followers(state, node, float_names)
    _carry_backwards(state, float_names)
    _release_outputs(state)
    return state


def _colour_of(node: gs.Node, target: Target) -> str:
    """Colour of a node that nothing keeps float."""
    if node.op in target.carried:
        return CARRIED
    return INT8 if node.op in target.int8 or node.op in target.glue else PAIRED


def _refuse(state: Colouring, node: gs.Node, residual: str, int8_names: frozenset[str]) -> str | None:
    """Reason why ``node`` is float, given the colours of the nodes before it; None makes it int8 or carried."""
    target = state.target
    if node.domain not in DEFAULT_DOMAINS or has_subgraph(node):
        return "not a plain ONNX operator"
    if is_quantizable(node):
        found = inspect_weighted(node, target, state.made_in_int8(node.inputs[0]))
        if isinstance(found, str):
            return found
        state.weighted[node.name] = found
        return None
    if state.full and node.op in target.full and node.op not in target.carried:
        return _refuse_full(state, node, target.full[node.op])
    if node.op in target.glue:
        return _refuse_glue(state, node, target.glue[node.op], residual, node.name in int8_names)
    if node.op in target.carried:
        return _refuse_carried(state, node, target.carried[node.op])
    if node.op == "MatMul":
        return "both operands are activations; full int8 attention is slower"
    return target.float.get(node.op, f"{node.op} has no int8 kernel on {target.name}")


def _refuse_full(state: Colouring, node: gs.Node, rule: OpRule) -> str | None:
    """Reason why an operator that mode full quantizes stays float."""
    if node.op not in state.target.int8 and is_graph_output(state.graph, node.outputs[0]):
        return "it writes an output of the model"
    return rule.refuses_attributes(node.attrs) or _refuse_operands(state, node, state.quantized_inputs(node))


def _refuse_glue(state: Colouring, node: gs.Node, rule: OpRule, residual: str, wanted: bool) -> str | None:
    operands = state.quantized_inputs(node)
    reason = rule.refuses_attributes(node.attrs) or _refuse_operands(state, node, operands)
    if reason is not None or wanted:
        return reason
    joins_for_layers = node.op == "Concat" and any(map(state.made_in_int8, operands)) and _read_by_layers(state, node)
    if not joins_for_layers and not _mostly_int8(state, operands):
        return "its operands come from float nodes"
    return refuse_addition(state, node, operands, residual) if node.op == "Add" else None


def _refuse_operands(state: Colouring, node: gs.Node, operands: list[gs.Tensor]) -> str | None:
    if not operands:
        return "it reads constants only"
    if len(node.outputs) != 1:
        return "it has several outputs"
    constants = [constant_of(tensor) for tensor in node.inputs] if node.op in ALL_OPERANDS else []
    values = [value for value in constants if value is not None]
    dtypes = {value.dtype for value in values} | {tensor.dtype for tensor in operands if tensor.dtype is not None}
    if dtypes - {np.dtype(np.float32)}:
        return "it does not work on float32"
    return None if all(np.isfinite(value).all() for value in values) else "its constant operand is not finite"


def _mostly_int8(state: Colouring, operands: list[gs.Tensor]) -> bool:
    """Whether quantizing the operands made by float nodes costs little against those that are codes already."""
    outside = [tensor for tensor in operands if not state.made_in_int8(tensor)]
    if not outside or len(outside) == len(operands):
        return not outside
    sizes = {tensor.name: state.size_of(tensor) for tensor in operands}
    if any(size is None for size in sizes.values()):
        return False
    return sum(sizes[tensor.name] or 0 for tensor in outside) <= CHEAP_SHARE * sum(size or 0 for size in sizes.values())


def _read_by_layers(state: Colouring, node: gs.Node) -> bool:
    """Whether only int8 layers read the output of ``node``, so that it is quantized in any case."""
    output = node.outputs[0]
    if output.name in state.outer_names or is_graph_output(state.graph, output):
        return False
    return bool(output.outputs) and all(
        is_quantizable(user) and isinstance(inspect_weighted(user, state.target, True), Weighted)
        for user in output.outputs
    )


def _refuse_carried(state: Colouring, node: gs.Node, rule: OpRule) -> str | None:
    reason = rule.refuses_attributes(node.attrs)
    if reason is not None:
        return reason
    source = state.quantized_inputs(node)
    if not source or not state.made_in_int8(source[0]):
        return "it moves values of a float node"
    return "its second output is used" if node.op == "MaxPool" and len(node.outputs) > 1 else None


def _absorb_followers(state: Colouring, node: gs.Node, float_names: Mapping[str, str]) -> None:
    """Absorb the bias Add behind a MatMul, then one Relu or Clip, when nothing else reads the tensor between."""
    unit = state.weighted.get(node.name)
    if unit is not None and node.op == "MatMul" and unit.axis is not None:
        add = state.only_consumer(node.outputs[0])
        if add is not None and add.op == "Add" and add.name not in float_names and _adds_bias(add, unit):
            state.bias_adds[node.name] = add
            state.absorb(node, add)
    after = state.only_consumer(state.unit_output(node))
    if after is not None and after.name not in float_names and _limits_known(after):
        state.absorb(node, after)


def _adds_bias(add: gs.Node, unit: Weighted) -> bool:
    others = [tensor for tensor in add.inputs if tensor is not unit.node.outputs[0]]
    value = constant_of(others[0]) if len(others) == 1 else None
    weight = constant_of(unit.weight)
    if value is None or weight is None or value.dtype != np.float32 or not np.isfinite(value).all():
        return False
    return value.ndim >= 1 and value.size == value.shape[-1] == weight.shape[-1]


def _limits_known(node: gs.Node) -> bool:
    if node.domain not in DEFAULT_DOMAINS or node.op not in CLAMPS:
        return False
    return all(scalar_of(tensor) is not None for tensor in node.inputs[1:] if tensor.name)


def _carry_backwards(state: Colouring, float_names: Mapping[str, str]) -> None:
    """Let movement in front of int8 nodes work on codes: quantize before it, not after."""
    for node in reversed(state.graph.nodes):
        if state.is_int8(node) or node.op not in state.target.carried or node.name in float_names:
            continue
        if node.op == "MaxPool" and state.target.shield_float:
            continue  # fast on codes only behind an int8 convolution, see ``shield_float``
        if node.domain not in DEFAULT_DOMAINS or state.target.carried[node.op].refuses_attributes(node.attrs):
            continue
        source, output = state.quantized_inputs(node)[:1], node.outputs[0]
        if not source or len(node.outputs) != 1 or not _is_float32(state, source[0]):
            continue
        size = state.size_of(output)
        if size is None or size != state.size_of(source[0]) or is_graph_output(state.graph, output):
            continue
        read_as_codes = output.outputs and all(state.reads_codes(user, output) for user in output.outputs)
        if read_as_codes and output.name not in state.outer_names:
            state.colours[node.name] = CARRIED
            del state.reasons[node.name]


def _is_float32(state: Colouring, tensor: gs.Tensor) -> bool:
    return tensor.dtype is None or np.dtype(tensor.dtype) == np.float32


def _release_outputs(state: Colouring) -> None:
    """Drop the Q of a Gemm or MatMul whose values end, moved or not, in float nodes only: its kernel writes float."""
    if state.target.matmul_output != "float":
        return
    for node in state.graph.nodes:
        if node.name not in state.weighted or node.op not in ("Gemm", "MatMul"):
            continue
        output = state.unit_output(node)
        if output.inputs[0].op in CLAMPS or any(user.op in CLAMPS for user in output.outputs):
            continue  # the optimiser looks for Q behind Relu and Clip, and without it runs the layer in float
        moved = _movement_behind(state, output)
        ends = [user for tensor in [output, *(move.outputs[0] for move in moved)] for user in tensor.outputs]
        if any(state.of(user) in (INT8, PAIRED) for user in ends):
            continue
        state.float_outputs.add(output.name)
        for move in moved:
            state.colours[move.name] = FLOAT
            state.reasons[move.name] = "it moves values that only float nodes read"


def _movement_behind(state: Colouring, tensor: gs.Tensor) -> list[gs.Node]:
    """Carried nodes that read ``tensor``, directly or through each other."""
    found: list[gs.Node] = []
    stack = [tensor]
    while stack:
        for user in stack.pop().outputs:
            if state.of(user) == CARRIED and all(user is not node for node in found):
                found.append(user)
                stack.append(user.outputs[0])
    return found
