"""Latency of sessions against each other."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from .session import Session


@dataclass(frozen=True)
class Timing:
    """Latencies of one session in milliseconds: median, 10th and 90th percentile of ``runs`` runs."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int


def benchmark(
    sessions: Mapping[str, Session], feeds: Mapping[str, np.ndarray], runs: int = 50, warmup: int = 5
) -> dict[str, Timing]:
    """Time sessions against each other: they take turns, so that a drift of the machine hits all of them alike.

    The order is shuffled in every turn (with a seed): one that always ran behind a slow session would find cold caches.

    Args:
        sessions: Name to session; all take the same feeds.
        feeds: One batch.
        runs: Timed runs of each session, 1 or more.
        warmup: Runs before that.

    Returns:
        Session name to its timing.
    """
    if runs < 1:
        raise ConfigError(f"runs must be 1 or more, found {runs}")
    order = list(sessions)
    shuffle = random.Random(0).shuffle
    taken: dict[str, list[float]] = {name: [] for name in order}
    for turn in range(-warmup, runs):
        shuffle(order)
        for name in order:
            start = time.perf_counter()
            sessions[name].run(feeds)
            if turn >= 0:
                taken[name].append((time.perf_counter() - start) * 1e3)
    return {name: _timing(taken[name]) for name in sessions}


def _timing(taken: list[float]) -> Timing:
    p10, p90 = np.percentile(taken, [10, 90])
    return Timing(statistics.median(taken), float(p10), float(p90), len(taken))
