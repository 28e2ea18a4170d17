"""How far a quantized model's outputs are from the float ones: KL, cosine or squared error, by what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from ..backward import Head, LossSpec
from ..numerics.log_softmax import log_softmax
from ..runtime import Session, make_session

# between two runs numpy works: idle threads of the session would spin
NO_SPINNING = {"session.intra_op.allow_spinning": "0"}
Feeds = Mapping[str, np.ndarray]


class Divergence:
    """Mean divergence of models' outputs from the float model's, on fixed data.

    The sum over the outputs of the mean over samples: KL(float || other) in nats for class scores, 1 - cosine for
    embeddings, else the squared error relative to the output's size.
    """

    def __init__(self, proto: onnx.ModelProto, loss: LossSpec, batches: Sequence[Feeds], threads: int = 2) -> None:
        """Run the float model once.

        Args:
            proto: The float model.
            loss: Says what the outputs are.
            batches: Feeds; held in memory, as are the outputs.
            threads: Threads of the sessions.
        """
        self._loss, self._batches, self._threads = loss, batches, threads
        self._names = list(dict.fromkeys(head.tensor for head in loss.heads))
        session = self.session(proto)
        self._wanted = [session.run(batch, self._names) for batch in batches]

    def session(self, proto: onnx.ModelProto) -> Session:
        """A session of a model that has the tensors which the loss reads; exact in its integer sums."""
        return make_session(
            _with_outputs(proto, self._names), threads=self._threads, optimize="extended", config=NO_SPINNING
        )

    def of(self, session: Session, given: Feeds | None = None) -> float:
        """Divergence of the model in ``session``, which also reads the inputs ``given``."""
        given = {name: value for name, value in (given or {}).items() if name in session.input_names}
        total = 0.0
        for batch, wanted in zip(self._batches, self._wanted, strict=True):
            found = session.run({**batch, **given}, self._names)
            total += sum(_divergence(head, wanted[head.tensor], found[head.tensor]) for head in self._loss.heads)
        return total / max(1, len(self._batches))


def _with_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model with ``names`` among its outputs."""
    present = {value.name for value in proto.graph.output}
    missing = [name for name in names if name not in present]
    if not missing:
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in missing)
    return copy


def _divergence(head: Head, exact: np.ndarray, found: np.ndarray) -> float:
    """Mean over samples (and positions) of one head."""
    exact, found = exact.astype(np.float64), found.astype(np.float64)
    if head.kind == "softmax":
        p, q = (log_softmax(value, head.axis) for value in (exact, found))
        return float((np.exp(p) * (p - q)).sum(axis=head.axis).mean())
    if head.kind == "bernoulli":
        p = 1.0 / (1.0 + np.exp(-exact))
        return float((np.logaddexp(0, -found) - np.logaddexp(0, -exact) + (1 - p) * (found - exact)).mean())
    if head.kind == "embedding":
        lengths = np.linalg.norm(exact, axis=head.axis) * np.linalg.norm(found, axis=head.axis)
        return float((1.0 - (exact * found).sum(axis=head.axis) / np.maximum(lengths, 1e-30)).mean())
    return float(np.square(found - exact).sum() / max(np.square(exact).sum(), 1e-30))
