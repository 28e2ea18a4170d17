"""Chains of nodes in which features enter the token domain, and in which they come back."""

from __future__ import annotations

from collections import deque

from .atoms import Atom
from .attention import is_linear
from .domain import CONVS, GLOBAL_POOLS, POOLS
from .flow import Flow
from .runs import Run
from .structure import Transition


def find_transitions(flow: Flow, atoms: list[Atom], runs: list[Run], bridges: dict[str, str]) -> list[Transition]:
    """Entry and exit chains of every run.

    Args:
        flow: The graph's data flow.
        atoms: Its atoms.
        runs: Its runs.
        bridges: Bridge block of each node that lies in one.
    """
    found: list[Transition] = []
    for run in runs:
        entry = _entry_chain(flow, run)
        block = bridges.get(flow.nodes[run.projections[0]].name, "")
        found.append(Transition(block, "entry", tuple(flow.nodes[position].name for position in entry)))
        leaving = _exit_chain(flow, atoms, run)
        if leaving:
            found.append(Transition(block, "exit", tuple(flow.nodes[position].name for position in leaving)))
    return found


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
