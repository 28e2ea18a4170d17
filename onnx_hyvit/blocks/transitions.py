"""Chains of nodes in which features enter the token domain, and in which they come back."""

from __future__ import annotations

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
    """Back from the first projection along the largest input, to the nearest convolution."""
    chain = [run.projections[0]]
    while True:
        inputs = [name for name in flow.inputs(chain[-1]) if name in flow.made_at]
        if not inputs:
            return chain[::-1]
        chain.append(flow.made_at[max(inputs, key=flow.size)])
        if flow.nodes[chain[-1]].op in CONVS or chain[-1] not in run.bridge:
            return chain[::-1]


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
        if op in CONVS | POOLS | GLOBAL_POOLS or op == "ReduceMean":
            return chain
