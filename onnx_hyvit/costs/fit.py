"""Fit what a family of kernels costs: a fixed time and a time per unit of work, none of them negative."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from .kernels import Work
from .profile import Kernel

_ROUNDS = 8
_HUBER = 0.15


def fit_kernel(work: Sequence[Work], microseconds: Sequence[float]) -> Kernel:
    """Coefficients of least relative error over measured calls.

    Non-negative least squares on ``(predicted - measured) / measured``, with Huber weights (a call that another process
    disturbed counts little). Every subset of the six coefficients is tried, so the answer is exact and the same each
    time.

    Args:
        work: What each measured call did, at least one.
        microseconds: What it took; above 0.

    Returns:
        The kernel's coefficients, with its median relative error.
    """
    times = np.maximum(np.asarray(microseconds, np.float64), 0.5)
    columns = np.array([item.values() for item in work], np.float64) / times[:, None]
    weights = np.ones(len(times))
    best = np.zeros(columns.shape[1])
    for _ in range(_ROUNDS):
        best = _non_negative(columns, weights)
        error = np.abs(columns @ best - 1.0)
        weights = np.minimum(1.0, _HUBER / np.maximum(error, 1e-9))
    error = np.abs(columns @ best - 1.0)
    fixed, mac, read, written, weight, gathered = (float(value) for value in best)
    return Kernel(
        fixed_us=fixed,
        ns_per_mac=1e3 * mac,
        ns_per_read=1e3 * read,
        ns_per_written=1e3 * written,
        ns_per_weight=1e3 * weight,
        ns_per_gathered=1e3 * gathered,
        median_error=float(np.median(error)),
        calls=len(times),
    )


def _non_negative(columns: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Non-negative ``c`` of least ``sum(weights * (columns @ c - 1)^2)``; few columns, so all subsets are tried."""
    count = columns.shape[1]
    root = np.sqrt(weights)
    scale = np.maximum(np.abs(columns).max(axis=0), 1e-300)
    rows, target = columns / scale * root[:, None], root
    best, least = np.zeros(count), float(target @ target)
    for size in range(1, min(count, len(rows)) + 1):
        for chosen in combinations(range(count), size):
            part = rows[:, chosen]
            if not np.abs(part).max(axis=0).all():
                continue
            found = np.linalg.lstsq(part, target, rcond=None)[0]
            rest = part @ found - target
            if (found >= 0).all() and float(rest @ rest) < least * (1 - 1e-9):
                least = float(rest @ rest)
                best = np.zeros(count)
                best[list(chosen)] = found
    return best / scale
