"""The granularity step of the pipeline: observe the channels of every site, choose gains, rewrite the model."""

from __future__ import annotations

from dataclasses import dataclass

from ..calibration import Source
from ..graph import Model, model_to_proto
from ..placement import Plan
from ..runtime import Progress, collect
from ..runtime.collect import MAX_MEMORY
from .gain_sites import GainSite, find_gain_sites
from .gains import ChannelObserver, apply_gains, choose_gains


@dataclass(frozen=True)
class Granularity:
    """What was chosen.

    Args:
        sites: Activations that could have a scale per channel.
        chosen: Those that have one now.
        added: Names of the Mul nodes that this cost; they must stay float.
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
        threads: Threads of ONNX Runtime.
        max_memory: Bytes of activations held at a time; None is the default of ``collect``.
        progress: Called as ``progress(done, total, text)``.

    Returns:
        The sites, the choice, and the nodes that it added.
    """
    sites = find_gain_sites(model, plan)
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
    gains = choose_gains(
        model,
        sites,
        {name: observer.stats() for name, observer in observers.items()},
        levels=2 ** min(bits) - 1,
        weight_max=2 ** (min(weight_bits) - 1) - 1,
    )
    added = apply_gains(model, sites, gains)
    return Granularity(tuple(sites), tuple(site for site in sites if site.tensor in gains), added)
