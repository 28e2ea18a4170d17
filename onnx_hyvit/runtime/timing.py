"""Latency of sessions against each other."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
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


@dataclass(frozen=True)
class Ratio:
    """Median of paired ratios with its 95 % confidence interval, from order statistics (no assumption on noise)."""

    median: float
    low: float
    high: float


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
    return {name: summarise(taken) for name, taken in take_turns(sessions, feeds, runs, warmup).items()}


def take_turns(
    sessions: Mapping[str, Session],
    feeds: Mapping[str, np.ndarray],
    runs: int = 50,
    warmup: int = 5,
    seconds: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
    """Run sessions in turns, and return every latency.

    Args:
        sessions: Name to session; all take the same feeds.
        feeds: One batch.
        runs: Timed runs of each session at most, 1 or more.
        warmup: Runs before that.
        seconds: Stop after the turn in which the timed runs have taken this long.
        clock: Seconds; ``time.process_time`` measures single-threaded sessions on a busy machine.

    Returns:
        Session name to milliseconds, one per turn: equal places of two sessions were run next to each other.
    """
    if runs < 1:
        raise ConfigError(f"runs must be 1 or more, found {runs}")
    order = list(sessions)
    shuffle = random.Random(0).shuffle
    taken: dict[str, list[float]] = {name: [] for name in order}
    begin = time.perf_counter()
    for turn in range(-warmup, runs):
        shuffle(order)
        if turn == 0:
            begin = time.perf_counter()
        for name in order:
            start = clock()
            sessions[name].run(feeds)
            if turn >= 0:
                taken[name].append((clock() - start) * 1e3)
        if turn >= 0 and time.perf_counter() - begin > seconds:
            break
    return {name: np.array(taken[name]) for name in sessions}


def summarise(taken: np.ndarray) -> Timing:
    """Median and percentiles of latencies in milliseconds."""
    p10, p90 = np.percentile(taken, [10, 90])
    return Timing(float(statistics.median(taken)), float(p10), float(p90), len(taken))


def paired_ratio(above: np.ndarray, below: np.ndarray) -> Ratio:
    """How many times longer ``above`` takes than ``below``, run for run.

    The interval is that of the median of the ratios, between two order statistics: with ``n`` ratios, ranks
    ``n / 2 -+ 1.96 sqrt(n) / 2`` hold the true median in 95 % of all cases, whatever the noise looks like.

    Args:
        above: Latencies of one session, one per turn.
        below: Latencies of the other in the same turns.
    """
    if len(above) != len(below) or not len(above):
        raise ConfigError(f"paired latencies must be equally many, found {len(above)} and {len(below)}")
    ratios = np.sort(np.asarray(above, np.float64) / np.asarray(below, np.float64))
    count = len(ratios)
    reach = 1.96 * math.sqrt(count) / 2
    low = max(0, math.floor(count / 2 - reach))
    high = min(count - 1, math.ceil(count / 2 + reach))
    return Ratio(float(np.median(ratios)), float(ratios[low]), float(ratios[high]))
