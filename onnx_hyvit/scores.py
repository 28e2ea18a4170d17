"""How far two models are apart, batch by batch: errors of tensors, and answers.

What is measured of a batch is small, and may come from a worker; batches are added in their order, so that the sums do
not depend on who measured them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SQNR_CAP = 200.0
TOP = 5


class ErrorSums(NamedTuple):
    """Sums over the elements of a pair of tensors, in float64."""

    signal: float
    noise: float
    dot: float
    other: float
    largest: float


class ErrorMeter:
    """Streaming signal-to-noise ratio and cosine of two tensors, in float64, with constant memory."""

    def __init__(self) -> None:
        self.signal = self.noise = self.dot = self.other = 0.0
        self.largest = 0.0

    def update(self, expected: np.ndarray, found: np.ndarray) -> None:
        """Take in a pair of arrays of the same shape."""
        self.add(error_sums(expected, found))

    def add(self, sums: ErrorSums) -> None:
        """Take in a pair that was measured before."""
        self.signal += sums.signal
        self.noise += sums.noise
        self.dot += sums.dot
        self.other += sums.other
        self.largest = max(self.largest, sums.largest)

    @property
    def sqnr_db(self) -> float:
        """``10 log10(signal / noise)`` in dB, within +-200 so that equal tensors give a finite number."""
        if self.noise == 0.0:
            return SQNR_CAP
        if not np.isfinite(self.noise) or self.signal == 0.0:
            return -SQNR_CAP
        return float(np.clip(10 * np.log10(self.signal / self.noise), -SQNR_CAP, SQNR_CAP))

    @property
    def cosine(self) -> float:
        """Cosine of the two tensors, 1.0 when both are zero."""
        norm = np.sqrt(self.signal * self.other)
        return float(self.dot / norm) if norm > 0 and np.isfinite(norm) else float(self.noise == 0.0)


def error_sums(expected: np.ndarray, found: np.ndarray) -> ErrorSums:
    """Measure a pair of arrays of the same shape."""
    a, b = expected.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    difference = a - b
    largest = float(np.abs(difference).max(initial=0.0))
    return ErrorSums(_dot(a, a), _dot(difference, difference), _dot(a, b), _dot(b, b), largest)


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """Sum of products in this thread: BLAS wakes all cores for it, and its result depends on their number."""
    return float(np.einsum("i,i->", a, b))


class Answers(NamedTuple):
    """What two models answer for a batch.

    Args:
        classes: How many classes there are.
        positions: Places with an answer.
        agree: Those where the two models agree.
        best: The best classes of each sample, int [samples, <=5], of the float and of the int8 model; where asked for.
    """

    classes: int
    positions: int
    agree: int
    best: tuple[np.ndarray, np.ndarray] | None = None


def answers_of(expected: np.ndarray, found: np.ndarray, ranked: int = 0) -> Answers | None:
    """Compare class scores, which lie on the last axis; None where there are none.

    Args:
        expected: Float scores [samples, ..., classes].
        found: The others, same shape.
        ranked: How many samples there are, where their best classes are wanted; else 0.
    """
    if expected.ndim < 2 or expected.shape[-1] < 2:
        return None
    agree = int((expected.argmax(-1) == found.argmax(-1)).sum())
    best = (_best(expected, ranked), _best(found, ranked)) if ranked else None
    return Answers(expected.shape[-1], int(np.prod(expected.shape[:-1])), agree, best)


def _best(scores: np.ndarray, samples: int) -> np.ndarray:
    return np.argsort(-scores.reshape(samples, -1), axis=-1, kind="stable")[:, :TOP]


class Scores:
    """Counts of agreements and of right answers."""

    def __init__(self) -> None:
        self.positions = self.agree = 0
        self._labelled = 0
        self._right = {"float_top1": 0, "int8_top1": 0, "float_top5": 0, "int8_top5": 0}
        self._classes = 0

    def add(self, answers: Answers, labels: Sequence[int] | None = None) -> None:
        """Take in a batch, with the class of each sample where these are known."""
        self._classes = answers.classes
        self.agree += answers.agree
        self.positions += answers.positions
        if labels is None or answers.best is None:
            return
        truth = np.asarray(labels)[:, None]
        self._labelled += len(truth)
        for name, best in zip(("float", "int8"), answers.best, strict=True):
            self._right[f"{name}_top1"] += int((best[:, :1] == truth).sum())
            self._right[f"{name}_top5"] += int((best == truth).any(1).sum())

    def accuracy(self) -> dict[str, float] | None:
        """Share of right answers, 0 to 1; None without labels."""
        if not self._labelled:
            return None
        keep = ("top1", "top5") if self._classes > TOP else ("top1",)
        return {key: count / self._labelled for key, count in self._right.items() if key.endswith(keep)}


__all__ = ["SQNR_CAP", "Answers", "ErrorMeter", "ErrorSums", "Scores", "answers_of", "error_sums"]
