"""How far a model's outputs are from those of the float model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..numerics.log_softmax import log_softmax
from ..scores import ErrorMeter

TINY = 1e-12


class OutputLoss:
    """Streaming distance of outputs to the float model's.

    The loss is the mean Kullback-Leibler divergence of the class probabilities when the first output holds class scores
    (2 or 3 axes, the last longer than 1), in nats; else the squared error over the power, averaged over the outputs.
    """

    def __init__(self) -> None:
        self._divergence = 0.0
        self._agree = self._positions = 0
        self._meters: dict[str, ErrorMeter] = {}
        self._first = ""

    def update(self, expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> None:
        """Take in the outputs of one batch."""
        for name, values in expected.items():
            if values.dtype.kind == "f":
                self._first = self._first or name
                self._meters.setdefault(name, ErrorMeter()).update(values, found[name])
        first = expected.get(self._first)
        if first is not None and is_class_scores(first):
            self._divergence += divergence(first, found[self._first])
            self._agree += int((first.argmax(-1) == found[self._first].argmax(-1)).sum())
            self._positions += int(np.prod(first.shape[:-1]))

    @property
    def measure(self) -> str:
        """``kl`` or ``relative_error``."""
        return "kl" if self._positions else "relative_error"

    @property
    def loss(self) -> float:
        """The distance; 0 for equal outputs."""
        if self._positions:
            return self._divergence / self._positions
        ratios = [meter.noise / meter.signal for meter in self._meters.values() if meter.signal > 0]
        return float(np.mean(ratios)) if ratios else 0.0

    def to_dict(self) -> dict[str, Any]:
        """``loss``, ``top1_agreement`` (None without class scores) and ``sqnr_db`` of the first output."""
        meter = self._meters.get(self._first)
        return {
            "loss": self.loss,
            "top1_agreement": self._agree / self._positions if self._positions else None,
            "sqnr_db": meter.sqnr_db if meter else None,
        }


def is_class_scores(values: np.ndarray) -> bool:
    """Whether an output looks like scores of classes: [N, classes] or [N, positions, classes]."""
    return values.dtype.kind == "f" and values.ndim in (2, 3) and values.shape[-1] > 1


def divergence(expected: np.ndarray, found: np.ndarray) -> float:
    """Sum over positions of KL(expected || found), in nats; logits pass a softmax first, probabilities do not."""
    wanted, given = expected.astype(np.float64), np.nan_to_num(found.astype(np.float64))
    if (wanted >= 0).all() and np.allclose(wanted.sum(-1), 1, atol=1e-3):
        logs = [np.log(np.maximum(values, TINY)) for values in (wanted, given)]
    else:
        logs = [log_softmax(values) for values in (wanted, given)]
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum())
