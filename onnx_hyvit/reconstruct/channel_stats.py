"""Statistics of an activation's channels, streamed over calibration data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ChannelStats:
    """What is known of an activation's channels: float64 [C] each.

    Args:
        low: Smallest value, at most 0.
        high: Largest value, at least 0.
        power: Mean square.
    """

    low: np.ndarray
    high: np.ndarray
    power: np.ndarray


@dataclass(frozen=True)
class ChannelMoments:
    """What is known of a tensor's channels, as they are: float64 [C] each.

    Args:
        low: Smallest value.
        high: Largest value.
        mean: Mean.
        power: Mean square.
    """

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    power: np.ndarray

    def shifted(self, shift: np.ndarray | float = 0.0) -> ChannelStats:
        """Statistics of the values minus ``shift`` (float64 [C])."""
        power = np.maximum(self.power - 2 * self.mean * shift + np.square(shift), 0)
        return ChannelStats(np.minimum(self.low - shift, 0), np.maximum(self.high - shift, 0), power)

    def expected(self, deviations: float) -> ChannelMoments:
        """Moments with the extremes to expect of other samples than those seen.

        They are ``deviations`` standard deviations from the mean, but at most one further out than what was seen: a
        channel's extremes over few samples are too near, and channels that fill the codes by them clip all the others.
        """
        deviation = np.sqrt(np.maximum(self.power - np.square(self.mean), 0))
        low = np.maximum(self.low - deviation, self.mean - deviations * deviation)
        high = np.minimum(self.high + deviation, self.mean + deviations * deviation)
        return ChannelMoments(low, high, self.mean, self.power)

    def mapped(self, scale: np.ndarray, shift: np.ndarray) -> ChannelMoments:
        """Moments of ``(x - shift) * scale``, with ``scale`` above 0; float64 [C] each."""
        power = self.shifted(shift).power * np.square(scale)
        low, high, mean = ((values - shift) * scale for values in (self.low, self.high, self.mean))
        return ChannelMoments(low, high, mean, power)

    def grouped(self, groups: np.ndarray, count: int) -> ChannelMoments:
        """Moments of ``count`` groups of channels; ``groups`` [C] has -1 where a channel is in none."""
        members = [np.flatnonzero(groups == group) for group in range(count)]
        return ChannelMoments(
            np.array([self.low[rows].min() for rows in members]),
            np.array([self.high[rows].max() for rows in members]),
            np.array([self.mean[rows].mean() for rows in members]),
            np.array([self.power[rows].mean() for rows in members]),
        )


class ChannelObserver:
    """Streams the statistics of one tensor's channels; memory [C]."""

    def __init__(self, axis: int) -> None:
        self.axis: int | None = axis
        self._axis = axis
        self.count = 0
        self._low: np.ndarray | None = None
        self._high: np.ndarray | None = None
        self._power: np.ndarray | None = None
        self._sum: np.ndarray | None = None

    def update(self, values: np.ndarray) -> None:
        """Take in a batch of the tensor, any shape with the channels on ``axis``."""
        rows = np.moveaxis(values, self._axis, 0).reshape(values.shape[self._axis], -1)
        low, high = rows.min(1).astype(np.float64), rows.max(1).astype(np.float64)
        power, total = np.einsum("ij,ij->i", rows, rows, dtype=np.float64), rows.sum(1, dtype=np.float64)
        if self._low is None or self._high is None or self._power is None or self._sum is None:
            self._low, self._high, self._power, self._sum = low, high, power, total
        else:
            self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
            self._power, self._sum = self._power + power, self._sum + total
        self.count += rows.shape[1]

    def stats(self) -> ChannelStats:
        """Statistics over all batches seen; at least one."""
        return self.moments().shifted()

    def moments(self) -> ChannelMoments:
        """Moments over all batches seen; at least one."""
        assert self._low is not None and self._high is not None and self._power is not None and self._sum is not None
        return ChannelMoments(self._low, self._high, self._sum / self.count, self._power / self.count)
