"""The threshold with the smallest KL divergence, over a histogram of absolute values."""

from __future__ import annotations

import numpy as np

CANDIDATES = 128


def entropy_threshold(counts: np.ndarray, levels: int, candidates: int = CANDIDATES) -> int:
    """Number of leading bins that the codes should cover.

    For a threshold of ``n`` bins, the reference P is the first ``n`` bins with everything beyond added to the last;
    Q spreads the same bins over ``levels`` equal groups, evenly within a group over the bins that are not empty.

    Args:
        counts: Histogram of ``|x|`` from 0, integers [bins].
        levels: Number of levels of the codes on one side of 0.
        candidates: Thresholds tried, evenly spaced.

    Returns:
        The best ``n``, 1 to the last bin in use; the largest of equals.
    """
    used = np.flatnonzero(counts)
    last = int(used[-1]) + 1 if len(used) else 1
    first = min(levels, last)
    sizes = np.unique(np.linspace(first, last, candidates).astype(int))[::-1]
    divergences = [_divergence(counts, int(size), levels) for size in sizes]
    return int(sizes[int(np.argmin(divergences))])


def _divergence(counts: np.ndarray, size: int, levels: int) -> float:
    inside = counts[:size].astype(np.float64)
    reference = inside.copy()
    reference[-1] += counts[size:].sum()
    group = np.arange(size) * min(levels, size) // size
    filled = inside > 0
    mass = np.bincount(group, inside)
    width = np.maximum(np.bincount(group, filled), 1)
    spread = np.where(filled, (mass / width)[group], 0.0)
    total = spread.sum()
    if not total:
        return np.inf
    p, q = reference / reference.sum(), spread / total
    # a bin that only the clipped tail fills has q = 0: a floor keeps its divergence large but finite
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))))
