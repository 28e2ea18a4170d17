"""A streaming histogram: constant memory, one pass, and a result that depends on the data only.

Bin edges are multiples of a power-of-two width and 0 is always an edge, so that doubling the width merges pairs of
bins exactly. The histogram after any sequence of updates is therefore the one that a second pass with the final width
would give, whatever the order and the sizes of the updates.
"""

from __future__ import annotations

import numpy as np

from ..errors import CalibrationError, ConfigError

CHUNK = 65536  # values counted at a time: their scratch arrays stay in the cache
MIN_EXPONENT = -120  # the reciprocal of the width stays finite in float32


class Histogram:
    """Counts of values, one row of bins for the tensor or for each index of ``axis``.

    With ``h = bins / 2`` and ``width = 2**exponent``, bin ``i`` counts ``(i - h) * width <= x < (i - h + 1) * width``.
    The width is the smallest power of two with which the bins cover ``-max|x| .. max|x|``, so that it lies between
    ``max|x| / h`` and ``2 * max|x| / h``: this is the resolution error of everything that is read off the histogram.
    ``low`` and ``high`` are exact.

    Args:
        bins: Number of bins, a power of two from 16 to 65536.
        axis: None for one row, or the axis with one row per index.

    Attributes:
        low: Smallest value, float32 [C]; [1] when ``axis`` is None.
        high: Largest value, float32 [C].
        counts: int64 [C, bins].
        exponent: int64 [C], the binary logarithm of the bin width.
        size: Number of values in each row.
    """

    def __init__(self, bins: int = 8192, axis: int | None = None) -> None:
        if not (16 <= bins <= 65536 and bins & (bins - 1) == 0):
            raise ConfigError(f"bins must be a power of two from 16 to 65536, found {bins}")
        self.bins = bins
        self.axis = axis
        self.size = 0
        self.low = np.zeros(0, np.float32)
        self.high = np.zeros(0, np.float32)
        self.counts = np.zeros((0, bins), np.int64)
        self.exponent = np.zeros(0, np.int64)

    def update(self, values: np.ndarray) -> None:
        """Count ``values``, a float array of any shape; its size along ``axis`` must not change between calls.

        Raises:
            CalibrationError: A value is NaN or infinite, or the size along ``axis`` changed.
        """
        rows = _as_rows(values, self.axis)
        if not rows.size:
            return
        low, high = rows.min(axis=(0, 2)), rows.max(axis=(0, 2))
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise CalibrationError("NaN or Inf among the values")
        self._cover(low, high)
        self.size += rows.shape[0] * rows.shape[2]
        inverse = np.ldexp(np.float32(1), -self.exponent).astype(np.float32)
        for block in _blocks(rows, max(CHUNK, rows.shape[1] * self.bins // 4)):
            self._count(block, inverse)

    def _count(self, block: np.ndarray, inverse: np.ndarray) -> None:
        channels = block.shape[1]
        scaled = block * (inverse[0] if channels == 1 else inverse[:, None])
        np.floor(scaled, out=scaled)
        codes = scaled.astype(np.intp)
        codes += self.bins // 2 + (0 if channels == 1 else np.arange(channels)[:, None] * self.bins)
        counts = np.bincount(codes.reshape(-1), minlength=channels * self.bins)
        self.counts += counts.reshape(channels, self.bins)

    def _cover(self, low: np.ndarray, high: np.ndarray) -> None:
        """Widen the bins until they cover ``[low, high]``."""
        if not len(self.low):
            self.low, self.high = low.copy(), high.copy()
            self.counts = np.zeros((len(low), self.bins), np.int64)
            self.exponent = self._exponent_for(low, high)
            return
        if len(low) != len(self.low):
            raise CalibrationError(f"size along axis {self.axis} changed from {len(self.low)} to {len(low)}")
        np.minimum(self.low, low, out=self.low)
        np.maximum(self.high, high, out=self.high)
        growth = self._exponent_for(self.low, self.high) - self.exponent
        for step in np.unique(growth[growth > 0]):
            rows = growth == step
            self.counts[rows] = _merge_bins(self.counts[rows], int(step))
        self.exponent += growth

    def _exponent_for(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        _, exponent = np.frexp(np.maximum(-low, high))  # max|x| < 2**exponent, strictly
        half = self.bins.bit_length() - 2
        return np.maximum(exponent.astype(np.int64) - half, MIN_EXPONENT)

    @property
    def width(self) -> np.ndarray:
        """Bin widths, float64 [C]."""
        return np.ldexp(1.0, self.exponent)

    def centers(self, row: int = 0) -> np.ndarray:
        """Bin centers of one row, float64 [bins]."""
        return (np.arange(self.bins) - self.bins // 2 + 0.5) * self.width[row]

    def points(self, row: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Centers and counts of the bins of one row that are not empty, float64 and int64 [n]."""
        seen = self.counts[row] > 0
        return self.centers(row)[seen], self.counts[row][seen]

    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """Exact smallest and largest value: float32 scalars, or [C] when there is an axis.

        Raises:
            CalibrationError: Nothing was counted yet.
        """
        self._need_values()
        return (self.low, self.high) if self.axis is not None else (self.low[0], self.high[0])

    def percentile(self, percent: float) -> np.ndarray:
        """The value that ``percent`` % of the values do not exceed, off by less than one bin width.

        Args:
            percent: 0 to 100.

        Returns:
            float64 [C], interpolated inside the bin and kept within the exact extremes.

        Raises:
            CalibrationError: Nothing was counted yet.
            ConfigError: ``percent`` is outside 0 to 100.
        """
        if not 0 <= percent <= 100:
            raise ConfigError(f"a percentile must be 0 to 100, found {percent}")
        self._need_values()
        rank = percent / 100 * self.size
        found = np.empty(len(self.low))
        for row, counts in enumerate(self.counts):
            cumulative = np.cumsum(counts)
            index = min(int(np.searchsorted(cumulative, rank, side="left")), self.bins - 1)
            before = cumulative[index] - counts[index]
            fraction = np.clip((rank - before) / max(counts[index], 1), 0, 1)
            found[row] = (index - self.bins // 2 + fraction) * self.width[row]
        return np.clip(found, self.low, self.high)

    def _need_values(self) -> None:
        if not self.size:
            raise CalibrationError("no values were observed: the calibration data are empty")


def _as_rows(values: np.ndarray, axis: int | None) -> np.ndarray:
    """``values`` as contiguous float32 [outer, C, inner]; C is 1 when ``axis`` is None."""
    values = np.ascontiguousarray(values, np.float32)
    if axis is None:
        return values.reshape(1, 1, -1)
    if not -values.ndim <= axis < values.ndim:
        raise CalibrationError(f"axis {axis} does not exist in a tensor of shape {values.shape}")
    axis %= values.ndim
    shape = values.shape
    outer, inner = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1 :]))
    return values.reshape(outer, shape[axis], inner)


def _blocks(rows: np.ndarray, limit: int) -> list[np.ndarray]:
    """Cut [outer, C, inner] into pieces of about ``limit`` values, all views."""
    outer, channels, inner = rows.shape
    if outer * channels * inner <= limit:
        return [rows]
    if outer > 1:
        step = max(1, limit // (channels * inner))
        return [rows[i : i + step] for i in range(0, outer, step)]
    step = max(1, limit // channels)
    return [rows[:, :, i : i + step] for i in range(0, inner, step)]


def _merge_bins(counts: np.ndarray, doublings: int) -> np.ndarray:
    """Counts [C, bins] after the width doubled ``doublings`` times; bin edges stay aligned on 0."""
    channels, bins = counts.shape
    half = bins // 2
    doublings = min(doublings, half.bit_length() - 1)
    merged = np.zeros_like(counts)
    groups = counts.reshape(channels, bins >> doublings, 1 << doublings).sum(axis=2)
    start = half - (half >> doublings)
    merged[:, start : start + groups.shape[1]] = groups
    return merged
