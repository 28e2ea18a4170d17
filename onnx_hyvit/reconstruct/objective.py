"""How far a block's outputs are from the float ones: the error that candidates are ranked by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..errors import ConfigError

BatchErrors = list[tuple[str, float, float]]  # tensor, error, what it is relative to
Metric = Literal["mse", "fisher", "cosine"]
METRICS: tuple[str, ...] = ("mse", "fisher", "cosine")


@dataclass(frozen=True)
class Objective:
    """Error of tensors against their float values; each tensor counts relative to its own size.

    ``mse``: ``sum d^2 / sum y^2``. ``fisher``: the same with every element weighted by the regularised diagonal of the
    Fisher information at the tensor (arXiv 2303.12557, equation 9). ``cosine``: ``1 - cos(y, y + d)`` of each sample
    (arXiv 2006.16669).

    Args:
        metric: One of ``METRICS``.
        weights: Tensor -> weight of each element of one sample, mean 1; a tensor without weights counts plainly.
        positions: Layer node -> weight of each output position of one sample, mean 1, for the moments of its inputs;
            without, all positions count the same.
    """

    metric: Metric = "mse"
    weights: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    positions: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ConfigError(f"metric must be one of {', '.join(METRICS)}, found {self.metric!r}")

    def of(self, names: Iterable[str]) -> Objective:
        """The same for some tensors only."""
        return Objective(self.metric, {name: self.weights[name] for name in names if name in self.weights})

    def errors(
        self, exact: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], names: Iterable[str]
    ) -> BatchErrors:
        """Errors of one batch of several tensors, see ``error``."""
        return [(name, *self.error(name, exact[name], found[name])) for name in names]

    def error(self, name: str, exact: np.ndarray, found: np.ndarray) -> tuple[float, float]:
        """Error of one batch of a tensor and what it is relative to, both to be summed over batches.

        Args:
            name: The tensor.
            exact: Its float values, float32.
            found: The values to judge, same shape.
        """
        if self.metric == "cosine":
            return _cosine(exact, found)
        difference = np.square(found - exact)
        energy = np.square(exact)
        weight = self.weights.get(name) if self.metric == "fisher" else None
        if weight is not None and weight.size and exact.size % weight.size == 0:
            shape = (-1, weight.size)
            flat = weight.reshape(-1).astype(np.float32)
            return float((difference.reshape(shape) @ flat).sum()), float((energy.reshape(shape) @ flat).sum())
        return float(difference.sum(dtype=np.float64)), float(energy.sum(dtype=np.float64))


def _cosine(exact: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    rows = [array.reshape(array.shape[0] if array.ndim else 1, -1).astype(np.float64) for array in (exact, found)]
    norms = [np.linalg.norm(row, axis=1) for row in rows]
    cosine = np.einsum("ij,ij->i", *rows) / np.maximum(norms[0] * norms[1], 1e-30)
    return float((1.0 - cosine).sum()), float(len(cosine))


class ErrorSum:
    """Adds up the errors of several tensors over batches."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._sums: dict[str, list[float]] = {}

    def update(self, exact: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], names: Sequence[str]) -> None:
        """Take in one batch."""
        self.add(self._objective.errors(exact, found, names))

    def add(self, errors: BatchErrors) -> None:
        """Take in the errors of one batch."""
        for name, error, size in errors:
            entry = self._sums.setdefault(name, [0.0, 0.0])
            entry[0] += error
            entry[1] += size

    def value(self) -> float:
        """Sum over the tensors of error relative to size."""
        return sum(error / max(size, 1e-30) for error, size in self._sums.values())
