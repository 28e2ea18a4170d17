"""How far a quantized model's outputs are from the float ones: KL, cosine or squared error, by what they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx

from ..backward import Head, LossSpec
from ..numerics.log_softmax import log_softmax
from ..runtime import Session, make_session, run_at_once, share_threads

# between two runs numpy works: idle threads of the session would spin
NO_SPINNING = {"session.intra_op.allow_spinning": "0"}
Feeds = Mapping[str, np.ndarray]
MANY = 1 << 30  # batches of a stream, of which the number is not known


def samples_of(feeds: Mapping[str, np.ndarray]) -> int:
    """Samples in a batch of the model's inputs: some may have one row for all of them."""
    return max((len(value) for value in feeds.values() if value.ndim), default=1)


class Divergence:
    """Divergence of models' outputs from the float model's, on fixed data.

    The sum over the outputs of: KL(float || other) in nats for class scores, 1 - cosine for embeddings, else the
    squared error relative to the output's size.
    """

    def __init__(self, proto: onnx.ModelProto, loss: LossSpec, batches: Iterable[Feeds], threads: int = 2) -> None:
        """Run the float model once.

        Args:
            proto: The float model.
            loss: Says what the outputs are.
            batches: Feeds, the same each time they are iterated, which is once here and once for each model that is
                judged. The outputs are held in memory, feeds only where this is a list.
            threads: Threads in all.

        Attributes:
            wanted: The float model's values of what the loss reads; one dict for each batch.
            rows: Samples of each batch.
        """
        self._loss, self._batches = loss, batches
        self._share = share_threads(threads, len(batches) if isinstance(batches, Sequence) else MANY)
        self._names = list(dict.fromkeys(head.tensor for head in loss.heads))
        session = self.session(proto)

        def run(batch: Feeds) -> tuple[int, dict[str, np.ndarray]]:
            return samples_of(batch), session.run(batch, self._names)

        runs = list(run_at_once(run, batches, self._share.at_once))
        self.rows = tuple(samples for samples, _ in runs)
        self.wanted = [outputs for _, outputs in runs]

    def session(self, proto: onnx.ModelProto) -> Session:
        """A session of a model that has the tensors which the loss reads; exact in its integer sums."""
        return make_session(
            _with_outputs(proto, self._names), threads=self._share.each, optimize="extended", config=NO_SPINNING
        )

    def of(self, session: Session, given: Feeds | None = None) -> float:
        """Mean over samples for the model in ``session``, which also reads the inputs ``given``."""
        return float(self.each(session, given).mean())

    def each(self, session: Session, given: Feeds | None = None) -> np.ndarray:
        """Divergence of every sample, float64 [samples]; the mean of its batch where outputs do not keep samples apart.

        Args:
            session: A session made by ``session``.
            given: Further inputs, the same for all samples.
        """
        given = {name: value for name, value in (given or {}).items() if name in session.input_names}

        def judge(batch: tuple[Feeds, Feeds, int]) -> np.ndarray:
            feeds, wanted, samples = batch
            return divergence_of(self._loss.heads, wanted, session.run({**feeds, **given}, self._names), samples)

        batches = zip(self._batches, self.wanted, self.rows, strict=True)
        return np.concatenate([np.zeros(0), *run_at_once(judge, batches, self._share.at_once)])


def divergence_of(heads: Sequence[Head], wanted: Feeds, found: Feeds, samples: int) -> np.ndarray:
    """Divergence of every sample of one batch, summed over ``heads``: float64 [samples].

    Args:
        heads: What the outputs are.
        wanted: Float values of their tensors.
        found: The values to judge.
        samples: Samples of the batch.
    """
    total = np.zeros(samples)
    for head in heads:
        total += _divergence(head, wanted[head.tensor], found[head.tensor], samples)
    return total


def is_worse(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether divergence rose by more than chance explains, over samples that both were measured on.

    That is a rise of the mean root of at least twice the standard error of the paired differences. A few samples near a
    decision carry most of the mean, which goes up and down with small changes of any scale. The root is proportional to
    the error of the outputs, and on models of the zoo told from 64 samples better what 1,000 others say.

    Args:
        before: Divergence of each sample, see ``Divergence.each``.
        after: The same of the other state.
    """
    rise = np.sqrt(np.maximum(after, 0.0)) - np.sqrt(np.maximum(before, 0.0))
    error = rise.std(ddof=1) / np.sqrt(len(rise)) if len(rise) > 1 else 0.0
    return bool(rise.mean() > 2.0 * error)


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


def _divergence(head: Head, exact: np.ndarray, found: np.ndarray, samples: int) -> np.ndarray:
    """Divergence of one head for each of ``samples``, the mean over its positions; float64 [samples]."""
    exact, found = exact.astype(np.float64), found.astype(np.float64)
    if head.kind == "softmax":
        p, q = (log_softmax(value, head.axis) for value in (exact, found))
        return _by_sample((np.exp(p) * (p - q)).sum(axis=head.axis), samples)
    if head.kind == "bernoulli":
        p = 1.0 / (1.0 + np.exp(-exact))
        return _by_sample(np.logaddexp(0, -found) - np.logaddexp(0, -exact) + (1 - p) * (found - exact), samples)
    if head.kind == "embedding":
        lengths = np.linalg.norm(exact, axis=head.axis) * np.linalg.norm(found, axis=head.axis)
        return _by_sample(1.0 - (exact * found).sum(axis=head.axis) / np.maximum(lengths, 1e-30), samples)
    return _by_sample(np.square(found - exact) / max(float(np.square(exact).mean()), 1e-30), samples)


def _by_sample(values: np.ndarray, samples: int) -> np.ndarray:
    """Mean of each sample, or of all where the first axis does not number samples."""
    if values.ndim and len(values) == samples and values.size:
        return np.asarray(values.reshape(samples, -1).mean(axis=1))
    return np.full(samples, values.mean() if values.size else 0.0)
