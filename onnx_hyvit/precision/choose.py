"""Which units had better be float, or have 16-bit activations: the most divergence taken away for the least time.

One unit after the other (or two neighbours at once) goes back to float: the one that takes away the largest share of
the predicted divergence for its share of time, as long as the budget lasts. The steps are a Pareto front of divergence
and time, as far as greed finds it.

Where a target has 16-bit kernels and a limit asks for it, a step may instead give 16-bit activations to the units that
keep one tensor in 8 bits: its maker and its readers. That takes away roundings of activations; those of weights stay.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

import onnx_graphsurgeon as gs

from ..costs import FLOAT_BYTES, Problem
from .effects import Effects
from .front import Budget, Front, Step

LEAST_SHARE = 0.005  # of the divergence: smaller steps are noise
LEAST_US = 1e-3
Allowed = Callable[[float, float], bool]


def find_front(
    graph: gs.Graph,
    problem: Problem,
    effects: Effects,
    budget: Budget,
    layers_cost: float | None = None,
    carried: Collection[str] = (),
    wide_cost: float | None = None,
) -> Front:
    """Take units back to float, or to 16-bit activations, while ``budget`` allows it.

    Args:
        graph: The graph that ``problem`` was posed for.
        problem: Units and their costs under the plan.
        effects: Effects of the plan's roundings.
        budget: What may be spent, and what must be reached.
        layers_cost: Share of its float time that a layer loses at least when it leaves int8; for costs that were
            measured on another kind of processor. None trusts them.
        carried: Names of nodes that move codes: what they read stays rounded as long as an int8 node behind them is.
        wide_cost: What 16-bit activations lose of what int8 saves beside float, 0 to 1; every unit, not only layers, is
            then taken to lose ``layers_cost``. None leaves 16 bits out.

    Returns:
        The steps taken.
    """
    whole = problem.cost(frozenset(at for at, unit in enumerate(problem.units) if unit.is_free))
    per_weight = budget.bytes * FLOAT_BYTES * whole / max(1, sum(unit.weights for unit in problem.units))
    state = _State(graph, problem, effects, layers_cost, frozenset(carried), per_weight, wide_cost)
    start = total = state.divergence(state.tensors(), state.int8)
    front: list[Step] = []
    spent = 0.0

    def is_worth(saved: float, cost: float) -> bool:
        share, paid = saved / start, max(cost, 0.0) / whole
        allowed = max(budget.share, budget.most) if total > budget.sound else budget.share
        pays = share >= budget.rate * paid and saved >= budget.least * paid
        return pays and share >= LEAST_SHARE and spent + paid <= allowed

    while start > 0:
        asked = budget.limit is not None and total > budget.limit
        best = state.best(is_worth, budget.layers)
        if best is None and asked:
            best = state.best(lambda saved, cost: True, True)
        if best is None:
            break
        cost = best.price - (0.0 if best.wide else state.bytes_us(best.members))
        state.take(best.members, best.wide)
        spent, total = spent + max(best.price, 0.0) / whole, max(0.0, total - best.saved)
        names = tuple(node.name for at in sorted(best.members) for node in problem.units[at].nodes)
        front.append(Step(names, cost, total, best.wide))
    return Front(start, whole, tuple(front))


class _Move(NamedTuple):
    """Units that may leave int8, or get 16-bit activations, what that takes away and what it costs."""

    members: frozenset[int]
    saved: float
    price: float
    wide: bool


class _State:
    """Which units are on codes, which of them on 16-bit ones, and what that costs and does."""

    def __init__(
        self,
        graph: gs.Graph,
        problem: Problem,
        effects: Effects,
        layers_cost: float | None,
        carried: frozenset[str],
        per_weight: float = 0.0,
        wide_cost: float | None = None,
    ) -> None:
        self._per_weight, self._wide_cost = per_weight, wide_cost
        self.int8 = frozenset(at for at, unit in enumerate(problem.units) if unit.is_free)
        self.wide: frozenset[int] = frozenset()
        self._problem, self._effects, self._layers_cost = problem, effects, layers_cost
        place = {node.name: at for at, unit in enumerate(problem.units) for node in unit.nodes}
        made_by = {t.name: place.get(t.inputs[0].name, 0) for t in graph.tensors().values() if t.inputs}
        nodes = {node.name: node for node in graph.nodes}
        self._terms: dict[str, list[tuple[int, frozenset[int]]]] = defaultdict(list)  # (term, units that keep it)
        self._touched: dict[int, set[str]] = defaultdict(set)
        for number, rounding in enumerate(effects.roundings):
            readers = _readers_behind(nodes, rounding.reader, carried)
            keepers = {place.get(name, 0) for name in readers}
            if not rounding.is_weight:
                keepers.add(made_by.get(rounding.tensor, 0))
            self._terms[rounding.tensor].append((number, frozenset(keepers)))
            for at in keepers:
                self._touched[at].add(rounding.tensor)
        self._sharers: dict[str, set[int]] = defaultdict(set)
        for at, tensors in self._touched.items():
            for tensor in tensors:
                self._sharers[tensor].add(at)
        weights = {rounding.reader for rounding in effects.roundings if rounding.is_weight}
        self._layers = {place[name] for name in weights if name in place}
        self._weights = {number for number, rounding in enumerate(effects.roundings) if rounding.is_weight}
        self._known: dict[tuple[frozenset[int], bool], tuple[float, float]] = {}

    def tensors(self) -> list[str]:
        """Every tensor that is rounded."""
        return list(self._terms)

    def divergence(self, tensors: Collection[str], int8: frozenset[int], narrow: frozenset[int] | None = None) -> float:
        """Predicted divergence of the roundings of ``tensors``.

        Args:
            tensors: Names of activations and weights.
            int8: Units on codes, whose weights are rounded.
            narrow: Those of them whose activations are rounded to 8 bits, all when None; to 16 bits counts as not at
                all.
        """
        narrow = int8 if narrow is None else narrow
        return self._effects.divergence(
            [term for term, keepers in self._terms[name] if keepers & (int8 if term in self._weights else narrow)]
            for name in tensors
        )

    def take(self, members: frozenset[int], wide: bool = False) -> None:
        """Make ``members`` float, or give them 16-bit activations."""
        self.int8, self.wide = (self.int8, self.wide | members) if wide else (self.int8 - members, self.wide - members)
        changed = set(members).union(*(self._problem.near(at) for at in members))
        changed.update(at for member in members for name in self._touched[member] for at in self._sharers[name])
        self._known = {key: value for key, value in self._known.items() if not key[0] & changed}

    def best(self, allowed: Allowed, layers: bool) -> _Move | None:
        """The step that saves most for its price; of two alike the one to 16 bits.

        Args:
            allowed: Whether a step with this saving and cost may be taken.
            layers: Whether layers may be among the units that become float.
        """
        found, most = None, 0.0
        for members, wide in self._candidates(layers):
            saved, cost = self._gain(members, wide)
            if saved <= 0 or not allowed(saved, cost):
                continue
            rate = saved / max(cost, LEAST_US)
            if found is None or rate > most:
                found, most = _Move(members, saved, cost, wide), rate
        return found

    def _candidates(self, layers: bool) -> Iterator[tuple[frozenset[int], bool]]:
        """Units to give 16 bits (True), the keepers of a tensor; then those to make float, one or two neighbours."""
        if self._wide_cost is not None:
            yield from ((members, True) for members in self._keepers())
        free = self.int8 if layers else self.int8 - self._layers
        for at in sorted(free):
            yield frozenset((at,)), False
        for at in sorted(free):
            for other in sorted(self._problem.near(at) & free):
                if other > at:
                    yield frozenset((at, other)), False

    def _keepers(self) -> list[frozenset[int]]:
        """Units that still keep an activation in 8 bits, for one of its readers or for all."""
        narrow, found = self.int8 - self.wide, set[frozenset[int]]()
        for terms in self._terms.values():
            each = [keepers & narrow for number, keepers in terms if number not in self._weights]
            found.update((*each, frozenset().union(*each)))
        return sorted(found - {frozenset()}, key=sorted)

    def _gain(self, members: frozenset[int], wide: bool) -> tuple[float, float]:
        """Divergence that ``members`` take away when they leave int8 or its 8 bits, and the microseconds it costs."""
        if (members, wide) not in self._known:
            touched = sorted(set().union(*(self._touched[at] for at in members)))
            narrow, left = self.int8 - self.wide, self.int8 if wide else self.int8 - members
            saved = self.divergence(touched, self.int8, narrow) - self.divergence(touched, left, narrow - members)
            self._known[members, wide] = saved, self._cost(members, wide)
        return self._known[members, wide]

    def _cost(self, members: frozenset[int], wide: bool) -> float:
        """What a step costs. A unit with 16 bits is priced as if a share of it were float, its borders, too."""
        if self._wide_cost is None:
            return self._loss(self.int8, members) + self.bytes_us(members)
        narrow = self.int8 - self.wide
        as_wide = self._wide_cost * max(0.0, self._loss(narrow, members & narrow))
        if wide:
            return as_wide
        return (1 - self._wide_cost) * self._loss(self.int8, members) + as_wide + self.bytes_us(members)

    def _loss(self, side: frozenset[int], members: frozenset[int]) -> float:
        """Microseconds lost when ``members`` of the units ``side`` become float."""
        cost = self._problem.change(side, members)
        if self._layers_cost is None:
            return cost
        careful = members & self._layers if self._wide_cost is None else members
        return max(cost, self._layers_cost * sum(self._problem.units[at].float_us for at in careful))

    def bytes_us(self, members: frozenset[int]) -> float:
        """What the bytes of the weights of ``members`` in float are worth, in microseconds."""
        return self._per_weight * sum(self._problem.units[at].weights for at in members)


def _readers_behind(nodes: Mapping[str, gs.Node], reader: str, carried: frozenset[str]) -> set[str]:
    """``reader``, or where it moves codes, the nodes that read what it moves."""
    found: set[str] = set()
    stack, seen = [reader], {reader}
    while stack:
        name = stack.pop()
        if name not in carried or name not in nodes:
            found.add(name)
            continue
        users = {user.name for tensor in nodes[name].outputs for user in tensor.outputs}
        stack.extend(sorted(users - seen))
        seen |= users
    return found
