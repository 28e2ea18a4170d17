"""Which weights may have 4 bits: the most bytes saved for the least divergence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .effects import Effects

NARROW_BITS, WIDE_BITS = 4, 8


@dataclass(frozen=True)
class Width:
    """The width of one weight.

    Args:
        weight: Its name.
        nodes: Names of the layers that read it.
        bits: 4 or 8.
        saved_bytes: What 4 bits save beside 8, packed.
        divergence: What rounding to 4 bits is predicted to do to the outputs; None where no gradient reaches it.
        reason: Why it has this width.
    """

    weight: str
    nodes: tuple[str, ...]
    bits: int
    saved_bytes: int
    divergence: float | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for reports."""
        return {**self.__dict__, "nodes": list(self.nodes)}


def choose_widths(effects: Effects, sizes: Mapping[str, int], spent: float, limit: float) -> tuple[Width, ...]:
    """Give 4 bits to weights, those with the most bytes for their divergence first, while the sum keeps to ``limit``.

    Args:
        effects: Effects of rounding every weight to 4 bits.
        sizes: Codes of each weight that may have 4 bits.
        spent: Divergence of all other roundings.
        limit: Largest divergence of all together.

    Returns:
        One entry for each weight of ``sizes``, in that order.
    """
    terms: dict[str, list[int]] = {}
    for number, rounding in enumerate(effects.roundings):
        if rounding.is_weight:
            terms.setdefault(rounding.tensor, []).append(number)
    costs = {name: effects.divergence([terms[name]]) for name in sizes if name in terms}
    narrow: set[str] = set()
    for name in sorted(costs, key=lambda name: (costs[name] / max(1, sizes[name]), name)):
        if spent + costs[name] <= limit:
            narrow.add(name)
            spent += costs[name]
    found = []
    for name, size in sizes.items():
        nodes = tuple(sorted(effects.roundings[number].reader for number in terms.get(name, [])))
        cost, saved = costs.get(name), size // 2
        if cost is None:
            reason = "no gradient reaches it"
        elif name in narrow:
            reason = f"4 bits save {saved} bytes for a predicted divergence of {cost:.2g}"
        else:
            reason = f"4 bits would save {saved} bytes for {cost:.2g}, more than the budget has left"
        found.append(Width(name, nodes, NARROW_BITS if name in narrow else WIDE_BITS, saved, cost, reason))
    return tuple(found)
