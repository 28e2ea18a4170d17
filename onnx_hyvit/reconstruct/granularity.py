"""The granularity step of the pipeline: observe the channels of every site, choose gains, rewrite the model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import onnx_graphsurgeon as gs

from ..calibration import Source
from ..graph import Model, model_to_proto
from ..graph.linear import channel_axis
from ..placement import Plan
from ..recipes import FOLDS, Fold, GainRule
from ..runtime import Progress, collect
from ..runtime.collect import MAX_MEMORY
from .channel_stats import ChannelMoments, ChannelObserver, ChannelStats
from .fold_sites import FoldSite, find_fold_sites
from .folds import RoundedValues, apply_fold, choose_fold
from .gain_sites import GainSite, find_gain_sites
from .gains import apply_gains, choose_gains
from .logit_folds import apply_logit_fold, choose_logit_fold
from .logit_sites import LogitSite, find_logit_sites
from .norm_sites import find_norm_sites, norm_gain, shift_norms
from .options import fold_candidate, gain_candidate
from .search_granularity import Measure
from .smooth_sites import find_smooth_sites, smooth_gain

_FINDERS = {"search": find_gain_sites, "layer-norm": find_norm_sites, "smooth": find_smooth_sites}
_FOLDS = {"norm": "affine", "rows": "weights", "values": "attention"}


@dataclass(frozen=True)
class Choice:
    """An activation that has a scale per channel, or per head of an attention, now.

    Args:
        tensor: Its name.
        side: Where the gain is hidden: ``consumer``, ``producer`` or ``both`` sides.
        fold: What takes it: ``affine``, ``mul`` (a node of its own), ``weights`` or, in attentions, ``attention`` (the
            values) and ``logits`` (queries and keys).
        shift: Whether channels are shifted, too.
        granularity: ``channel``, or ``head`` where the channels of each head of an attention share a scale.
        error_before: Error at the outputs of the blocks with one scale, where that was measured.
        error_after: The same with this choice.
    """

    tensor: str
    side: str
    fold: str
    shift: bool = False
    granularity: str = "channel"
    error_before: float | None = None
    error_after: float | None = None


@dataclass(frozen=True)
class Granularity:
    """What was chosen.

    Args:
        sites: Number of activations that could have a scale per channel.
        chosen: Those that have one now.
        added: Names of the Mul nodes that this cost, and of nodes that leave int8 for them; they must stay float.
    """

    sites: int
    chosen: tuple[Choice, ...]
    added: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain values for the report."""
        return {
            "sites": self.sites,
            "per_channel": [asdict(choice) for choice in self.chosen],
            "added_nodes": len(self.added),
        }


@dataclass(frozen=True)
class _Widths:
    """Steps in the codes of activations, and the largest code of weights."""

    levels: int
    weight_max: int

    @property
    def most(self) -> tuple[int, int]:
        """Both."""
        return self.levels, self.weight_max


def choose_granularity(
    model: Model,
    plan: Plan,
    source: Source,
    *,
    rule: GainRule = "search",
    folds: Collection[Fold] = FOLDS,
    measure: Measure | None = None,
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
        folds: What the rule ``search`` tries besides; see ``recipes.Recipe``.
        measure: How choices at no node are measured, which the closed form only proposes then; None leaves it to that.
        threads: Threads of ONNX Runtime.
        max_memory: Bytes of activations held at a time; None is the default of ``collect``.
        progress: Called as ``progress(done, total, text)``.

    Returns:
        The number of sites, the choice, and the nodes that it added.
    """
    fold_sites = find_fold_sites(model, plan, folds) if rule == "search" else []
    logit_sites = find_logit_sites(model, plan, "shift" in folds) if rule == "search" and "logits" in folds else []
    covered = {name for site in fold_sites for name in site.carriers}
    sites = [site for site in _FINDERS[rule](model, plan) if site.tensor not in covered]
    axes = _channel_axes(model, sites, fold_sites, logit_sites)
    if not axes:
        return Granularity(0, (), ())
    observers = collect(
        model_to_proto(model),
        list(axes),
        source,
        {tensor: ChannelObserver(axis) for tensor, axis in axes.items()},
        progress,
        threads=threads,
        max_memory=max_memory or MAX_MEMORY,
    )
    bits = {spec.bits for spec in plan.activations.values()}
    weight_bits = {spec.bits for spec in plan.weights.values()}
    widths = _Widths(2 ** min(bits) - 1, 2 ** (min(weight_bits) - 1) - 1)
    moments = {name: observer.moments() for name, observer in observers.items()}
    measured: list[Choice] = []
    count = len(sites) + len(fold_sites) + len(logit_sites)
    if measure is not None and rule == "search":
        measured = _measure(model, plan, fold_sites, sites, moments, widths, source, measure, threads, max_memory)
        decided = {choice.tensor for choice in measured}
        sites = [site for site in sites if site.tensor not in decided]
        fold_sites = [site for site in fold_sites if site.tensor not in decided]
    folded = measured + _fold(model, plan, fold_sites, logit_sites, moments, widths)
    gains, added = _gain(model, rule, sites, moments, widths)
    chosen = [Choice(site.tensor, site.side, site.fold) for site in sites if site.tensor in gains]
    folded = [choice for choice in folded if choice.granularity != "layer"]
    return Granularity(count, (*chosen, *folded), added)


def _measure(
    model: Model,
    plan: Plan,
    folds: Sequence[FoldSite],
    gains: Sequence[GainSite],
    moments: Mapping[str, ChannelMoments],
    widths: _Widths,
    source: Source,
    measure: Measure,
    threads: int,
    max_memory: int | None,
) -> list[Choice]:
    """Choose the folds and the gains that an affine takes by measuring their best options, and write them."""
    nodes = {node.name: node for node in model.graph.nodes}
    candidates, hidden = [], {}
    for site in folds:
        values = _rounded_values(nodes[site.maker], plan, site, moments)
        candidates.append(fold_candidate(model, site, moments[site.tensor], *widths.most, values))
        hidden[site.tensor] = "both", _FOLDS[site.kind]
    for gain in gains:
        candidate = gain_candidate(model, gain, moments[gain.tensor], *widths.most)
        candidates += [candidate] if candidate else []
        hidden[gain.tensor] = gain.side, gain.fold
    found = measure.search(model, plan, source, candidates, threads, max_memory)
    return [
        Choice(name, *hidden[name], each.option.shift, each.option.granularity, each.before, each.after)
        for name, each in found.items()
    ]


def _channel_axes(
    model: Model, sites: Sequence[GainSite], fold_sites: Sequence[FoldSite], logit_sites: Sequence[LogitSite]
) -> dict[str, int]:
    """Tensors that are observed, and the axis of the channels of each."""
    nodes = {node.name: node for node in model.graph.nodes}
    axes = {site.tensor: site.axis for site in sites}
    for site in fold_sites:
        axes[site.tensor] = site.axis
        if site.kind == "values":
            maker = nodes[site.maker]
            axes[maker.outputs[0].name] = channel_axis(maker)
    for logits in logit_sites:
        axes |= {operand.tensor: operand.axis for operand in (logits.query, logits.key)}
    return axes


def _gain(
    model: Model, rule: GainRule, sites: Sequence[GainSite], moments: Mapping[str, ChannelMoments], widths: _Widths
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Choose and write the gains between neighbours; returns them and the nodes that must stay float."""
    levels, weight_max = widths.levels, widths.weight_max
    stats = {site.tensor: moments[site.tensor].shifted() for site in sites}
    if rule == "layer-norm":
        found = {site.tensor: norm_gain(moments[site.tensor], levels) for site in sites}
        shift_norms(model, sites, {name: shift for name, (_, shift) in found.items()})
        gains = {name: gain for name, (gain, _) in found.items()}
    elif rule == "smooth":
        gains = _smooth_gains(model, sites, stats, levels, weight_max)
    else:
        gains = choose_gains(model, sites, stats, levels=levels, weight_max=weight_max)
    makers = _makers(model, gains) if rule == "smooth" else ()
    return gains, (*apply_gains(model, sites, gains), *makers)


def _fold(
    model: Model,
    plan: Plan,
    sites: Sequence[FoldSite],
    logit_sites: Sequence[LogitSite],
    moments: dict[str, ChannelMoments],
    widths: _Widths,
) -> list[Choice]:
    """Choose all folds on the weights as they are, then write them."""
    logits = []
    for pair in logit_sites:
        found = choose_logit_fold(pair, moments[pair.query.tensor], moments[pair.key.tensor])
        if found is not None:
            logits.append((pair, *found))
            moments |= _after_logits(pair, *found, moments)
    folds, nodes = [], {node.name: node for node in model.graph.nodes}
    for site in sites:
        values = _rounded_values(nodes[site.maker], plan, site, moments)
        fold = choose_fold(model, site, moments[site.tensor], widths.levels, widths.weight_max, values)
        if fold is not None:
            folds.append((site, fold))
    for pair, gain, shift in logits:
        apply_logit_fold(model, pair, gain, shift)
    for site, fold in folds:
        apply_fold(model, site, fold)
    chosen = [Choice(site.tensor, "both", _FOLDS[site.kind], fold.shifts) for site, fold in folds]
    return chosen + [Choice(pair.key.tensor, "both", "logits", bool(shift.any())) for pair, _, shift in logits]


def _after_logits(
    site: LogitSite, gain: np.ndarray, shift: np.ndarray, moments: Mapping[str, ChannelMoments]
) -> dict[str, ChannelMoments]:
    """Moments of the tensors of queries and keys with the fold."""
    after: dict[str, ChannelMoments] = {}
    for operand, factor in ((site.query, 1 / gain), (site.key, gain)):
        rows = np.array(operand.rows)
        scale = np.where(rows >= 0, factor[rows], 1.0)
        before = after.get(operand.tensor, moments[operand.tensor])
        after[operand.tensor] = before.mapped(scale, shift if operand is site.key else np.zeros(len(rows)))
    return after


def _rounded_values(
    maker: gs.Node, plan: Plan, site: FoldSite, moments: Mapping[str, ChannelMoments]
) -> RoundedValues | None:
    """What is known of an attention's values, where they are rounded before its product."""
    tensor = maker.outputs[0].name
    if site.kind != "values" or tensor not in plan.activations:
        return None
    rows, all_rows = np.array(site.rows), moments[tensor]
    mine, others = all_rows.grouped(rows, site.groups), rows < 0
    stats = all_rows.shifted()
    rest = float(stats.high[others].max() - stats.low[others].min()) if others.any() else 0.0
    result = moments[site.tensor]
    kept = (result.power - np.square(result.mean)).sum() / max((mine.power - np.square(mine.mean)).sum(), 1e-12)
    return RoundedValues(mine, rest, float(min(kept, 1.0)))


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
