"""The loss whose curvature weights the errors, and its random gradient seeds, computed in the graph.

With seeds ``s`` such that ``E[s s^T] = F``, the gradient ``g = J^T s`` at any tensor has ``E[g g^T] = J^T F J``, which
is the Gauss-Newton Hessian of the loss at that tensor:

- softmax: ``s = onehot(y) - p`` with ``y ~ p`` gives ``F = diag(p) - p p^T``, the Fisher information; the label is
  drawn in the graph as ``argmax(logits + gumbel)``, so that forward and backward are one run. A model with one class
  distribution draws from a flatter distribution q and weights by p / q, or runs all classes: see ``LossSpec.classes``.
- bernoulli: ``s = [u < p] - p`` gives ``F = diag(p (1 - p))``.
- embedding: ``s = N^T r``, ``r = +-1``, N the Jacobian of ``y / |y|``: squared error of the direction (cosine).
- regression: ``s = r / (rms(y) sqrt(n))``: squared error relative to the output's size.
- linear: the seed itself is a graph input (a plain vector-Jacobian product).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from .tape import Tape

EXACT_INPUT = "noise/exact"
_CERTAIN = 1e4  # added to a logit, decides the label


@dataclass(frozen=True)
class Head:
    """Loss at one output.

    Args:
        output: Name of the model output.
        tensor: Where the seed is put: the logits for softmax and bernoulli.
        kind: softmax, bernoulli, embedding, regression or linear.
        axis: Class or feature axis of ``tensor``, >= 0.
        shape: Shape of ``tensor``.
        reason: Why this kind, for the report.
        weight: Factor of the seed.
    """

    output: str
    tensor: str
    kind: str
    axis: int
    shape: tuple[int, ...]
    reason: str
    weight: float = 1.0

    @property
    def noise(self) -> str:
        """Name of the noise input."""
        return f"noise/{self.output}"

    @property
    def answers(self) -> int:
        """Number of independent answers in one run: distributions of classes, yes-or-no questions, or samples."""
        if self.kind == "softmax":
            return int(np.prod(self.shape)) // max(1, self.shape[self.axis])
        if self.kind == "bernoulli":
            return int(np.prod(self.shape))
        return int(self.shape[0]) if len(self.shape) > 1 else 1

    def per_answer(self) -> Head:
        """This head with a seed such that ``E[(g . d)^2] / 2`` is the mean divergence of an answer.

        That is KL for classes, 1 - cosine for embeddings, and for regression the relative squared error, whole, not
        half of it as the second order of a loss gives.
        """
        whole = 2.0 if self.kind == "regression" else 1.0
        return replace(self, weight=math.sqrt(whole / max(1, self.answers)))

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Noise of one draw, float32, of ``shape``."""
        if self.kind == "softmax":
            return rng.gumbel(size=self.shape).astype(np.float32)
        if self.kind == "bernoulli":
            return rng.random(self.shape, np.float32)
        return (rng.integers(0, 2, self.shape) * 2 - 1).astype(np.float32)


@dataclass(frozen=True)
class LossSpec:
    """Sum of losses over the outputs of a model."""

    heads: tuple[Head, ...]

    def per_answer(self) -> LossSpec:
        """The sum over the heads of the mean divergence of an answer, see ``Head.per_answer``."""
        return LossSpec(tuple(head.per_answer() for head in self.heads))

    def describe(self) -> str:
        """One line: which loss at which output, and why."""
        return "; ".join(f"{head.output}: {head.kind} ({head.reason})" for head in self.heads)

    @property
    def classes(self) -> int | None:
        """Number of classes of a model with one class distribution per sample, else None.

        For such a model ``diag(p) - p p^T = sum_c p_c (e_c - p)(e_c - p)^T``, so that one run per class is exact.
        """
        if len(self.heads) == 1 and self.heads[0].kind == "softmax":
            head = self.heads[0]
            if int(np.prod(head.shape)) == head.shape[0] * head.shape[head.axis] and head.axis:
                return head.shape[head.axis]
        return None

    def noise_inputs(self, tape: Tape) -> list[tuple[str, tuple[int, ...], int]]:
        """Name, shape and ONNX element type of the graph inputs that the seeds read."""
        inputs: list[tuple[str, tuple[int, ...], int]] = [
            (head.noise, head.shape, onnx.TensorProto.FLOAT) for head in self.heads
        ]
        if self.classes is not None:
            inputs.append((EXACT_INPUT, (), onnx.TensorProto.FLOAT))
        return inputs

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Values of the noise inputs for one random draw."""
        feeds = {head.noise: head.draw(rng) for head in self.heads}
        if self.classes is not None:
            feeds[EXACT_INPUT] = np.zeros((), np.float32)
        return feeds

    def enumerate_class(self, index: int) -> dict[str, np.ndarray]:
        """Values of the noise inputs for class ``index``: the mean of g g^T over all classes is exact."""
        head = self.heads[0]
        noise = np.zeros(head.shape, np.float32)
        np.moveaxis(noise, head.axis, -1)[..., index] = _CERTAIN
        return {head.noise: noise, EXACT_INPUT: np.ones((), np.float32)}


def linear_loss(shapes: Mapping[str, tuple[int, ...]]) -> LossSpec:
    """``sum(seed * y)`` over the given outputs; the seeds are the noise inputs."""
    return LossSpec(tuple(Head(name, name, "linear", 0, tuple(shape), "asked for") for name, shape in shapes.items()))


def emit_seeds(tape: Tape, loss: LossSpec) -> dict[str, str]:
    """Emit the seeds; returns tensor -> gradient."""
    exact = EXACT_INPUT if loss.classes is not None else None
    seeds: dict[str, str] = {}
    for head in loss.heads:
        dtype = tape.dtype(head.tensor)
        noise = tape.cast(tape.op("Identity", head.noise), dtype)
        if head.kind == "softmax":
            seed = _softmax_seed(tape, head, noise, exact)
        elif head.kind == "bernoulli":
            p = tape.op("Sigmoid", head.tensor)
            seed = tape.op("Sub", tape.cast(tape.op("Less", noise, p), dtype), p)
        elif head.kind == "embedding":
            seed = _embedding_seed(tape, head, noise)
        elif head.kind == "regression":
            axes = list(range(1 if len(head.shape) > 1 else 0, len(head.shape)))
            norm = tape.reduce("ReduceL2", head.tensor, axes)
            seed = tape.op("Div", noise, tape.op("Add", norm, 1e-6))
        else:
            seed = noise
        if head.weight != 1.0:
            seed = tape.op("Mul", seed, head.weight)
        seeds[head.tensor] = tape.op("Add", seeds[head.tensor], seed) if head.tensor in seeds else seed
    return seeds


def _softmax_seed(tape: Tape, head: Head, noise: str, exact: str | None) -> str:
    p = tape.op("Softmax", head.tensor, axis=head.axis)
    if exact is None:  # seeds of several positions must have mean zero: plain sampling
        return tape.op("Sub", _draw_label(tape, head, head.tensor, noise), p)
    scores = _sampling_scores(tape, head, p)
    label = _draw_label(tape, head, scores, noise)
    chance = tape.reduce("ReduceSum", tape.op("Mul", label, p), [head.axis])
    q = tape.op("Softmax", scores, axis=head.axis)
    drawn = tape.reduce("ReduceSum", tape.op("Mul", label, q), [head.axis])
    flag = tape.op("Greater", tape.op("Identity", exact), 0.5)
    share = tape.op("Where", flag, tape.op("Mul", chance, float(head.shape[head.axis])), tape.op("Div", chance, drawn))
    return tape.op("Mul", tape.op("Sub", label, p), tape.op("Sqrt", share))


def _sampling_scores(tape: Tape, head: Head, p: str) -> str:
    """Logits of ``q_c ~ p_c |e_c - p|``, ``|e_c - p|^2 = 1 - 2 p_c + sum p^2``.

    A confident model almost always draws its own class, whose seed is almost zero. Labels from q, weighted by p / q,
    have the same expectation and far less variance.
    """
    total = tape.reduce("ReduceSum", tape.op("Mul", p, p), [head.axis])
    distance = tape.op("Add", tape.op("Sub", total, tape.op("Mul", p, 2.0)), 1.0)
    floor = tape.op("Max", distance, 1e-6)
    return tape.op("Add", head.tensor, tape.op("Mul", tape.op("Log", floor), 0.5))


def _draw_label(tape: Tape, head: Head, scores: str, noise: str) -> str:
    """One-hot of ``argmax(scores + noise)``."""
    noisy = tape.op("Add", scores, noise)
    top = tape.reduce("ReduceMax", noisy, [head.axis])
    return tape.cast(tape.op("Equal", noisy, top), tape.dtype(head.tensor))


def _embedding_seed(tape: Tape, head: Head, noise: str) -> str:
    norm = tape.op("Add", tape.reduce("ReduceL2", head.tensor, [head.axis]), 1e-12)
    unit = tape.op("Div", head.tensor, norm)
    along = tape.op("Mul", unit, tape.reduce("ReduceSum", tape.op("Mul", unit, noise), [head.axis]))
    return tape.op("Div", tape.op("Sub", noise, along), norm)
