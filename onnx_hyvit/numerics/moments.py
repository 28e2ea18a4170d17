"""Second moments of a layer's inputs, streamed.

x is the float input of a layer, ``x~`` what the quantized graph feeds it, ``dx = x~ - x``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import CalibrationError

_CHUNK = 8192  # positions unfolded at a time


@dataclass(frozen=True)
class ConvGeometry:
    """How a Conv reads its input ``[B, C, *space]``.

    Args:
        kernel: Window extents.
        strides: One per spatial axis.
        pads: All begins, then all ends, as the ONNX attribute.
        dilations: One per spatial axis.
        group: Number of groups.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int = 1

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial extents of the output."""
        rank = len(self.kernel)
        return tuple(
            (n + self.pads[axis] + self.pads[rank + axis] - (k - 1) * d - 1) // s + 1
            for axis, (n, k, d, s) in enumerate(zip(size, self.kernel, self.dilations, self.strides, strict=True))
        )


def weight_rows(weight: np.ndarray, group: int = 1) -> np.ndarray:
    """Conv weight ``[M, C/group, *kernel]``, or linear ``[out, in]``, as rows ``[group, M/group, C/group * taps]``."""
    return weight.reshape(group, weight.shape[0] // group, -1)


@dataclass(frozen=True)
class InputMoments:
    """Moments of a layer's inputs, float64; P = group, I = inputs of one output (channels of a group times taps).

    Args:
        gram: ``E[x~ x~^T]``, ``[P, I, I]``.
        cross: ``E[dx x~^T]``, ``[P, I, I]``.
        mean: ``E[x]``, ``[P, I]``.
        mean_quantized: ``E[x~]``, ``[P, I]``.
        weight: Sum of the position weights (their number, if not weighted).
    """

    gram: np.ndarray
    cross: np.ndarray
    mean: np.ndarray
    mean_quantized: np.ndarray
    weight: float

    @property
    def centred_gram(self) -> np.ndarray:
        """Covariance of ``x~``: what is left of the Gram matrix when the bias is corrected afterwards."""
        return self.gram - self.mean_quantized[..., :, None] * self.mean_quantized[..., None, :]

    @property
    def centred_cross(self) -> np.ndarray:
        """Covariance of dx and ``x~``."""
        shift = self.mean_quantized - self.mean
        return self.cross - shift[..., :, None] * self.mean_quantized[..., None, :]

    def without(self, unread: np.ndarray) -> InputMoments:
        """The same with the inputs ``unread`` (bool [P, I]) always 0: what is fitted then does not read them."""
        keep = ~unread
        both = keep[..., :, None] & keep[..., None, :]
        means = self.mean * keep, self.mean_quantized * keep
        return InputMoments(self.gram * both, self.cross * both, *means, self.weight)


class GramAccumulator:
    """Streams inputs of one layer into their moments; memory does not depend on the number of samples.

    Products of a chunk of positions have the precision of the inputs, about an origin near their mean so that a small
    variance beside a large mean is not lost; sums over chunks are float64.

    Args:
        geometry: How a Conv reads its input; None for a linear layer, whose inputs are the last axis.
        max_positions: Output positions used of each update, drawn at random; None uses all.
        seed: Seed of the draw.
    """

    def __init__(
        self, geometry: ConvGeometry | None = None, *, max_positions: int | None = None, seed: int = 0
    ) -> None:
        self.geometry = geometry
        self.max_positions = max_positions
        self._rng = np.random.default_rng(seed)
        self._sums: list[np.ndarray] = []
        self._origin: np.ndarray | None = None
        self._weight = 0.0

    def update(
        self, x: np.ndarray, x_quantized: np.ndarray | None = None, position_weight: np.ndarray | None = None
    ) -> None:
        """Add a batch.

        Args:
            x: Float input, ``[B, C, *space]`` for a Conv or ``[..., in]``.
            x_quantized: What the quantized graph feeds, same shape; x when None.
            position_weight: Weight of each output position, ``[B, *output space]`` for a Conv or ``[...]``; mean
                squared gradients of the layer's output over channels, for instance.

        Raises:
            CalibrationError: The shapes differ.
        """
        if x_quantized is not None and x_quantized.shape != x.shape:
            raise CalibrationError(f"inputs {x.shape} and quantized inputs {x_quantized.shape} differ in shape")
        counts = self._output_shape(x.shape)
        if position_weight is not None and tuple(position_weight.shape) != counts:
            raise CalibrationError(f"expected position weights of shape {counts}, found {position_weight.shape}")
        total = int(np.prod(counts))
        chosen = np.arange(total)
        if self.max_positions is not None and total > self.max_positions:
            chosen = np.sort(self._rng.choice(total, self.max_positions, replace=False))
        for start in range(0, len(chosen), _CHUNK):
            part = chosen[start : start + _CHUNK]
            weights = None if position_weight is None else position_weight.reshape(-1)[part].astype(x.dtype)
            rows = self._unfold(x, part, counts)
            quantized = rows if x_quantized is None else self._unfold(x_quantized, part, counts)
            self._add(rows, quantized, weights, x_quantized is None)

    @property
    def seen(self) -> bool:
        """Whether anything was added."""
        return self._weight > 0

    def result(self) -> InputMoments:
        """The moments so far.

        Raises:
            CalibrationError: Nothing was added.
        """
        if not self.seen:
            raise CalibrationError("no inputs were collected for the second moments of a layer")
        gram, cross, change, mean = (array / self._weight for array in self._sums)
        assert self._origin is not None
        origin = self._origin.astype(np.float64)
        gram = gram + origin[..., :, None] * mean[..., None, :] + mean[..., :, None] * origin[..., None, :]
        gram += origin[..., :, None] * origin[..., None, :]
        cross = cross + change[..., :, None] * origin[..., None, :]
        mean_quantized = origin + mean
        return InputMoments(gram, cross, mean_quantized - change, mean_quantized, self._weight)

    def _output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.geometry is None:
            return shape[:-1]
        return (shape[0], *self.geometry.output_size(shape[2:]))

    def _unfold(self, x: np.ndarray, positions: np.ndarray, counts: tuple[int, ...]) -> np.ndarray:
        """Inputs of the given output positions, ``[P, positions, I]``."""
        if self.geometry is None:
            return x.reshape(-1, x.shape[-1])[positions][None]
        how = self.geometry
        rank = len(how.kernel)
        where = np.unravel_index(positions, counts)
        taps = []
        for tap in np.ndindex(*how.kernel):
            inside = np.ones(len(positions), bool)
            index = []
            for axis in range(rank):
                place = where[1 + axis] * how.strides[axis] - how.pads[axis] + tap[axis] * how.dilations[axis]
                inside &= (place >= 0) & (place < x.shape[2 + axis])
                index.append(np.clip(place, 0, x.shape[2 + axis] - 1))
            taps.append(x[(where[0], slice(None), *index)] * inside[:, None])
        stacked = np.stack(taps, axis=-1)  # [positions, C, taps]
        grouped = stacked.reshape(len(positions), how.group, -1)
        return np.ascontiguousarray(grouped.swapaxes(0, 1))

    def _add(self, rows: np.ndarray, quantized: np.ndarray, weights: np.ndarray | None, same: bool) -> None:
        if self._origin is None:
            self._origin = quantized.mean(axis=-2)
        change = np.zeros((), rows.dtype) if same else quantized - rows
        centred = quantized - self._origin[:, None, :]
        weighted = centred if weights is None else centred * weights[:, None]
        gram = centred.swapaxes(-1, -2) @ weighted
        cross = np.zeros_like(gram) if same else change.swapaxes(-1, -2) @ weighted
        ones = np.ones(rows.shape[-2], rows.dtype) if weights is None else weights
        shift = np.zeros_like(self._origin) if same else ones @ change
        parts = [part.astype(np.float64) for part in (gram, cross, shift, ones @ centred)]
        self._sums = parts if not self._sums else [old + new for old, new in zip(self._sums, parts, strict=True)]
        self._weight += float(ones.sum(dtype=np.float64))


def merge_moments(parts: Sequence[InputMoments]) -> InputMoments:
    """Moments of the union of disjoint sets of samples."""
    total = sum(part.weight for part in parts)

    def mean(name: str) -> np.ndarray:
        return sum(getattr(part, name) * (part.weight / total) for part in parts)

    return InputMoments(mean("gram"), mean("cross"), mean("mean"), mean("mean_quantized"), total)
