"""Which int8 nodes are faster in float: the minimum of node and border costs, found exactly as a minimum cut.

Each unit is int8 (source side) or float (sink side). A unit costs its kernels; a tensor between an int8 and a float
unit costs its Q or DQ and the change of data layout. All of it is a sum of terms over one or two units in which being
on the same side is never dearer than the mean of being apart, so a minimum cut is the cheapest choice of all.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_graphsurgeon as gs

from ..graph.edit import is_graph_output
from ..graph.io import Model
from ..placement import Plan
from .borders import Table, border, quantize_us
from .kernels import Shape
from .max_flow import UNCUTTABLE, FlowGraph
from .profile import Profile
from .units import Unit, find_units

SOURCE, SINK = 0, 1
LEAST_SHARE = 0.02  # of a region's int8 time: smaller gains are within the error of a profile, and change nothing
FLOAT_BYTES = 3  # that a weight takes more in float than in int8


@dataclass(frozen=True)
class Region:
    """Connected units that are faster in float together.

    Args:
        nodes: Names of their nodes.
        int8_us: Microseconds in int8, with the borders to the rest.
        gain_us: Microseconds that float saves, above 0.
    """

    nodes: tuple[str, ...]
    int8_us: float
    gain_us: float

    def reason(self) -> str:
        """Why its nodes stay float, for the plan."""
        together = f", {len(self.nodes)} nodes together" if len(self.nodes) > 1 else ""
        return f"int8 here costs {self.gain_us:.3g} us more than float with its Q/DQ pairs{together}"


@dataclass(frozen=True)
class Choice:
    """What the cost model says.

    Args:
        regions: Regions to keep float, in graph order.
        int8_us: Predicted microseconds of all that could be int8, in int8.
        chosen_us: The same with ``regions`` in float.
        float_us: The same all in float.
    """

    regions: tuple[Region, ...]
    int8_us: float
    chosen_us: float
    float_us: float

    def float_nodes(self) -> dict[str, str]:
        """Nodes to keep float, each with the reason."""
        return {name: region.reason() for region in self.regions for name in region.nodes}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for reports."""
        return {
            "predicted_us": {
                "int8": round(self.int8_us, 1),
                "chosen": round(self.chosen_us, 1),
                "float": round(self.float_us, 1),
            },
            "float_regions": [
                {"nodes": list(region.nodes), "gain_us": round(region.gain_us, 2)} for region in self.regions
            ],
        }


@dataclass
class Problem:
    """Units, and the borders between them; index 0 stands for everything outside, which is float.

    Args:
        units: The units.
        tables: (maker, reader) -> microseconds between them, [maker is int8][reader is int8].
        quantized: (maker, readers, microseconds) of each Q that is paid when a reader is int8 and the maker is not.
    """

    units: list[Unit]
    tables: dict[tuple[int, int], list[list[float]]] = field(default_factory=dict)
    quantized: list[tuple[int, tuple[int, ...], float]] = field(default_factory=list)

    def cost(self, int8: frozenset[int]) -> float:
        """Microseconds when just the units ``int8`` are int8."""
        total = sum(unit.int8_us if at in int8 else unit.float_us for at, unit in enumerate(self.units))
        total += sum(table[start in int8][end in int8] for (start, end), table in self.tables.items())
        paid = (us for start, ends, us in self.quantized if start not in int8 and any(end in int8 for end in ends))
        return total + sum(paid)

    def change(self, int8: frozenset[int], members: frozenset[int]) -> float:
        """Microseconds more when ``members`` of the int8 units go back to float."""
        left = int8 - members
        total = sum(self.units[at].float_us - self.units[at].int8_us for at in members)
        borders = {key for at in members for key in self._borders[at]}
        for start, end in sorted(borders):
            table = self.tables[start, end]
            total += table[start in left][end in left] - table[start in int8][end in int8]
        for number in sorted({number for at in members for number in self._pairs[at]}):
            start, ends, us = self.quantized[number]
            paid = [start not in side and any(end in side for end in ends) for side in (left, int8)]
            total += us * (paid[0] - paid[1])
        return total

    def on_codes(self, names: Collection[str]) -> frozenset[int]:
        """Units that may be int8 and whose nodes are all in ``names``."""
        return frozenset(
            at for at, unit in enumerate(self.units) if unit.is_free and all(node.name in names for node in unit.nodes)
        )

    def near(self, at: int) -> set[int]:
        """Units that border on unit ``at``."""
        return {other for key in self._borders[at] for other in key} - {at, 0}

    @functools.cached_property
    def _borders(self) -> dict[int, list[tuple[int, int]]]:
        found: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for key in self.tables:
            for at in set(key):
                found[at].append(key)
        return found

    @functools.cached_property
    def _pairs(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = defaultdict(list)
        for number, (start, ends, _) in enumerate(self.quantized):
            for at in {start, *ends}:
                found[at].append(number)
        return found


def choose_float(
    model: Model, plan: Plan, shapes: Mapping[str, Shape], profile: Profile, objective: str = "speed"
) -> Choice:
    """Find the int8 and carried nodes of ``plan`` that had better be float.

    Args:
        model: Float model that the plan is for; not changed.
        plan: Plan by the target's rules; only nodes that it makes int8 are looked at.
        shapes: Concrete shapes of all tensors.
        profile: Costs of kernels.
        objective: ``speed`` keeps float whatever is faster so; ``balanced`` what takes away a larger share of the
            predicted time than it adds to the bytes of the weights; ``size`` nothing.

    Returns:
        The regions, in a fixed order; the same inputs give the same choice.
    """
    problem = pose_problem(model.graph, plan, shapes, profile)
    free = frozenset(at for at, unit in enumerate(problem.units) if unit.is_free)
    all_int8 = problem.cost(free)
    weighed = problem if objective == "speed" else _with_bytes(problem, all_int8)
    slow = frozenset() if objective == "size" else free - _cheapest(weighed)
    regions, kept = [], free
    for component in _components(problem, slow):
        region = _region(problem, free, all_int8, component)
        if region.gain_us > LEAST_SHARE * region.int8_us:
            regions.append(region)
            kept -= component
    return Choice(tuple(regions), all_int8, problem.cost(kept), problem.cost(frozenset()))


def _with_bytes(problem: Problem, all_int8: float) -> Problem:
    """``problem`` with the bytes of float weights as time: all bytes of the int8 weights are worth all of its time."""
    total = sum(unit.weights for unit in problem.units)
    rate = FLOAT_BYTES * all_int8 / max(1, total)
    units = [replace(unit, float_us=unit.float_us + rate * unit.weights) for unit in problem.units]
    return replace(problem, units=units)


def pose_problem(
    graph: gs.Graph, plan: Plan, shapes: Mapping[str, Shape], profile: Profile, all_free: bool = False
) -> Problem:
    """The units of a graph under ``plan`` and what lies between them; see ``find_units`` for ``all_free``."""
    outside = Unit((gs.Node("Outside", name="outside"),), False)
    problem = Problem([outside, *find_units(graph, plan, shapes, profile, all_free)])
    place = {id(node): at for at, unit in enumerate(problem.units) for node in unit.nodes}
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Constant) or (tensor.inputs and tensor.inputs[0].op == "Constant"):
            continue
        producer = tensor.inputs[0] if tensor.inputs else None
        start = 0 if producer is None else place.get(id(producer), 0)
        readers = {place.get(id(node), 0): node for node in reversed(tensor.outputs)}
        if is_graph_output(graph, tensor):
            readers.setdefault(0, None)
        readers = {end: node for end, node in sorted(readers.items()) if end != start or end == 0}
        dequantized = tensor.name in plan.activations
        for end, consumer in readers.items():
            units = problem.units[start], problem.units[end]
            table = border(tensor, producer, consumer, units, shapes, profile, dequantized)
            _add(problem.tables.setdefault((start, end), [[0.0, 0.0], [0.0, 0.0]]), table)
        on_codes = tuple(end for end in readers if problem.units[end].is_free)
        if on_codes and dequantized:
            problem.quantized.append((start, on_codes, quantize_us(tensor, shapes, profile)))
    return problem


def _add(total: list[list[float]], table: Table) -> None:
    for row, values in zip(total, table, strict=True):
        for at, value in enumerate(values):
            row[at] += value


def _cheapest(problem: Problem) -> frozenset[int]:
    """Units on the int8 side of a minimum cut, in whole nanoseconds."""
    flow = FlowGraph(len(problem.units) + 2)
    leave: dict[int, int] = defaultdict(int)  # cost of being int8 rather than float; may be negative
    for at, unit in enumerate(problem.units):
        leave[at] += _ns(unit.int8_us) - _ns(unit.float_us)
    for (start, end), table in problem.tables.items():
        (both_float, enter), (leave_int8, both_int8) = [[_ns(value) for value in row] for row in table]
        leave[start] += leave_int8 - both_float
        leave[end] += both_int8 - leave_int8
        flow.add_edge(end + 2, start + 2, max(0, enter + leave_int8 - both_float - both_int8))
    for start, ends, us in problem.quantized:
        any_int8 = flow.add_node()
        for end in ends:
            flow.add_edge(end + 2, any_int8, UNCUTTABLE)
        flow.add_edge(any_int8, start + 2, _ns(us))
    for at, unit in enumerate(problem.units):
        if not unit.is_free:
            flow.add_edge(at + 2, SINK, UNCUTTABLE)
        elif leave[at] > 0:
            flow.add_edge(at + 2, SINK, leave[at])
        else:
            flow.add_edge(SOURCE, at + 2, -leave[at])
    _, float_side = flow.cut(SOURCE, SINK)
    return frozenset(at for at in range(len(problem.units)) if at + 2 not in float_side)


def _ns(us: float) -> int:
    return round(1000 * us)


def _components(problem: Problem, members: frozenset[int]) -> list[frozenset[int]]:
    """Connected sets of ``members``, ordered by their first unit."""
    near: dict[int, set[int]] = defaultdict(set)
    for start, end in problem.tables:
        if start in members and end in members:
            near[start].add(end)
            near[end].add(start)
    found, seen = [], set()
    for first in sorted(members):
        if first in seen:
            continue
        component, stack = {first}, [first]
        while stack:
            for unit in near[stack.pop()] - component:
                component.add(unit)
                stack.append(unit)
        seen |= component
        found.append(frozenset(component))
    return found


def _region(problem: Problem, free: frozenset[int], all_int8: float, component: frozenset[int]) -> Region:
    units = [problem.units[at] for at in sorted(component)]
    borders = sum(
        table[start in free][end in free]
        for (start, end), table in problem.tables.items()
        if start in component or end in component
    )
    own = sum(unit.int8_us for unit in units) + borders
    names = tuple(node.name for unit in units for node in unit.nodes)
    return Region(names, own, all_int8 - problem.cost(free - component))
