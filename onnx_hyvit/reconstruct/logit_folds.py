"""Choose the gains and shifts of ``logit_sites`` by their expected error, and write them, exactly and at no node."""

from __future__ import annotations

import numpy as np

from ..graph import Model
from ..graph.linear import scale_outputs
from .channel_stats import ChannelMoments, ChannelStats
from .folds import ChannelFold, centred, deviations, divide_rows, largest
from .gains import WORTH
from .logit_sites import LogitSite, Operand

EXPONENTS = ((0.25, 0.25), (0.5, 0.5), (0.5, 0.0), (0.0, 0.5), (1.0, 0.0), (0.0, 1.0))


def choose_logit_fold(
    site: LogitSite, query: ChannelMoments, key: ChannelMoments
) -> tuple[np.ndarray, np.ndarray] | None:
    """Gain of each group and shift of each of the key's rows, of least expected error of the logits.

    A rounded query channel with step s adds ``s^2 / 12`` times the variance of the key's over tokens, and a key channel
    that times the query's power. Where both are rows of one tensor they have one step.

    Args:
        site: The site.
        query: Moments of the query's tensor, [C].
        key: Those of the key's.

    Returns:
        Gain float64 [groups], and shift float64 [output channels of the key's maker]; None when the error does not fall
        by 5 %.
    """
    asked, held = np.array(site.query.rows), np.array(site.key.rows)
    query, key = query.expected(deviations(255)), key.expected(deviations(255))
    shift = np.where(held >= 0, key.mean, 0.0) if site.shift else np.zeros(len(held))
    count = site.groups
    left, right = query.shifted(), [key.shifted(), key.shifted(shift)]
    variance = np.maximum(key.power - np.square(key.mean), 0)
    reach_q = largest(np.maximum(left.high, -left.low), asked, count)
    best, least = None, WORTH["affine"] * _logit_error(site, left, right[0], variance, np.ones(count))
    for stats, moved in zip(right, (np.zeros_like(shift), shift), strict=True):
        reach_k = largest(np.maximum(stats.high, -stats.low), held, count)
        candidates = [np.ones(count)]
        candidates += [reach_q**up / np.maximum(reach_k, 1e-12) ** down for up, down in EXPONENTS]
        for gain in map(centred, candidates):
            error = _logit_error(site, left, stats, variance, gain)
            if error < least:
                best, least = (gain, moved), error
    return best


def _logit_error(
    site: LogitSite, query: ChannelStats, key: ChannelStats, variance: np.ndarray, gain: np.ndarray
) -> float:
    """Expected squared error of the logits up to a factor, see ``choose_logit_fold``."""
    sides = ((site.query, query, gain), (site.key, key, 1 / gain))
    low, high = [], []
    for operand, stats, divisor in sides:
        rows = np.array(operand.rows)
        used = rows >= 0
        low.append((stats.low[used] / divisor[rows[used]]).min())
        high.append((stats.high[used] / divisor[rows[used]]).max())
    steps = np.array(high) - np.array(low)
    if site.query.tensor == site.key.tensor:
        steps[:] = max(high) - min(low)
    total, count = 0.0, site.groups
    others = (_sum(variance, site.key, count), _sum(query.power, site.query, count))
    for (operand, _, divisor), step, other in zip(sides, steps, others, strict=True):
        members = np.bincount(np.array(operand.rows)[np.array(operand.rows) >= 0], minlength=count)
        if operand.rounded:
            total += float((np.square(step * divisor) * members) @ other)
    return total


def _sum(values: np.ndarray, operand: Operand, count: int) -> np.ndarray:
    rows = np.array(operand.rows)
    return np.bincount(rows[rows >= 0], weights=values[rows >= 0], minlength=count)


def apply_logit_fold(model: Model, site: LogitSite, gain: np.ndarray, shift: np.ndarray) -> None:
    """Write a gain per group and a shift per row of the key's maker into the float model, whose outputs stay.

    Args:
        model: Model to edit.
        site: A site of it.
        gain: Float64 [groups].
        shift: Float64 [output channels of the key's maker].
    """
    graph, nodes = model.graph, {node.name: node for node in model.graph.nodes}
    divide_rows(graph, nodes[site.query.maker], np.array(site.query.rows), ChannelFold(gain, np.zeros_like(gain)))
    rows = np.array(site.key.rows)
    factors = np.where(rows >= 0, gain[rows], 1.0)
    moved = -shift * factors if shift.any() else None
    scale_outputs(graph, nodes[site.key.maker], factors, moved)
