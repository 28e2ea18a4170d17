"""The granularity step of the pipeline: observe the channels of every site, choose gains, rewrite the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..calibration import Source
from ..graph import Model, model_to_proto
from ..placement import Plan
from ..recipes import GainRule
from ..runtime import Progress, collect
from ..runtime.collect import MAX_MEMORY
from .gain_sites import GainSite, find_gain_sites
from .gains import ChannelObserver, ChannelStats, apply_gains, choose_gains
from .norm_sites import find_norm_sites, norm_gain, shift_norms
from .smooth_sites import find_smooth_sites, smooth_gain

_FINDERS = {"search": find_gain_sites, "layer-norm": find_norm_sites, "smooth": find_smooth_sites}


@dataclass(frozen=True)
class Granularity:
    """What was chosen.

    Args:
        sites: Activations that could have a scale per channel.
        chosen: Those that have one now.
        added: Names of the Mul nodes that this cost, and of nodes that leave int8 for them; they must stay float.
    """

    sites: tuple[GainSite, ...]
    chosen: tuple[GainSite, ...]
    added: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain values for the report."""
        return {
            "sites": len(self.sites),
            "per_channel": [{"tensor": site.tensor, "side": site.side, "fold": site.fold} for site in self.chosen],
            "added_nodes": len(self.added),
        }


def choose_granularity(
    model: Model,
    plan: Plan,
    source: Source,
    *,
    rule: GainRule = "search",
    threads: int = 2,
    max_memory: int | None = None,
    progress: Progress | None = None,
) -> Granularity:
    """Give activations a scale per channel where that lowers the error of the layers that read them.

    Args:
        model: Float model that the plan was made for; edited in place, computing the same function. Make the plan again
            afterwards, with ``added`` kept float.
        plan: Where Q/DQ pairs would go.
        source: Calibration data.
        rule: Which sites, and how their gains are chosen; see ``recipes.Recipe``.
        threads: Threads of ONNX Runtime.
        max_memory: Bytes of activations held at a time; None is the default of ``collect``.
        progress: Called as ``progress(done, total, text)``.

    Returns:
        The sites, the choice, and the nodes that it added.
    """
    sites = _FINDERS[rule](model, plan)
    if not sites:
        return Granularity((), (), ())
    observers = collect(
        model_to_proto(model),
        [site.tensor for site in sites],
        source,
        {site.tensor: ChannelObserver(site.axis) for site in sites},
        progress,
        threads=threads,
        max_memory=max_memory or MAX_MEMORY,
    )
    bits = {spec.bits for spec in plan.activations.values()}
    weight_bits = {spec.bits for spec in plan.weights.values()}
    levels, weight_max = 2 ** min(bits) - 1, 2 ** (min(weight_bits) - 1) - 1
    stats = {name: observer.stats() for name, observer in observers.items()}
    if rule == "layer-norm":
        found = {site.tensor: norm_gain(stats[site.tensor], levels) for site in sites}
        shift_norms(model, sites, {name: shift for name, (_, shift) in found.items()})
        gains = {name: gain for name, (gain, _) in found.items()}
    elif rule == "smooth":
        gains = _smooth_gains(model, sites, stats, levels, weight_max)
    else:
        gains = choose_gains(model, sites, stats, levels=levels, weight_max=weight_max)
    makers = _makers(model, gains) if rule == "smooth" else ()
    added = (*apply_gains(model, sites, gains), *makers)
    return Granularity(tuple(sites), tuple(site for site in sites if site.tensor in gains), added)


def _smooth_gains(
    model: Model, sites: Sequence[GainSite], stats: Mapping[str, ChannelStats], levels: int, weight_max: int
) -> dict[str, np.ndarray]:
    nodes = {node.name: node for node in model.graph.nodes}
    gains = {}
    for site in sites:
        gain = smooth_gain([nodes[name] for name in site.weighted], stats[site.tensor], levels, weight_max)
        if gain is not None:
            gains[site.tensor] = gain
    return gains


def _makers(model: Model, names: Iterable[str]) -> tuple[str, ...]:
    """Names of the nodes that make the tensors ``names``."""
    tensors = model.graph.tensors()
    return tuple(tensors[name].inputs[0].name for name in names)
