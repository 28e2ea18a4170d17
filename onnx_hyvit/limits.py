"""What a finished model reached of the limit that was asked for: divergence, or top-1 on labelled samples."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from .calibration import Source
from .config import QuantConfig
from .errors import CalibrationError, ConfigError
from .labels import labels_of, load_labels
from .runtime import make_session

Labels = Mapping[str, int] | np.ndarray


def read_labels(labels: str | os.PathLike[str] | np.ndarray | None, config: QuantConfig) -> Labels | None:
    """The labels that the limit of ``config`` needs.

    Raises:
        ConfigError: It needs labels and there are none, or the other way round.
        CalibrationError: The labels cannot be read.
    """
    if labels is None and config.max_loss is not None:
        raise ConfigError(
            f"max_drop {config.max_drop} is a loss of top-1 and needs labels of the calibration samples (--labels); "
            "without them give a divergence, such as 0.01"
        )
    if labels is not None and config.max_loss is None:
        raise ConfigError(f"labels need a max_drop in percent, such as 0.5%; found max_drop {config.max_drop}")
    return None if labels is None else load_labels(labels)


@dataclass(frozen=True)
class Reached:
    """What a finished model reached.

    Args:
        value: Divergence, or the share of samples that top-1 lost (below 0 where it won).
        details: More about it, plain values for the report.
    """

    value: float
    details: Mapping[str, Any] = field(default_factory=dict)


class Top1:
    """Top-1 of the float model on labelled samples, and of models made from it."""

    def __init__(self, proto: onnx.ModelProto, source: Source, labels: Labels, threads: int = 2) -> None:
        """Run the float model once.

        Args:
            proto: The float model; class scores lie on the last axis of its first output.
            source: Calibration data.
            labels: Class numbers of its samples.
            threads: Threads of the sessions.

        Raises:
            CalibrationError: A sample has no label, or the model gives no class scores for it.
        """
        self._source, self._threads = source, threads
        self._truth = np.array([label for ids, _ in source for label in labels_of(ids, labels)])
        self._right = self._answers(proto) == self._truth

    def of(self, proto: onnx.ModelProto) -> Reached:
        """How many samples a model with the same outputs loses.

        ``standard_error`` is that of the loss as a share, from the samples on which just one of the two is right.
        """
        right, samples = self._answers(proto) == self._truth, len(self._truth)
        lost, won = int((self._right & ~right).sum()), int((right & ~self._right).sum())
        found = {
            "samples": samples,
            "float": float(self._right.mean()),
            "int8": float(right.mean()),
            "lost": lost,
            "won": won,
            "one_sample": 1 / samples,
            "standard_error": math.sqrt(lost + won) / samples,
        }
        return Reached((lost - won) / samples, {"top1": found})

    def _answers(self, proto: onnx.ModelProto) -> np.ndarray:
        session = make_session(proto, threads=self._threads)
        name, found = session.output_names[0], []
        for ids, feeds in self._source:
            scores = session.run(feeds, [name])[name]
            if scores.ndim < 2 or scores.shape[-1] < 2 or len(scores) < len(ids):
                raise CalibrationError(
                    f"output {name!r} has shape {scores.shape}, no class scores; a max_drop in percent needs them"
                )
            found.append(scores[: len(ids)].reshape(len(ids), -1).argmax(axis=1))
        return np.concatenate(found)
