"""Two streams side by side (Mobile-Former): a spatial map and tokens that ask each other by cross attention.

No single tensor separates such a region, so it is cut at its cross attentions: each, from the projections to the
residual addition, is a bridge. Of what lies between two of them, the part behind a convolution is a conv block and
the rest, which works on the tokens, a transformer block.
"""

from __future__ import annotations

from .attention import LAYOUT, Core, crosses, is_linear
from .domain import Domain
from .flow import Flow

Piece = tuple[str, list[int]]


def split_streams(flow: Flow, positions: range, cores: tuple[Core, ...], domains: dict[str, Domain]) -> list[Piece]:
    """Kinds and positions of the blocks of a region with cross attention, in topological order.

    Args:
        flow: The graph's data flow.
        positions: Positions of the region.
        cores: Attention cores in it.
        domains: Domain of every tensor.

    Returns:
        ``(kind, positions)`` pairs that hold every position of the region once.
    """
    bridges = [_cross_region(flow, core, positions) for core in cores if crosses(flow, core, domains)]
    bridges.sort(key=max)
    ranks = _ranks(flow, positions, bridges)
    pieces: list[Piece] = []
    for rank in sorted(set(ranks.values())):
        members = [position for position in positions if ranks[position] == rank]
        if rank % 2:
            pieces.append(("bridge", members))
        else:
            pieces += _between_bridges(flow, members, cores)
    return pieces


def _cross_region(flow: Flow, core: Core, positions: range) -> set[int]:
    """The core, the projections read by it alone, and the way to the residual addition."""
    region = set(core.members)
    place = core.last
    while True:
        consumers = flow.consumers(place)
        if len(consumers) != 1 or consumers[0] not in positions:
            break
        follower = consumers[0]
        joins = len(flow.inputs(follower)) > 1
        if not (flow.nodes[follower].op in LAYOUT | {"Add", "Mul"} or is_linear(flow, follower)):
            break
        if joins and flow.nodes[follower].op != "Add":
            break
        region.add(follower)
        place = follower
        if joins:
            break
    for position in range(max(core.members), positions.start - 1, -1):
        consumers = flow.consumers(position)
        private = bool(consumers) and all(reader in region and reader != place for reader in consumers)
        carries = flow.nodes[position].op in LAYOUT | {"Mul", "Add", "Div"} and len(flow.inputs(position)) == 1
        if private and (carries or (is_linear(flow, position) and flow.nodes[position].op != "Conv")):
            region.add(position)
    return region


def _ranks(flow: Flow, positions: range, bridges: list[set[int]]) -> dict[int, int]:
    """Odd rank 2k+1 for the k-th bridge; for others the even rank behind the last bridge that they depend on."""
    ranks = {position: 2 * number + 1 for number, bridge in enumerate(bridges) for position in bridge}
    for position in positions:
        if position not in ranks:
            behind = [ranks[place] for place in flow.producers(position) if place in ranks]
            ranks[position] = max((rank + rank % 2 for rank in behind), default=0)
    return ranks


def _between_bridges(flow: Flow, members: list[int], cores: tuple[Core, ...]) -> list[Piece]:
    """Tokens first, then what lies behind a convolution or serves it alone (the parameters of a dynamic ReLU)."""
    spatial: set[int] = set()
    for position in members:
        behind = any(place in spatial for place in flow.producers(position))
        if behind or flow.nodes[position].op == "Conv":
            spatial.add(position)
    for position in reversed(members):
        consumers = flow.consumers(position)
        if consumers and all(reader in spatial for reader in consumers):
            spatial.add(position)
    tokens = [position for position in members if position not in spatial]
    attends = any(core.first in tokens for core in cores)
    worthwhile = attends or any(is_linear(flow, position) for position in tokens)
    pieces: list[Piece] = []
    if tokens and (worthwhile or not spatial):
        pieces.append(("transformer" if worthwhile else "conv", tokens))
    elif tokens:
        spatial.update(tokens)
    if spatial:
        pieces.append(("conv", sorted(spatial)))
    return pieces
