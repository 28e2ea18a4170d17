"""Fallback weights by forward probes, for tensors that gradients do not reach.

A random sign in one channel of tensor z, ``u = (f(z + e v) - f(z - e v)) / 2e``, gives ``E[u^T F u] = sum of the
channel's diagonal of J^T F J``. It costs 2 forward runs per probe and channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from ..runtime import Session, make_session
from .loss import Head, LossSpec
from .runs import batch_of

Feeds = Mapping[str, np.ndarray]
_DELTA = "probe/delta"
_PROBED = "probe/"


def channel_axis(shape: Sequence[int]) -> int:
    """Channel axis by convention: 1 of an image ``[B, C, H, W]``, else the last."""
    return 1 if len(shape) in (4, 5) else len(shape) - 1


def forward_probe_weights(
    proto: onnx.ModelProto,
    targets: Sequence[str],
    batches: Sequence[Feeds],
    shapes: Mapping[str, tuple[int, ...]],
    loss: LossSpec,
    *,
    probes: int = 4,
    seed: int = 0,
    step: float = 1e-2,
    max_batches: int = 8,
    threads: int = 2,
) -> dict[str, np.ndarray]:
    """Per-channel mean of ``diag(J^T F J)``, spread over each channel.

    Args:
        proto: Float model.
        targets: Tensors to weight, upstream of those that the loss reads.
        batches: Feeds, each of the batch in ``shapes``.
        shapes: Concrete shape of every tensor.
        loss: Loss at the outputs.
        probes: Random signs per channel and batch.
        seed: Same seed, same weights.
        step: Size of a probe relative to the tensor's root mean square.
        max_batches: Batches used at most.
        threads: Threads of the session.

    Returns:
        Target -> float32 array of the tensor's shape for one sample.
    """
    chosen, (batch, _) = list(batches)[:max_batches], batch_of(proto, shapes)
    weights: dict[str, np.ndarray] = {}
    for target in dict.fromkeys(targets):
        session = make_session(_with_delta(proto, target, shapes, loss), threads=threads)
        rng = np.random.default_rng(seed)
        weights[target] = _probe_tensor(session, target, shapes[target], batch, chosen, loss, probes, step, rng)
    return weights


def _probe_tensor(
    session: Session, target: str, shape: tuple[int, ...], batch: int, batches: Sequence[Feeds], loss: LossSpec,
    probes: int, step: float, rng: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    axis = channel_axis(shape)
    sums = np.zeros(shape[axis])
    for feeds in batches:
        base = session.run({**feeds, _DELTA: np.zeros(shape, np.float32)})
        size = step * max(float(np.sqrt(np.mean(np.square({**feeds, **base}[target])))), 1e-6)
        for channel in range(shape[axis]):
            for _ in range(probes):
                signs = np.zeros(shape, np.float32)
                part = np.moveaxis(signs, axis, 0)[channel, ...]
                part[...] = rng.integers(0, 2, part.shape) * 2 - 1
                sums[channel] += _squared_change(session, feeds, base, signs, size, loss)
    elements = int(np.prod(shape)) // shape[axis]
    mean = (sums / (len(batches) * probes * elements)).astype(np.float32)
    full = (shape[0] // batch, *shape[1:]) if axis and shape[0] % batch == 0 else shape
    spread = [-1 if index == axis else 1 for index in range(len(shape))]
    return np.ascontiguousarray(np.broadcast_to(mean.reshape(spread), full))


def _with_delta(
    proto: onnx.ModelProto, target: str, shapes: Mapping[str, tuple[int, ...]], loss: LossSpec
) -> onnx.ModelProto:
    """The model with ``target + delta`` in place of ``target``; outputs the tensors that the loss reads."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    graph = model.graph
    moved = f"{_PROBED}{target}"
    position = 0
    for index, node in enumerate(graph.node):
        for slot, name in enumerate(node.input):
            if name == target:
                node.input[slot] = moved
        if target in node.output:
            position = index + 1
    graph.node.insert(position, helper.make_node("Add", [target, _DELTA], [moved], name="probe/add"))
    graph.input.append(helper.make_tensor_value_info(_DELTA, onnx.TensorProto.FLOAT, shapes[target]))
    present = {info.name for info in graph.output} | {info.name for info in graph.input}
    for name in dict.fromkeys([target, *(head.tensor for head in loss.heads)]):
        if name not in present:
            graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return model


def _squared_change(
    session: Session, feeds: Feeds, base: Feeds, signs: np.ndarray, size: float, loss: LossSpec
) -> float:
    """``u^T F u`` of one probe, summed over the outputs."""
    names = [head.tensor for head in loss.heads]
    above, below = (session.run({**feeds, _DELTA: signs * np.float32(side)}, names) for side in (size, -size))
    return sum(
        _curvature(head, base[head.tensor], (above[head.tensor] - below[head.tensor]) / (2 * size))
        for head in loss.heads
    )


def _curvature(head: Head, value: np.ndarray, change: np.ndarray) -> float:
    """``u^T F u`` of one head, float64."""
    value, change = value.astype(np.float64), change.astype(np.float64)
    if head.kind == "softmax":
        p = np.exp(value - value.max(axis=head.axis, keepdims=True))
        p /= p.sum(axis=head.axis, keepdims=True)
        first = (p * change**2).sum(axis=head.axis)
        return float((first - (p * change).sum(axis=head.axis) ** 2).sum())
    if head.kind == "bernoulli":
        p = 1.0 / (1.0 + np.exp(-value))
        return float((p * (1 - p) * change**2).sum())
    if head.kind == "embedding":
        norm = np.linalg.norm(value, axis=head.axis, keepdims=True) + 1e-12
        unit = value / norm
        change = (change - unit * (unit * change).sum(axis=head.axis, keepdims=True)) / norm
        return float((change**2).sum())
    if head.kind == "regression":
        axes = tuple(range(1 if value.ndim > 1 else 0, value.ndim))
        return float(((change / (np.sqrt((value**2).sum(axis=axes, keepdims=True)) + 1e-6)) ** 2).sum())
    return float((change**2).sum())
