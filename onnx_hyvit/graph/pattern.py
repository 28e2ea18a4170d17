"""A small matcher for operator patterns on ``gs`` tensors, with the reason for a near-miss.

A pattern is a tree (or diamond) of ``Op`` with ``Var``, ``Const`` and ``OneOf`` at its leaves, rooted at the *last*
node. Operands of commutative operators match in either order, constants are seen through Identity and Constant nodes,
and the same ``Op`` or ``Var`` object used twice must match the same node or tensor, which is how inner diamonds are
written. ``find_matches`` never edits the graph.

    x = Var("x")
    sigmoid = Op("Sigmoid", x)
    silu = Op("Mul", x, sigmoid)
    for match in find_matches(graph, silu):
        match.tensor("x"), match.nodes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from .edit import constant_of, is_graph_output

COMMUTATIVE = frozenset({"Add", "Mul", "Max", "Min", "Sum", "And", "Or", "Equal"})


@dataclass(frozen=True, eq=False)
class Var:
    """Any tensor; ``check`` may refuse it. The same object stands for the same tensor everywhere in a pattern."""

    name: str
    check: Callable[[gs.Tensor], bool] | None = None


@dataclass(frozen=True, eq=False)
class Const:
    """A fixed tensor. ``value`` asks for one element close to that number; ``check`` sees the array."""

    name: str | None = None
    value: float | None = None
    check: Callable[[np.ndarray], bool] | None = None
    rtol: float = 1e-3

    def accepts(self, array: np.ndarray) -> bool:
        """Whether ``array`` fits: its size and value when ``value`` is given, and ``check``."""
        if self.value is not None and (
            array.size != 1 or not np.isclose(float(array.reshape(-1)[0]), self.value, rtol=self.rtol, atol=1e-12)
        ):
            return False
        return self.check is None or bool(self.check(array))


@dataclass(frozen=True, eq=False)
class OneOf:
    """The first of several alternatives that matches (all are tried on backtracking)."""

    options: tuple[Pattern, ...]

    def __init__(self, *options: Pattern) -> None:
        object.__setattr__(self, "options", options)


@dataclass(frozen=True, eq=False)
class Op:
    """A node ``op`` whose first inputs match ``inputs``; further inputs are free only with ``more_inputs``.

    Args:
        op: Operator name, or several separated by ``|``.
        inputs: Patterns of the inputs, in order (any order for commutative operators).
        name: Key under which the node is stored in the match.
        attrs: Predicate on the node's attribute dictionary.
        more_inputs: Allow more inputs than patterns (optional inputs).
        output: Index of the output that the parent reads.
    """

    op: str
    inputs: tuple[Pattern, ...]
    name: str | None = None
    attrs: Callable[[Mapping[str, object]], bool] | None = None
    more_inputs: bool = False
    output: int = 0

    def __init__(
        self,
        op: str,
        *inputs: Pattern,
        name: str | None = None,
        attrs: Callable[[Mapping[str, object]], bool] | None = None,
        more_inputs: bool = False,
        output: int = 0,
    ) -> None:
        given = {"op": op, "inputs": inputs, "name": name, "attrs": attrs, "more_inputs": more_inputs, "output": output}
        for key, value in given.items():
            object.__setattr__(self, key, value)


Pattern = Var | Const | OneOf | Op


@dataclass
class Match:
    """A successful match: ``root`` is the last node, ``nodes`` all matched nodes, root first."""

    root: gs.Node
    nodes: list[gs.Node]
    tensors: dict[str, gs.Tensor]
    named_nodes: dict[str, gs.Node]

    def tensor(self, name: str) -> gs.Tensor:
        """The tensor bound to a ``Var`` or ``Const`` of that name."""
        return self.tensors[name]

    def value(self, name: str) -> np.ndarray:
        """The array bound to a ``Const`` of that name."""
        value = constant_of(self.tensors[name])
        assert value is not None, name
        return value

    def node(self, name: str) -> gs.Node:
        """The node bound to an ``Op`` of that name."""
        return self.named_nodes[name]

    @property
    def output(self) -> gs.Tensor:
        """The root's first output."""
        return self.root.outputs[0]


@dataclass
class NearMiss:
    """Why a candidate root did not match: the culprit node and the reason, from the deepest attempt."""

    reason: str
    node: str
    depth: int = 0


@dataclass
class _State:
    """Bindings of one branch of the search; copied on write, so backtracking is free."""

    bound: dict[int, object] = field(default_factory=dict)
    nodes: list[gs.Node] = field(default_factory=list)
    tensors: dict[str, gs.Tensor] = field(default_factory=dict)
    named: dict[str, gs.Node] = field(default_factory=dict)

    def with_tensor(self, pattern: Var | Const, tensor: gs.Tensor) -> _State:
        tensors = {**self.tensors, pattern.name: tensor} if pattern.name else self.tensors
        return _State({**self.bound, id(pattern): tensor}, self.nodes, tensors, self.named)

    def with_node(self, pattern: Op, node: gs.Node) -> _State:
        named = {**self.named, pattern.name: node} if pattern.name else self.named
        return _State({**self.bound, id(pattern): node}, [*self.nodes, node], self.tensors, named)


class _Search:
    """One attempt at one root; remembers the deepest failure."""

    def __init__(self) -> None:
        self.miss = NearMiss("no node of the pattern's last operator", "", -1)

    def fail(self, depth: int, node: gs.Node | None, reason: str) -> None:
        if depth > self.miss.depth:
            self.miss = NearMiss(reason, node.name or node.op if node is not None else "", depth)

    def tensor(self, pattern: Pattern, tensor: gs.Tensor, state: _State, user: gs.Node, depth: int) -> Iterator[_State]:
        if isinstance(pattern, OneOf):
            for option in pattern.options:
                yield from self.tensor(option, tensor, state, user, depth)
        elif isinstance(pattern, Op):
            yield from self._produced(pattern, tensor, state, user, depth)
        elif id(pattern) in state.bound:
            if state.bound[id(pattern)] is tensor:
                yield state
            else:
                self.fail(depth, user, f"input {tensor.name!r} is not the tensor bound to {pattern.name!r}")
        elif isinstance(pattern, Const):
            value = constant_of(tensor)
            if value is None:
                self.fail(depth, user, f"input {tensor.name!r} is not constant")
            elif not pattern.accepts(value):
                self.fail(depth, user, f"constant {tensor.name!r} has an unexpected value or shape")
            else:
                yield state.with_tensor(pattern, tensor)
        elif pattern.check is not None and not pattern.check(tensor):
            self.fail(depth, user, f"tensor {tensor.name!r} was refused for {pattern.name!r}")
        else:
            yield state.with_tensor(pattern, tensor)

    def _produced(self, pattern: Op, tensor: gs.Tensor, state: _State, user: gs.Node, depth: int) -> Iterator[_State]:
        node = tensor.inputs[0] if tensor.inputs else None
        while node is not None and node.op == "Identity" and "Identity" not in pattern.op.split("|"):
            tensor = node.inputs[0]
            node = tensor.inputs[0] if tensor.inputs else None
        if node is None:
            self.fail(depth, user, f"expected {pattern.op}, found an input or constant {tensor.name!r}")
        elif id(pattern) in state.bound:
            if state.bound[id(pattern)] is node:
                yield state
        elif pattern.output >= len(node.outputs) or node.outputs[pattern.output] is not tensor:
            self.fail(depth, node, f"expected output {pattern.output} of {pattern.op}, found {node.op}")
        else:
            yield from self.node(pattern, node, state, depth)

    def node(self, pattern: Op, node: gs.Node, state: _State, depth: int) -> Iterator[_State]:
        if node.op not in pattern.op.split("|") or node.domain not in (None, "", "ai.onnx"):
            self.fail(depth, node, f"expected {pattern.op}, found {node.op}")
            return
        if pattern.attrs is not None and not pattern.attrs(node.attrs):
            self.fail(depth + 1, node, f"attributes of {node.op} do not fit")
            return
        arity = len(pattern.inputs)
        if len(node.inputs) < arity or (len(node.inputs) > arity and not pattern.more_inputs):
            self.fail(depth + 1, node, f"{node.op} has {len(node.inputs)} inputs, expected {arity}")
            return
        orders = [tuple(node.inputs[:arity])]
        if node.op in COMMUTATIVE and arity == 2:
            orders.append((node.inputs[1], node.inputs[0]))
        for order in orders:
            yield from self._inputs(pattern, order, 0, state.with_node(pattern, node), node, depth + 1)

    def _inputs(
        self, pattern: Op, order: tuple[gs.Tensor, ...], index: int, state: _State, node: gs.Node, depth: int
    ) -> Iterator[_State]:
        if index == len(order):
            yield state
            return
        for after in self.tensor(pattern.inputs[index], order[index], state, node, depth):
            yield from self._inputs(pattern, order, index + 1, after, node, depth)


def match_at(
    graph: gs.Graph,
    pattern: Op,
    node: gs.Node,
    check: Callable[[Match], str | None] | None = None,
    closed: bool = True,
) -> Match | NearMiss:
    """Match ``pattern`` with its root at ``node``.

    Args:
        graph: The graph that ``node`` lives in.
        pattern: Pattern whose root operator is the last node.
        node: Candidate root.
        check: Extra condition; returns None to accept, or the reason to refuse.
        closed: Require that only matched nodes read inner tensors and that no inner tensor is a graph output.

    Returns:
        A ``Match``, or the ``NearMiss`` of the deepest attempt.
    """
    search = _Search()
    for state in search.node(pattern, node, _State(), 0):
        match = Match(node, state.nodes, state.tensors, state.named)
        leak = _leak(graph, match) if closed else None
        if leak is not None:
            search.fail(10_000, leak[0], leak[1])
            continue
        reason = check(match) if check is not None else None
        if reason is None:
            return match
        search.fail(20_000, node, reason)
    return search.miss


def _leak(graph: gs.Graph, match: Match) -> tuple[gs.Node, str] | None:
    inside = {id(node) for node in match.nodes}
    for node in match.nodes[1:]:
        for tensor in node.outputs:
            if is_graph_output(graph, tensor):
                return node, f"inner tensor {tensor.name!r} is a graph output"
            for consumer in tensor.outputs:
                if id(consumer) not in inside and consumer.op != "Identity":
                    return consumer, f"inner tensor {tensor.name!r} is also read by {consumer.op}"
    return None


def find_matches(
    graph: gs.Graph,
    pattern: Op,
    check: Callable[[Match], str | None] | None = None,
    closed: bool = True,
    near_misses: list[NearMiss] | None = None,
    near_depth: int = 2,
) -> Iterator[Match]:
    """All matches of ``pattern``, each node used as root once, in graph order.

    Args:
        graph: Graph to search; it may be edited between two matches.
        pattern: Pattern rooted at its last node.
        check: Extra condition, see ``match_at``.
        closed: See ``match_at``.
        near_misses: Filled with failures that got at least ``near_depth`` levels deep.
        near_depth: How deep an attempt must get to count as a near-miss.
    """
    ops = set(pattern.op.split("|"))
    for node in [node for node in graph.nodes if node.op in ops]:
        if not node.outputs:
            continue
        found = match_at(graph, pattern, node, check, closed)
        if isinstance(found, Match):
            yield found
        elif near_misses is not None and found.depth >= near_depth:
            near_misses.append(found)
