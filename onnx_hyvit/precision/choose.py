"""Which units had better be float: the most divergence taken away for the least time.

One unit after the other (or two neighbours at once) goes back to float: the one that takes away the largest share of
the predicted divergence for its share of time, as long as the budget lasts. The steps are a Pareto front of divergence
and time, as far as greed finds it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from ..costs import FLOAT_BYTES, Problem
from .effects import Effects

LEAST_SHARE = 0.005  # of the divergence: smaller steps are noise
LEAST_US = 1e-3
Allowed = Callable[[float, float], bool]


@dataclass(frozen=True)
class Budget:
    """What may be spent.

    Args:
        share: Of the plan's predicted time, 0 to 1; at 0 steps that cost nothing are taken, below 0 none.
        rate: A step must take away at least this many times the share of divergence that it costs of the time.
        least: It must take away this much divergence for the whole time, and for a share of it that share of it:
            where outputs hardly move, nothing is worth time.
        most: What may be spent instead of ``share`` while the divergence is above ``sound``.
        sound: Predicted divergence below which a model is sound.
        limit: Divergence that must be reached, whatever it costs; None asks for nothing.
        layers: Whether layers (units with weights) may become float while no limit asks for it.
        bytes: What a share of the weights' bytes counts beside the same share of time; a weight takes three more in
            float.
    """

    share: float
    rate: float
    least: float = 0.0
    most: float = 0.0
    sound: float = float("inf")
    limit: float | None = None
    layers: bool = True
    bytes: float = 0.0


@dataclass(frozen=True)
class Step:
    """One step towards float.

    Args:
        nodes: Names of the nodes that became float.
        cost_us: Microseconds that it costs, negative where it gains.
        divergence: Predicted divergence after it.
    """

    nodes: tuple[str, ...]
    cost_us: float
    divergence: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for reports."""
        return {"nodes": list(self.nodes), "cost_us": round(self.cost_us, 2), "divergence": self.divergence}


@dataclass(frozen=True)
class Front:
    """The steps from the plan towards float.

    Args:
        divergence: Predicted divergence of the plan.
        int8_us: Its predicted microseconds.
        steps: The steps, in the order in which they were taken.
    """

    divergence: float
    int8_us: float
    steps: tuple[Step, ...]

    def float_nodes(self) -> dict[str, str]:
        """Nodes that are float after all steps, each with the reason."""
        found: dict[str, str] = {}
        before = self.divergence
        for step in self.steps:
            saved, before = (before - step.divergence) / self.divergence, step.divergence
            reason = f"float here takes away {saved:.1%} of the predicted divergence for {step.cost_us:.3g} us"
            found |= dict.fromkeys(step.nodes, reason)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for reports."""
        return {
            "predicted_divergence": self.divergence,
            "predicted_int8_us": round(self.int8_us, 1),
            "steps": [step.to_dict() for step in self.steps],
        }


def find_front(
    graph: gs.Graph,
    problem: Problem,
    effects: Effects,
    budget: Budget,
    layers_cost: float | None = None,
    carried: Collection[str] = (),
) -> Front:
    """Take units back to float while ``budget`` allows it.

    Args:
        graph: The graph that ``problem`` was posed for.
        problem: Units and their costs under the plan.
        effects: Effects of the plan's roundings.
        budget: What may be spent, and what must be reached.
        layers_cost: Share of its float time that a layer loses at least when it leaves int8; for costs that were
            measured on another kind of processor. None trusts them.
        carried: Names of nodes that move codes: what they read stays rounded as long as an int8 node behind them is.

    Returns:
        The steps taken.
    """
    whole = problem.cost(frozenset(at for at, unit in enumerate(problem.units) if unit.is_free))
    per_weight = budget.bytes * FLOAT_BYTES * whole / max(1, sum(unit.weights for unit in problem.units))
    state = _State(graph, problem, effects, layers_cost, frozenset(carried), per_weight)
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
        members, saved, price = best
        cost = price - state.bytes_us(members)
        state.take(members)
        spent, total = spent + max(price, 0.0) / whole, max(0.0, total - saved)
        names = tuple(node.name for at in sorted(members) for node in problem.units[at].nodes)
        front.append(Step(names, cost, total))
    return Front(start, whole, tuple(front))


class _State:
    """Which units are int8, and what that costs and does."""

    def __init__(
        self,
        graph: gs.Graph,
        problem: Problem,
        effects: Effects,
        layers_cost: float | None,
        carried: frozenset[str],
        per_weight: float = 0.0,
    ) -> None:
        self._per_weight = per_weight
        self.int8 = frozenset(at for at, unit in enumerate(problem.units) if unit.is_free)
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
        self._known: dict[frozenset[int], tuple[float, float]] = {}

    def tensors(self) -> list[str]:
        """Every tensor that is rounded."""
        return list(self._terms)

    def divergence(self, tensors: Collection[str], int8: frozenset[int]) -> float:
        """Predicted divergence of the roundings of ``tensors`` when the units ``int8`` are int8."""
        return self._effects.divergence(
            [term for term, keepers in self._terms[name] if keepers & int8] for name in tensors
        )

    def take(self, members: frozenset[int]) -> None:
        """Make ``members`` float."""
        self.int8 -= members
        changed = set(members).union(*(self._problem.near(at) for at in members))
        changed.update(at for member in members for name in self._touched[member] for at in self._sharers[name])
        self._known = {units: value for units, value in self._known.items() if not units & changed}

    def best(self, allowed: Allowed, layers: bool) -> tuple[frozenset[int], float, float] | None:
        """The unit or pair of neighbours that saves most for its price: (units, divergence saved, price).

        Args:
            allowed: Whether a step with this saving and cost may be taken.
            layers: Whether layers may be among the units.
        """
        found = None
        for members in self._candidates(layers):
            saved, cost = self._gain(members)
            if saved <= 0 or not allowed(saved, cost):
                continue
            rate = saved / max(cost, LEAST_US)
            if found is None or rate > found[0]:
                found = (rate, members, saved, cost)
        return None if found is None else found[1:]

    def _candidates(self, layers: bool) -> Iterator[frozenset[int]]:
        free = self.int8 if layers else self.int8 - self._layers
        for at in sorted(free):
            yield frozenset((at,))
        for at in sorted(free):
            for other in sorted(self._problem.near(at) & free):
                if other > at:
                    yield frozenset((at, other))

    def _gain(self, members: frozenset[int]) -> tuple[float, float]:
        """Divergence that ``members`` take away when they leave int8, and what that costs, in microseconds."""
        if members not in self._known:
            touched = sorted(set().union(*(self._touched[at] for at in members)))
            saved = self.divergence(touched, self.int8) - self.divergence(touched, self.int8 - members)
            self._known[members] = saved, self._cost(members)
        return self._known[members]

    def _cost(self, members: frozenset[int]) -> float:
        cost = self._problem.change(self.int8, members)
        if self._layers_cost is not None:
            layers = sum(self._problem.units[at].float_us for at in members & self._layers)
            cost = max(cost, self._layers_cost * layers)
        return cost + self.bytes_us(members)

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
