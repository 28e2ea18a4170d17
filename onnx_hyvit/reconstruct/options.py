"""What granularity an activation may have: one scale for the tensor, for each head, or for each channel.

An option is written into the float model, which computes the same function afterwards; its expected error is that of
``gains``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np

from ..graph import Model
from ..graph.edit import producer_of
from .channel_stats import ChannelMoments
from .fold_sites import FoldSite
from .folds import ChannelFold, RoundedValues, apply_fold, rank_folds
from .gain_sites import GainSite
from .gains import apply_gains, rank_gains

Kind = Literal["layer", "head", "channel"]
T = TypeVar("T")
MOST = 3  # options of each granularity that are measured


@dataclass(frozen=True)
class Option:
    """One granularity of an activation.

    Args:
        granularity: ``layer`` (one scale), ``head`` or ``channel``.
        write: Writes it into the float model; None changes nothing.
        shift: Whether channels are shifted, too.
    """

    granularity: Kind
    write: Callable[[], object] | None = field(default=None, repr=False)
    shift: bool = False


@dataclass(frozen=True)
class Candidate:
    """An activation whose granularity is searched.

    Args:
        tensor: Its name.
        nodes: Names of the nodes whose constants its options change: they span the blocks it is measured over.
        options: Makes its options, on the model as it is then; the first one changes nothing.
    """

    tensor: str
    nodes: tuple[str, ...]
    options: Callable[[], Sequence[Option]] = field(repr=False)


def gain_candidate(
    model: Model, site: GainSite, moments: ChannelMoments, levels: int, weight_max: int
) -> Candidate | None:
    """An activation whose gain an affine before it takes; None for other sites: their gains cost a node.

    Args:
        model: Float model.
        site: A site of it.
        moments: Those of its tensor, [C].
        levels: Steps in the activation's codes, ``2**bits - 1``.
        weight_max: Largest weight code, ``2**(bits-1) - 1``.
    """
    maker = producer_of(model.graph.tensors()[site.tensor])
    if site.fold != "affine" or site.side != "consumer" or maker is None:
        return None

    def option(gain: np.ndarray) -> Option:
        return Option("channel", lambda: apply_gains(model, [site], {site.tensor: gain}))

    def options() -> Sequence[Option]:
        nodes = {node.name: node for node in model.graph.nodes}
        weighted = [nodes[name] for name in site.weighted]
        ranked = rank_gains(weighted, moments.shifted(), levels, weight_max)
        ranked = [(error, gain) for error, gain in ranked if not np.allclose(gain, 1)]
        return [Option("layer"), *map(option, _best(ranked))]

    return Candidate(site.tensor, (maker.name, *site.weighted), options)


def fold_candidate(
    model: Model,
    site: FoldSite,
    moments: ChannelMoments,
    levels: int,
    weight_max: int,
    values: RoundedValues | None = None,
) -> Candidate:
    """An activation whose channels are divided in its maker and restored in layers, see ``rank_folds``."""

    def option(kind: Kind, fold: ChannelFold) -> Option:
        return Option(kind, lambda: apply_fold(model, site, fold), fold.shifts)

    def options() -> Sequence[Option]:
        found = [Option("layer")]
        if site.heads:
            heads = rank_folds(model, site, moments, levels, weight_max, values, np.array(site.heads))
            found += [option("head", fold) for fold in _best(_changing(heads))]
        channels = rank_folds(model, site, moments, levels, weight_max, values)
        return [*found, *(option("channel", fold) for fold in _best(_changing(channels)))]

    return Candidate(site.tensor, (site.maker, *(name for name, _ in site.layers)), options)


def _changing(ranked: Sequence[tuple[float, ChannelFold]]) -> list[tuple[float, ChannelFold]]:
    """Those that change anything."""
    return [(error, fold) for error, fold in ranked if fold.shifts or not np.allclose(fold.gain, 1)]


def _best(ranked: Sequence[tuple[float, T]]) -> list[T]:
    """The first few by error; of equal errors, which are mostly equal choices, one."""
    found: dict[float, T] = {}
    for error, choice in sorted(ranked, key=lambda entry: entry[0]):
        found.setdefault(error, choice)
    return list(found.values())[:MOST]
