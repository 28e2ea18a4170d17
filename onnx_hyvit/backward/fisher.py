"""Diagonal of the Gauss-Newton Hessian at any tensor, from sampled gradients of one forward-and-backward model."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from ..errors import CalibrationError, ConfigError
from ..runtime import Session, make_session
from .build import BackwardModel, build_backward
from .loss import LossSpec
from .output_losses import choose_loss
from .probes import forward_probe_weights
from .runs import batch_of, runs_of

_LOG = logging.getLogger(__name__)
Feeds = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class FisherWeights:
    """``diag(J^T F J)`` of one sample, averaged over samples.

    Args:
        diagonal: Tensor -> float32 array of the tensor's shape for one sample (leading axis divided by the batch).
        loss: The loss at the outputs.
        exact: Whether every class was run, instead of random draws.
        samples: Number of samples averaged.
        probed: Tensor -> what stopped its gradient; these have per-channel values from forward probes.
    """

    diagonal: dict[str, np.ndarray]
    loss: LossSpec
    exact: bool
    samples: int
    probed: dict[str, str] = field(default_factory=dict)

    def elementwise(self, tensor: str, regularization: float = 0.2) -> np.ndarray:
        """Regularised weights of every element, float32, mean 1; see ``regularize``."""
        return regularize(self.diagonal[tensor], regularization)

    def channelwise(self, tensor: str, axis: int, regularization: float = 0.2) -> np.ndarray:
        """Weights averaged over all axes but ``axis``, then regularised: float32 ``[C]``, mean 1."""
        diagonal = self.diagonal[tensor]
        others = tuple(other for other in range(diagonal.ndim) if other != axis % diagonal.ndim)
        return regularize(diagonal.mean(axis=others, dtype=np.float64), regularization)


def regularize(diagonal: np.ndarray, amount: float) -> np.ndarray:
    """``(1 - amount) D / mean(D) + amount``: a few dozen samples leave many near-zero entries.

    Args:
        diagonal: Non-negative, any shape.
        amount: 0 to 1; 1 is plain squared error.

    Returns:
        float32 of the same shape, mean 1; all ones when ``diagonal`` is zero.

    Raises:
        ConfigError: ``amount`` is out of range.
    """
    if not 0.0 <= amount <= 1.0:
        raise ConfigError(f"regularization must be 0 to 1, found {amount}")
    mean = float(diagonal.mean(dtype=np.float64))
    if not mean > 0.0:
        return np.ones(diagonal.shape, np.float32)
    return ((1.0 - amount) * (diagonal / mean) + amount).astype(np.float32)


def fisher_weights(
    proto: onnx.ModelProto,
    targets: Sequence[str],
    batches: Iterable[Feeds],
    shapes: Shapes,
    *,
    draws: int = 8,
    seed: int = 0,
    loss: LossSpec | None = None,
    probes: int = 4,
    threads: int = 2,
    max_memory: int = 512 << 20,
) -> FisherWeights:
    """Mean squared gradient of the sampled loss at each target.

    ``E[g g^T] = J^T F J`` (see ``loss``). A model with one class distribution of at most ``2 draws`` classes is
    summed over its classes exactly. Gradients are squared and added as they come: memory is the samples, one run, and
    one array per target.

    Args:
        proto: Float model, opset 13 or higher.
        targets: Tensors to weight.
        batches: Feeds with any number of samples along axis 0; cut into runs of the batch in ``shapes``. Samples are
            the slowest axis of every target.
        shapes: Concrete shape of every tensor; their batch is the batch of a run.
        draws: Random draws per sample.
        seed: Same seed, same weights.
        loss: Loss; chosen by ``choose_loss`` when None.
        probes: Probes per channel for targets that gradients do not reach.
        threads: Threads of the session.
        max_memory: Bytes of gradients held at a time; targets beyond it take another model and more runs.

    Returns:
        The weights, with a warning logged for every operator that has no rule.

    Raises:
        CalibrationError: There are no samples.
        ModelError: A target or a shape is missing.
    """
    loss = loss or choose_loss(proto, shapes)
    targets = list(dict.fromkeys(targets))
    batch, _ = batch_of(proto, shapes)
    runs = list(runs_of(proto, shapes, batches))
    if not runs:
        raise CalibrationError(f"no samples to weight the errors with (a run takes {batch})")
    exact = loss.classes is not None and loss.classes <= 2 * draws
    sums: dict[str, np.ndarray] = {}
    blocked: dict[str, str] = {}
    for part in _parts(targets, shapes, max_memory):
        model = build_backward(proto, part, loss, shapes)
        session = make_session(model.proto, threads=threads)
        sums.update(_accumulate(model, session, runs, draws, seed, exact, shapes))
        reasons = ", ".join(f"{item.op} {item.node!r} ({item.reason})" for item in model.unsupported)
        blocked.update((target, reasons) for target in model.missing)
    diagonal = {name: _per_sample(total, batch) for name, total in sums.items()}
    if blocked:
        through = "; ".join(sorted(set(blocked.values())))
        _LOG.warning("%d tensors are weighted by forward probes: no gradient through %s", len(blocked), through)
        diagonal.update(
            forward_probe_weights(proto, list(blocked), runs, shapes, loss, probes=probes, seed=seed, threads=threads)
        )
    ordered = {target: diagonal[target] for target in targets}
    return FisherWeights(ordered, loss, exact, len(runs) * batch, blocked)


def _parts(targets: Sequence[str], shapes: Shapes, max_memory: int) -> Iterator[list[str]]:
    """Consecutive targets whose gradients take at most ``max_memory`` bytes together, or one target alone."""
    part: list[str] = []
    held = 0
    for target in targets:
        size = 4 * math.prod(shapes.get(target, ()))
        if part and held + size > max_memory:
            yield part
            part, held = [], 0
        part.append(target)
        held += size
    if part:
        yield part


def _accumulate(
    model: BackwardModel,
    session: Session,
    runs: Sequence[Feeds],
    draws: int,
    seed: int,
    exact: bool,
    shapes: Shapes,
) -> dict[str, np.ndarray]:
    """Mean over runs and draws of the squared gradients, float32, of the targets' full shapes."""
    total = {target: np.zeros(shapes[target], np.float32) for target in (*model.gradients, *model.disconnected)}
    rng = np.random.default_rng(seed)
    count = (model.loss.classes or 0) if exact else draws
    for feeds in runs if model.gradients else ():
        for index in range(count):
            noise = model.loss.enumerate_class(index) if exact else model.loss.draw(rng)
            found = session.run({**feeds, **noise})
            for target, output in model.gradients.items():
                gradient = found[output].astype(np.float32, copy=False)
                total[target] += np.square(gradient)
    for array in total.values():
        array /= max(1, len(runs) * count)
    return total


def _per_sample(total: np.ndarray, batch: int) -> np.ndarray:
    """Average over the samples of a run, which are the slowest axis."""
    if batch == 1 or total.ndim == 0 or total.shape[0] % batch:
        return total
    return total.reshape(batch, total.shape[0] // batch, *total.shape[1:]).mean(axis=0)
