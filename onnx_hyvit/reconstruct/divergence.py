"""How far a quantized model's outputs are from the float ones: KL where they are classes, else squared error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from ..backward import Head, LossSpec
from ..numerics import QParams
from ..runtime import make_session
from .trial import NO_SPINNING, TrialModel


def divergence(
    trial: TrialModel,
    proto: onnx.ModelProto,
    qparams: Mapping[str, QParams],
    parameters: Mapping[str, np.ndarray],
    batches: Sequence[Mapping[str, np.ndarray]],
    loss: LossSpec,
    threads: int = 2,
) -> float:
    """Mean divergence of the trial model's outputs from the float model's.

    Args:
        trial: The trial model.
        proto: The float model.
        qparams: Scales.
        parameters: Weights and biases.
        batches: Feeds.
        loss: Says what the outputs are.
        threads: Threads of the sessions.

    Returns:
        Sum over the outputs of the mean over samples: KL(float || quantized) in nats for class scores, else the
        squared error relative to the output's size.
    """
    exact = make_session(_with_heads(proto, loss), threads=threads, config=NO_SPINNING)
    found = make_session(_with_heads(trial.proto, loss), threads=threads, optimize="extended", config=NO_SPINNING)
    given = {**trial.feeds(qparams), **parameters}
    given = {name: value for name, value in given.items() if name in found.input_names}
    total, count = 0.0, 0
    names = [head.tensor for head in loss.heads]
    for batch in batches:
        wanted, values = exact.run(batch, names), found.run({**batch, **given}, names)
        total += sum(_divergence(head, wanted[head.tensor], values[head.tensor]) for head in loss.heads)
        count += 1
    return total / max(1, count)


def _with_heads(proto: onnx.ModelProto, loss: LossSpec) -> onnx.ModelProto:
    """The model with the tensors that the loss reads among its outputs."""
    present = {value.name for value in proto.graph.output}
    missing = [head.tensor for head in loss.heads if head.tensor not in present]
    if not missing:
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in dict.fromkeys(missing)
    )
    return copy


def _divergence(head: Head, exact: np.ndarray, found: np.ndarray) -> float:
    """Mean over samples (and positions) of one head."""
    exact, found = exact.astype(np.float64), found.astype(np.float64)
    if head.kind == "softmax":
        p, q = (_log_softmax(value, head.axis) for value in (exact, found))
        return float((np.exp(p) * (p - q)).sum(axis=head.axis).mean())
    if head.kind == "bernoulli":
        p = 1.0 / (1.0 + np.exp(-exact))
        return float((np.logaddexp(0, -found) - np.logaddexp(0, -exact) + (1 - p) * (found - exact)).mean())
    return float(np.square(found - exact).sum() / max(np.square(exact).sum(), 1e-30))


def _log_softmax(value: np.ndarray, axis: int) -> np.ndarray:
    value = value - value.max(axis=axis, keepdims=True)
    return value - np.log(np.exp(value).sum(axis=axis, keepdims=True))
