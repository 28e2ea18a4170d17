"""Runs of attention, the bridge block that leads into each, and the layers of which a run is made.

A *run* goes from the first to the last attention between which no strided convolution, pooling or Resize changes
the number of positions: EfficientFormerV2, EfficientViT and TinyViT have one per stage with attention, LeViT and
Swin, which merge tokens without convolutions, have one altogether. Its *bridge* holds the last convolution(s) before
it, what flattens, transposes or normalizes, and the first linear operators (a fused or three separate projections,
matrix products or 1x1 convolutions) on every path into the first attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .atoms import NORMS, Atom
from .attention import LAYOUT, Core, is_linear
from .flow import Flow

FEED_FORWARD_LINEARS = 2
OPENING_CONVS = 4


@dataclass(frozen=True)
class Run:
    """Atoms of one run.

    Args:
        start: Index of the first atom of the bridge.
        first: Index of the first atom with attention; the bridge ends inside it.
        stop: Index after the last atom of the run.
        projections: Positions of the first linear operators on the paths into the first attention.
        bridge: Positions of the nodes of the bridge.
    """

    start: int
    first: int
    stop: int
    projections: tuple[int, ...]
    bridge: frozenset[int]


def find_runs(flow: Flow, atoms: list[Atom]) -> list[Run]:
    """All runs, in order; their atoms do not overlap."""
    runs: list[Run] = []
    limit = 0
    for first, last, following in _groups(atoms):
        stop = _end_of_run(atoms, last, following)
        runs.append(_with_bridge(flow, atoms, limit, first, stop))
        limit = stop
    return runs


def _groups(atoms: list[Atom]) -> Iterator[tuple[int, int, int]]:
    """``(first, last)`` atom with attention of each run, and the first one of the next run (or the end)."""
    places = [index for index, atom in enumerate(atoms) if atom.cores]
    first = 0
    for number, place in enumerate(places):
        following = places[number + 1] if number + 1 < len(places) else len(atoms)
        if following == len(atoms) or any(atom.resamples for atom in atoms[place + 1 : following + 1]):
            yield places[first], place, following
            first = number + 1


def _end_of_run(atoms: list[Atom], last: int, following: int) -> int:
    """Index after the feed-forward part that belongs to the last attention."""
    parent = atoms[last].parent
    rest = [index for index in range(last + 1, following) if atoms[index].parent == parent]
    if rest and not any(atoms[index].convs for index in rest):
        return rest[-1] + 1
    stop, inside = last + 1, bool(rest) or (last > 0 and atoms[last - 1].parent == parent)
    for index in range(last + 1, following):
        atom = atoms[index]
        if atom.resamples or atom.kind_out == "vector" or (inside and atom.parent != parent):
            break
        if not atom.residual:
            continue
        stop = index + 1
        if len(atom.linears) >= FEED_FORWARD_LINEARS:
            break
    return stop


def _with_bridge(flow: Flow, atoms: list[Atom], limit: int, first: int, stop: int) -> Run:
    projections = first_projections(flow, atoms[first].cores[0], atoms[first].span.lo)
    inside = flow.ancestors(projections, atoms[first].span.lo)
    inside |= {bias for place in projections for bias in _bias(flow, place)}
    own = [_has_conv_before(flow, place, atoms[first]) for place in projections]
    start = first if all(own) else _last_convolution(flow, atoms, limit, first)
    start = _over_leading_layout(flow, atoms, limit, start)
    before = {position for atom in atoms[start:first] for position in atom.positions}
    return Run(start, first, stop, tuple(sorted(projections)), frozenset(before | inside))


def first_projections(flow: Flow, core: Core, lo: int) -> list[int]:
    """The linear operators nearest to query, key and value, those that depend on another of them left out.

    Where nothing projects (or one operator is the whole attention) it is the core's own first product.
    """
    nearest: set[int] = set()
    pending, seen = [core.query, core.key, core.value], set()
    while pending:
        name = pending.pop()
        made = flow.made_at.get(name, -1)
        if name in seen or made < lo:
            continue
        seen.add(name)
        if is_linear(flow, made):
            nearest.add(made)
        elif made not in core.members:
            pending.extend(flow.inputs(made))
    if not nearest:
        return [core.first]
    return [place for place in nearest if not nearest & (flow.ancestors([place], lo) - {place})]


def _bias(flow: Flow, position: int) -> list[int]:
    """The addition of a fixed bias right behind a matrix product."""
    consumers = flow.consumers(position)
    if len(consumers) == 1 and flow.nodes[consumers[0]].op == "Add" and len(flow.inputs(consumers[0])) == 1:
        return consumers
    return []


def _has_conv_before(flow: Flow, projection: int, atom: Atom) -> bool:
    return bool((flow.ancestors([projection], atom.span.lo) - {projection}) & set(atom.convs))


def _last_convolution(flow: Flow, atoms: list[Atom], limit: int, first: int) -> int:
    """Index of the atom with the last convolution before ``first``; the atoms from ``limit`` on are free.

    A 1x1 convolution takes the spatial one that feeds it along (MobileViT, EfficientViT, TinyViT).
    """
    for index in range(first - 1, limit - 1, -1):
        if atoms[index].convs:
            return _opening(atoms, limit, first, _spatial_feeder(flow, atoms, limit, index))
    return first if limit else 0


def _opening(atoms: list[Atom], limit: int, first: int, start: int) -> int:
    """The beginning of the piece that ``first`` was cut from, when only a few convolutions open it (EdgeNeXt)."""
    opening = next(index for index in range(limit, first + 1) if atoms[index].parent == atoms[first].parent)
    convs = sum(len(atom.convs) for atom in atoms[opening:first])
    return min(start, opening) if convs <= OPENING_CONVS and start >= opening else start


def _spatial_feeder(flow: Flow, atoms: list[Atom], limit: int, index: int) -> int:
    if atoms[index].residual or len(atoms[index].convs) > 1 or not _is_pointwise(flow, atoms[index].convs[0]):
        return index
    for before in range(index - 1, limit - 1, -1):
        atom = atoms[before]
        if atom.convs:
            spatial = len(atom.convs) == 1 and not atom.residual and not _is_pointwise(flow, atom.convs[0])
            return before if spatial else index
        if atom.residual:
            break
    return index


def _is_pointwise(flow: Flow, position: int) -> bool:
    weight = flow.nodes[position].inputs[1]
    shape = flow.shapes.get(weight.name, ())
    return all(length == 1 for length in shape[2:])


def _over_leading_layout(flow: Flow, atoms: list[Atom], limit: int, start: int) -> int:
    """Take transposes, reshapes and norms in front along; activations stay with the operator before them."""
    leading = LAYOUT | (NORMS - {"BatchNormalization"})
    while start > limit and all(flow.nodes[position].op in leading for position in atoms[start - 1].positions):
        start -= 1
    if not any(atom.linears or atom.residual for atom in atoms[limit:start]):
        return limit
    return start


def layers(atoms: list[Atom], run: Run) -> list[tuple[int, int]]:
    """Atom ranges of the layers of a run: each attention with what follows it up to the next one."""
    places = [index for index in range(run.first, run.stop) if atoms[index].cores]
    return list(zip(places, [*places[1:], run.stop], strict=True))
