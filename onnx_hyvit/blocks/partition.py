"""Put atoms together into blocks: stem, conv blocks, bridges, transformer layers, head."""

from __future__ import annotations

from dataclasses import dataclass

from .atoms import NORMS, Atom
from .attention import LAYOUT, crosses
from .domain import GLOBAL_POOLS, POOLS, Domain
from .flow import Flow
from .runs import Run, layers
from .streams import split_streams

MOST_CONVS = 4
_NOT_TRAILING = (
    POOLS | GLOBAL_POOLS | LAYOUT | (NORMS - {"BatchNormalization"}) | {"ReduceMean", "ReduceSum", "ReduceMax"}
)


@dataclass
class Draft:
    """A block in the making: kind and positions of its data nodes."""

    kind: str
    positions: list[int]
    run: Run | None = None


def draft_blocks(flow: Flow, atoms: list[Atom], runs: list[Run], domains: dict[str, Domain]) -> list[Draft]:
    """Drafts of all blocks in topological order; together they hold every data node once."""
    drafts: list[Draft] = []
    done = 0
    for run in runs:
        crossed = any(crosses(flow, core, domains) for core in atoms[run.first].cores)
        drafts += _segment(flow, atoms, done, run.first if crossed else run.start, opens=done == 0)
        drafts += _run_drafts(flow, atoms, run, domains)
        done = run.stop
    head = _head_start(flow, atoms, done)
    drafts += _segment(flow, atoms, done, head, opens=done == 0)
    tail = [position for atom in atoms[head:] for position in atom.positions]
    if tail:
        drafts.append(Draft("head", tail))
    return drafts


def _run_drafts(flow: Flow, atoms: list[Atom], run: Run, domains: dict[str, Domain]) -> list[Draft]:
    drafts: list[Draft] = []
    if any(crosses(flow, core, domains) for core in atoms[run.first].cores):
        pieces = split_streams(flow, atoms[run.first].positions, atoms[run.first].cores, domains)
        drafts += [Draft(kind, positions, run if kind == "bridge" else None) for kind, positions in pieces]
        rest = [position for atom in atoms[run.first + 1 : run.stop] for position in atom.positions]
        return drafts + ([Draft("transformer", rest)] if rest else [])
    drafts.append(Draft("bridge", sorted(run.bridge), run))
    for start, stop in layers(atoms, run):
        members = [position for atom in atoms[start:stop] for position in atom.positions]
        drafts.append(Draft("transformer", [place for place in members if place not in run.bridge]))
    return [draft for draft in drafts if draft.positions]


def _head_start(flow: Flow, atoms: list[Atom], done: int) -> int:
    """Index of the first atom behind the last one that works on a map: pooling, classifier, CTC head."""
    start = len(atoms)
    while start > done and not _works_on_map(atoms[start - 1]):
        start -= 1
    while start < len(atoms) and start > done and _trails(flow, atoms[start]):
        start += 1
    return start


def _works_on_map(atom: Atom) -> bool:
    several = atom.positions_out > 1
    return bool(atom.convs) or (several and atom.residual) or (bool(atom.linears) and atom.kind_out == "spatial")


def _trails(flow: Flow, atom: Atom) -> bool:
    """Whether the atom is only an activation or BatchNormalization that completes the operator before it."""
    return not atom.linears and not any(flow.nodes[position].op in _NOT_TRAILING for position in atom.positions)


def _segment(flow: Flow, atoms: list[Atom], start: int, stop: int, *, opens: bool) -> list[Draft]:
    """Stem (when the segment opens the graph) and conv blocks of the atoms between two runs."""
    drafts: list[Draft] = []
    if opens:
        end = _stem_end(atoms, start, stop)
        stem = [position for atom in atoms[start:end] for position in atom.positions]
        drafts += [Draft("stem", stem)] if stem else []
        start = end
    return drafts + [_conv_draft(atoms[first:last]) for first, last in _conv_ranges(flow, atoms, start, stop)]


def _stem_end(atoms: list[Atom], start: int, stop: int) -> int:
    """Index after the first convolution that makes the map smaller, and what trails it."""
    index = start
    while index < stop and not atoms[index].residual:
        index += 1
        if atoms[index - 1].convs and atoms[index - 1].resamples:
            break
    while index < stop and not atoms[index].linears and not atoms[index].residual:
        index += 1
    return index


def _conv_draft(atoms: list[Atom]) -> Draft:
    linears = any(atom.linears for atom in atoms)
    tokens = linears and not any(atom.convs for atom in atoms) and atoms[-1].kind_out == "tokens"
    return Draft("transformer" if tokens else "conv", [place for atom in atoms for place in atom.positions])


def _conv_ranges(flow: Flow, atoms: list[Atom], start: int, stop: int) -> list[tuple[int, int]]:
    """Cut a chain of atoms around residual units, and at the narrow tensors of long serial chains."""
    ranges: list[tuple[int, int]] = []
    begin, convs, sealed = start, 0, False
    for index in range(start, stop):
        atom = atoms[index]
        works = bool(atom.linears)
        if works and begin < index and (sealed or (convs and (atom.residual or _narrow(flow, atoms, index, convs)))):
            ranges.append((begin, index))
            begin, convs, sealed = index, 0, False
        convs += len(atom.linears)
        sealed |= atom.residual and works
    if begin < stop:
        ranges.append((begin, stop))
    idle = ranges and not any(atom.linears or atom.residual for atom in atoms[ranges[-1][0] : ranges[-1][1]])
    if idle and len(ranges) > 1:
        ranges[-2:] = [(ranges[-2][0], ranges[-1][1])]
    return ranges


def _narrow(flow: Flow, atoms: list[Atom], index: int, convs: int) -> bool:
    entry, leaves = atoms[index].span.entry, atoms[index].span.exit
    if convs >= MOST_CONVS:
        return True
    return convs >= 2 and entry is not None and leaves is not None and flow.size(entry) < flow.size(leaves)
