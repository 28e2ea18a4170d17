"""Where error enters: the error that the operator of each quantized tensor adds by itself, and the range it covers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .. import calibration as calib
from ..calibration.inputs import fixed_batch
from ..runtime import Progress
from ..scores import ErrorMeter
from .pairs import ActivationPair, GraphIndex
from .switches import WEIGHTS, Switchable, SwitchSession

SAMPLES = 8
_SPATIAL = frozenset({"Conv", "ConvTranspose", "GlobalAveragePool", "AveragePool", "MaxPool", "BatchNormalization"})
_THROUGH = frozenset({"QuantizeLinear", "DequantizeLinear", "Clip", "Sigmoid", "Mul", "Add", "Relu", "Where"})


@dataclass
class TensorError:
    """One quantized tensor over the samples.

    Args:
        pair: The tensor and its range of codes.
        block: Number of the block that it belongs to.
        operator: What makes it.
        entering: Error of the tensor when its operator gets float inputs: what its weights and its rounding add.
        by_weights: The same without the rounding of the tensor.
        total: Error in the int8 model.
        low: Smallest value of each channel in the float model, float64 [C].
        high: Largest value of each channel.
        clipped: Number of values outside of the range.
        clip_noise: Squared error that the clipping of these values makes.
        count: Number of values.
    """

    pair: ActivationPair
    block: int
    operator: str
    entering: ErrorMeter = field(default_factory=ErrorMeter)
    by_weights: ErrorMeter = field(default_factory=ErrorMeter)
    total: ErrorMeter = field(default_factory=ErrorMeter)
    low: np.ndarray = field(default_factory=lambda: np.zeros(0))
    high: np.ndarray = field(default_factory=lambda: np.zeros(0))
    clipped: int = 0
    clip_noise: float = 0.0
    count: int = 0

    def see_values(self, values: np.ndarray, axis: int) -> None:
        """Take in what the float model has there."""
        exact = values.astype(np.float64)
        rows = np.moveaxis(exact, axis, 0).reshape(exact.shape[axis], -1) if exact.ndim else exact.reshape(1, 1)
        low, high = rows.min(axis=1), rows.max(axis=1)
        if self.low.shape == low.shape:
            low, high = np.minimum(low, self.low), np.maximum(high, self.high)
        self.low, self.high = low, high
        bottom, top = float(self.pair.low.min()), float(self.pair.high.max())
        beyond = exact - np.clip(exact, bottom, top)
        half_step = (top - bottom) / max(1, self.pair.levels - 1) / 2  # closer to the end code than rounding is
        outside = np.abs(beyond) > half_step
        self.clipped += int(outside.sum())
        self.clip_noise += float(np.square(beyond[outside]).sum())
        self.count += exact.size


def measure_tensors(
    model: Switchable, source: calib.Source, *, threads: int = 1, progress: Progress | None = None
) -> list[TensorError]:
    """Errors and ranges of every quantized activation that is rounded on its own, over a few samples.

    Args:
        model: The switchable int8 model.
        source: Data; the first samples are used.
        threads: Threads of the sessions.
        progress: Called as ``progress(done, total, text)``.

    Returns:
        In the order of the graph.
    """
    nodes = model.proto.graph.node
    rows = [
        TensorError(pair, part.block, nodes[pair.maker].op_type if pair.maker is not None else "input")
        for pair, part in model.activations
        if not pair.tied
    ]
    if not rows:
        return []
    plain = SwitchSession(model, expose=True, threads=threads)
    alone = SwitchSession(model, forced=True, threads=threads)
    axes = channel_axes(model, GraphIndex(model.proto.graph))
    done = 0
    for count, feeds in _small_batches(source):
        if done >= SAMPLES:
            break
        _observe(model, rows, plain, alone, feeds, axes)
        done += count
        if progress is not None:
            progress(min(done, SAMPLES), min(SAMPLES, len(source)), "where error enters")
    return rows


def _small_batches(source: calib.Source) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Number of samples and feeds, one sample at a time where the batch is free: every tensor of a run is held."""
    for ids, feeds in source:
        if fixed_batch(source.inputs) is not None or len(ids) == 1:
            yield len(ids), feeds
        else:
            for row in range(len(ids)):
                yield 1, {name: value[row : row + 1] for name, value in feeds.items()}


def _observe(
    model: Switchable,
    rows: list[TensorError],
    plain: SwitchSession,
    alone: SwitchSession,
    feeds: dict[str, np.ndarray],
    axes: dict[str, int | None],
) -> None:
    made = [plain.made(row.pair) for row in rows]
    results = [result for pair in model.pairs for result in pair.results]
    exact = plain.run(feeds, (), results)  # nothing is quantized: what a pair makes is what the float model has there
    quantized = plain.run(feeds, plain.parts, list(dict.fromkeys(made)))
    forced = {result: exact[result] for result in results}
    forced = {name: value for name, value in forced.items() if name in alone.session.input_names}
    ends = list(dict.fromkeys(alone.made(row.pair) for row in rows))
    weights_only = [part for part in alone.parts if part.kind == WEIGHTS]
    entering = alone.run(feeds, alone.parts, ends, forced)
    by_weights = alone.run(feeds, weights_only, ends, forced)
    for row, name in zip(rows, made, strict=True):
        values = exact[row.pair.results[0]]
        if values.dtype.kind != "f" or not values.size:
            continue
        row.total.update(values, quantized[name])
        row.entering.update(values, entering[alone.made(row.pair)])
        row.by_weights.update(values, by_weights[alone.made(row.pair)])
        axis = axes.get(row.pair.source)
        row.see_values(values, values.ndim - 1 if axis is None else min(axis, values.ndim - 1))


def channel_axes(model: Switchable, index: GraphIndex) -> dict[str, int | None]:
    """Axis of the channels of each tensor: 1 where a convolution or pooling makes or reads it, else None, the last."""
    return {pair.source: 1 if _is_map(index, pair) else None for pair in model.pairs}


def _is_map(index: GraphIndex, pair: ActivationPair, depth: int = 8) -> bool:
    nodes = index.graph.node
    seen: set[int] = set()
    stack = [(place, depth) for name in pair.results for place in index.readers.get(name, ())]
    if pair.maker is not None:
        stack.append((pair.maker, depth))
    while stack:
        place, left = stack.pop()
        if nodes[place].op_type in _SPATIAL:
            return True
        if place in seen or nodes[place].op_type not in _THROUGH or not left:
            continue
        seen.add(place)
        before = [index.maker[name] for name in nodes[place].input[:1] if name in index.maker]
        after = [reader for name in nodes[place].output for reader in index.readers.get(name, ())]
        stack += [(near, left - 1) for near in (*before, *after)]
    return False
