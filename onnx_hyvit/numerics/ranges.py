"""From what was observed of a tensor to the range that its codes cover.

An *observer* has ``update(values)`` and constant memory. ``MinMax`` and ``MovingAverage`` also have
``update_range(low, high)``, so that the extremes can be reduced where the tensor is made and need not be fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from ..errors import CalibrationError, ConfigError
from .affine import QParams, QuantSpec, fake_quantize, qparams_from_range
from .entropy import entropy_threshold
from .histogram import Histogram

RangeName = Literal["minmax", "average", "percentile", "mse", "entropy"]
RANGE_NAMES: tuple[str, ...] = ("minmax", "average", "percentile", "mse", "entropy")


class Observer(Protocol):
    """Sees every batch of one tensor; its memory does not grow with their number."""

    axis: int | None

    def update(self, values: np.ndarray) -> None:
        """Take in a batch of the tensor, float, any shape."""

    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """Low and high: float32 scalars, or [C] when ``axis`` is set."""


class MinMax:
    """Exact smallest and largest value, of the tensor or of each index of ``axis``."""

    def __init__(self, axis: int | None = None) -> None:
        self.axis = axis
        self.low: np.ndarray | None = None
        self.high: np.ndarray | None = None

    def update(self, values: np.ndarray) -> None:
        """Take in a batch of the tensor."""
        if values.size:
            self.update_range(*extremes(values, self.axis))

    def update_range(self, low: np.ndarray, high: np.ndarray) -> None:
        """Take in the extremes of a batch, scalars or [C].

        Raises:
            CalibrationError: One is NaN or infinite, or C changed.
        """
        low, high = self._checked(low, high)
        if self.low is None or self.high is None:
            self.low, self.high = low, high
        else:
            self.low, self.high = self._combined(self.low, self.high, low, high)

    def _combined(
        self, low: np.ndarray, high: np.ndarray, new_low: np.ndarray, new_high: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return np.minimum(low, new_low), np.maximum(high, new_high)

    def _checked(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise CalibrationError("NaN or Inf among the values")
        if self.low is not None and self.low.shape != low.shape:
            raise CalibrationError(f"size along axis {self.axis} changed from {self.low.shape} to {low.shape}")
        return low, high

    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """Low and high.

        Raises:
            CalibrationError: Nothing was observed.
        """
        if self.low is None or self.high is None:
            raise CalibrationError("no values were observed: the calibration data are empty")
        return self.low, self.high


class MovingAverage(MinMax):
    """Exponential average of the extremes of the batches: ``low += momentum * (batch_low - low)``.

    The result depends on the order and the size of the batches, as it does wherever this method is offered.

    Args:
        axis: As in ``MinMax``.
        momentum: Weight of the newest batch, above 0 and at most 1.
    """

    def __init__(self, axis: int | None = None, momentum: float = 0.1) -> None:
        if not 0 < momentum <= 1:
            raise ConfigError(f"momentum must be above 0 and at most 1, found {momentum}")
        super().__init__(axis)
        self.momentum = np.float32(momentum)

    def _combined(
        self, low: np.ndarray, high: np.ndarray, new_low: np.ndarray, new_high: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return low + self.momentum * (new_low - low), high + self.momentum * (new_high - high)


@dataclass(frozen=True)
class RangeMethod:
    """How the range of an activation is chosen.

    Args:
        name: ``minmax``, ``average`` (moving), ``percentile``, ``mse`` (smallest squared error of the codes) or
            ``entropy`` (smallest KL divergence, as TensorRT does).
        percentile: Percent of the values that stay inside the range, half of the others on either side; above 50.
        momentum: For ``average``.
        bins: Bins of the histogram behind the last three names.
    """

    name: RangeName = "minmax"
    percentile: float = 99.999
    momentum: float = 0.1
    bins: int = 8192

    def __post_init__(self) -> None:
        if self.name not in RANGE_NAMES:
            raise ConfigError(f"range method must be one of {', '.join(RANGE_NAMES)}, found {self.name!r}")
        if not 50 < self.percentile <= 100:
            raise ConfigError(f"percentile must be above 50 and at most 100, found {self.percentile}")
        self.observer()

    def observer(self, axis: int | None = None) -> MinMax | Histogram:
        """A fresh observer that gathers what this method needs."""
        if self.name == "minmax":
            return MinMax(axis)
        if self.name == "average":
            return MovingAverage(axis, self.momentum)
        return Histogram(self.bins, axis)

    def range(self, observer: Observer, spec: QuantSpec) -> tuple[np.ndarray, np.ndarray]:
        """Low and high for codes of ``spec``: scalars, or [C] when the observer has an axis.

        A histogram serves every method but ``average``; ``MinMax`` serves ``minmax`` only.

        Raises:
            ConfigError: The observer did not gather what the method needs.
            CalibrationError: The observer saw nothing.
        """
        if self.name in ("minmax", "average"):
            return observer.range()
        if not isinstance(observer, Histogram):
            raise ConfigError(f"range method {self.name} needs a Histogram, found {type(observer).__name__}")
        if self.name == "percentile":
            return percentile_range(observer, self.percentile)
        return mse_range(observer, spec) if self.name == "mse" else entropy_range(observer, spec)

    def qparams(self, observer: Observer, spec: QuantSpec) -> QParams:
        """Scale and zero point for ``spec``; the axis of the observer must be that of ``spec``."""
        if observer.axis != spec.axis:
            raise ConfigError(f"observed along axis {observer.axis}, but the codes have axis {spec.axis}")
        return qparams_from_range(*self.range(observer, spec), spec)


def extremes(values: np.ndarray, axis: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value of a non-empty array: scalars, or [C] along ``axis``."""
    if axis is None:
        return values.min(), values.max()
    others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
    return values.min(axis=others), values.max(axis=others)


def percentile_range(histogram: Histogram, percentile: float) -> tuple[np.ndarray, np.ndarray]:
    """The interval that holds ``percentile`` % of the values, half of the others on either side, within a bin width."""
    tail = (100.0 - percentile) / 2
    low, high = histogram.percentile(tail), histogram.percentile(100.0 - tail)
    return _shaped(low, high, histogram)


def mse_range(histogram: Histogram, spec: QuantSpec, steps: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """The range whose codes have the smallest mean squared error over the histogram.

    Both ends shrink together from the exact extremes first, then each end alone; the error of a candidate is that of
    the real codes at the bin centers, so rounding of the zero point is part of it. The full range is a candidate.

    Args:
        histogram: What was observed.
        spec: Codes; its axis is that of the histogram.
        steps: Candidates in each of the passes.

    Returns:
        Low and high, scalars or [C].
    """
    exact_low, exact_high = (np.atleast_1d(end).astype(np.float64) for end in histogram.range())
    low, high = np.minimum(exact_low, 0.0), np.maximum(exact_high, 0.0)
    row_spec = QuantSpec(spec.bits, spec.signed, spec.symmetric, 0, spec.narrow)
    for row in range(len(low)):
        used = np.flatnonzero(histogram.counts[row])
        centers = histogram.centers(row)[used].astype(np.float32)
        weights = histogram.counts[row][used] / histogram.size
        low[row], high[row] = _best_range(low[row], high[row], centers, weights, row_spec, steps)
    return _shaped(low, high, histogram)


def _best_range(
    low: float, high: float, centers: np.ndarray, weights: np.ndarray, spec: QuantSpec, steps: int
) -> tuple[float, float]:
    if low == high:
        return low, high
    coarse = np.geomspace(1.0, 1 / 64, steps)
    low, high = _least_error(low * coarse, high * coarse, centers, weights, spec)
    for spread in (0.35, 0.06):
        fine = np.concatenate([[1.0], np.linspace(1 - spread, 1 + spread, steps)])
        same = np.ones_like(fine)
        if spec.symmetric:
            low, high = _least_error(low * fine, high * fine, centers, weights, spec)
            continue
        low, high = _least_error(low * fine, high * same, centers, weights, spec)
        low, high = _least_error(low * same, high * fine, centers, weights, spec)
    return low, high


def _least_error(
    low: np.ndarray, high: np.ndarray, centers: np.ndarray, weights: np.ndarray, spec: QuantSpec
) -> tuple[float, float]:
    """The candidate (low[k], high[k]) with the least error; the first of equals."""
    qparams = qparams_from_range(low, high, spec)
    error = fake_quantize(np.broadcast_to(centers, (len(low), len(centers))), qparams) - centers
    best = int(np.argmin(np.square(error) @ weights))
    return float(low[best]), float(high[best])


def entropy_range(histogram: Histogram, spec: QuantSpec) -> tuple[np.ndarray, np.ndarray]:
    """The range ``[-t, t]``, cut at the exact extremes, whose codes keep the most of the distribution of ``|x|``.

    Source: TensorRT's entropy calibration (S. Migacz, "8-bit inference with TensorRT", GTC 2017): the threshold with
    the smallest KL divergence between the clipped distribution and its version with one level per code.
    """
    exact_low, exact_high = (np.atleast_1d(end).astype(np.float64) for end in histogram.range())
    levels = 2 ** (spec.bits - 1)
    half = histogram.bins // 2
    thresholds = np.empty_like(exact_low)
    for row, counts in enumerate(histogram.counts):
        folded = counts[half:] + counts[:half][::-1]
        thresholds[row] = entropy_threshold(folded, levels) * histogram.width[row]
    return _shaped(np.maximum(exact_low, -thresholds), np.minimum(exact_high, thresholds), histogram)


def _shaped(low: np.ndarray, high: np.ndarray, histogram: Histogram) -> tuple[np.ndarray, np.ndarray]:
    low, high = low.astype(np.float32), high.astype(np.float32)
    return (low, high) if histogram.axis is not None else (low[0], high[0])
