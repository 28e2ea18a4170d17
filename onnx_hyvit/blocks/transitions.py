"""Chains of nodes in which features enter the token domain, and in which they come back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from .atoms import Atom
from .attention import Core, crosses, is_linear, origin
from .domain import CONVS, GLOBAL_POOLS, POOLS, Domain
from .flow import Flow
from .runs import Run
from .structure import Transition


def find_transitions(
    flow: Flow, atoms: list[Atom], runs: list[Run], bridges: dict[str, str], domains: dict[str, Domain]
) -> list[Transition]:
    """Entry and exit chains of every run; for cross attention, the core itself is the chain.

    Args:
        flow: The graph's data flow.
        atoms: Its atoms.
        runs: Its runs.
        bridges: Bridge block of each node that lies in one.
        domains: Domain of every tensor.
    """
    found: list[Transition] = []
    for run in runs:
        crossing = [core for core in atoms[run.first].cores if crosses(flow, core, domains)]
        if crossing:
            found += [_cross_transition(flow, core, bridges, domains) for core in crossing]
            continue
        block = bridges.get(flow.nodes[run.projections[0]].name, "")
        found.append(Transition(block, "entry", _names(flow, _entry_chain(flow, run))))
        leaving = _exit_chain(flow, atoms, run)
        if leaving:
            found.append(Transition(block, "exit", _names(flow, leaving)))
    return found


def _names(flow: Flow, positions: Iterable[int]) -> tuple[str, ...]:
    return tuple(flow.nodes[position].name for position in positions)


def _cross_transition(flow: Flow, core: Core, bridges: dict[str, str], domains: dict[str, Domain]) -> Transition:
    """A map that asks tokens receives them (an exit); tokens that ask a map enter."""
    source = origin(flow, core.query)
    to_map = source in domains and domains[source].kind == "spatial"
    names = _names(flow, sorted(core.members))
    return Transition(bridges.get(names[0], ""), "exit" if to_map else "entry", names)


def _entry_chain(flow: Flow, run: Run) -> list[int]:
    """Shortest way back from the first projection to a convolution of the bridge (or to where the bridge begins)."""
    reader: dict[int, int] = {}
    pending, position = deque([run.projections[0]]), run.projections[0]
    while pending:
        position = pending.popleft()
        if position != run.projections[0] and flow.nodes[position].op in CONVS:
            break
        for source in flow.producers(position):
            if source in run.bridge and source not in reader:
                reader[source] = position
                pending.append(source)
    chain = [position]
    while chain[-1] != run.projections[0]:
        chain.append(reader[chain[-1]])
    return chain


def _exit_chain(flow: Flow, atoms: list[Atom], run: Run) -> list[int]:
    """From the last linear of the run to the first convolution or pooling behind it; empty when there is none."""
    members = [position for atom in atoms[run.first : run.stop] for position in atom.positions]
    linears = [position for position in members if is_linear(flow, position)]
    if not linears:
        return []
    chain = [linears[-1]]
    while True:
        consumers = flow.consumers(chain[-1])
        if not consumers:
            return []
        chain.append(min(consumers))
        op = flow.nodes[chain[-1]].op
        if op in CONVS | POOLS | GLOBAL_POOLS:
            return chain
