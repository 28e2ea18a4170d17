"""How far two models are apart: errors of tensors, and answers; parts of the samples can be counted apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SQNR_CAP = 200.0
TOP = 5


class ErrorMeter:
    """Streaming signal-to-noise ratio and cosine of two tensors, in float64, with constant memory."""

    def __init__(self) -> None:
        self.signal = self.noise = self.dot = self.other = 0.0
        self.largest = 0.0

    def update(self, expected: np.ndarray, found: np.ndarray) -> None:
        """Take in a pair of arrays of the same shape."""
        a, b = expected.astype(np.float64).ravel(), found.astype(np.float64).ravel()
        difference = a - b
        self.signal += _dot(a, a)
        self.other += _dot(b, b)
        self.dot += _dot(a, b)
        self.noise += _dot(difference, difference)
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))

    def merge(self, other: ErrorMeter) -> None:
        """Take in what another one saw."""
        self.signal += other.signal
        self.noise += other.noise
        self.dot += other.dot
        self.other += other.other
        self.largest = max(self.largest, other.largest)

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


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """Sum of products in this thread: BLAS wakes all cores for it, and its result depends on their number."""
    return float(np.einsum("i,i->", a, b))


class Scores:
    """Counts of agreements and of right answers; class scores lie on the last axis of a model's first output."""

    def __init__(self) -> None:
        self.positions = self.agree = 0
        self._labelled = 0
        self._right = {"float_top1": 0, "int8_top1": 0, "float_top5": 0, "int8_top5": 0}
        self._classes = 0
        self._best: list[tuple[np.ndarray, np.ndarray]] = []

    def update(self, expected: np.ndarray, found: np.ndarray, ranked: int = 0) -> None:
        """Take in the float and the int8 scores of a batch.

        Args:
            expected: Float scores [samples, ..., classes].
            found: The others, same shape.
            ranked: Samples whose best classes are kept, for ``count_right``: all of the batch, or 0.
        """
        self._classes = expected.shape[-1]
        self.agree += int((expected.argmax(-1) == found.argmax(-1)).sum())
        self.positions += int(np.prod(expected.shape[:-1]))
        if ranked:
            self._best.append((_best(expected, ranked), _best(found, ranked)))

    def count_right(self, labels: Sequence[int]) -> None:
        """Count right answers of all samples that were ranked since the last time.

        Args:
            labels: Class of each.
        """
        if not self._best:
            return
        truth = np.asarray(labels)[:, None]
        for name, parts in zip(("float", "int8"), zip(*self._best, strict=True), strict=True):
            right = np.concatenate(parts) == truth
            self._right[f"{name}_top1"] += int(right[:, 0].sum())
            self._right[f"{name}_top5"] += int(right.any(1).sum())
        self._labelled += len(truth)
        self._best = []

    def merge(self, other: Scores) -> None:
        """Take in what another one counted."""
        self._classes = other._classes or self._classes
        self.agree += other.agree
        self.positions += other.positions
        self._labelled += other._labelled
        self._right = {key: count + other._right[key] for key, count in self._right.items()}
        self._best += other._best

    def accuracy(self) -> dict[str, float] | None:
        """Share of right answers, 0 to 1; None without labels."""
        if not self._labelled:
            return None
        keep = ("top1", "top5") if self._classes > TOP else ("top1",)
        return {key: count / self._labelled for key, count in self._right.items() if key.endswith(keep)}


def _best(scores: np.ndarray, samples: int) -> np.ndarray:
    """The five best answers of each sample, the best first: int [samples, <=5]."""
    return np.argsort(-scores.reshape(samples, -1), axis=-1, kind="stable")[:, :TOP]


__all__ = ["SQNR_CAP", "ErrorMeter", "Scores"]
