"""Accuracy of an ONNX model through onnxruntime, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .datasets import DataError, Images, batches, to_input

Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution


@dataclass(frozen=True)
class Share:
    """A share of n cases with its 95 % confidence interval.

    Attributes:
        value: 0..1.
        low: lower end of the interval, 0..1 (-1..1 for a difference).
        high: upper end.
        n: number of cases.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.value:.2f} % (95 %: {100 * self.low:.2f} to {100 * self.high:.2f}, n = {self.n})"


def wilson(hits: int, n: int) -> Share:
    """Share of `hits` in `n` with the Wilson score interval.

    With p = hits / n and z = 1.96 the interval is
    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).
    """
    if not 0 <= hits <= n or n == 0:
        raise ValueError(f"{hits} hits of {n} cases")
    p, z2 = hits / n, Z95 * Z95
    centre = p + z2 / (2 * n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return Share(p, (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n), n)


def paired_difference(right: np.ndarray, right_other: np.ndarray) -> Share:
    """Accuracy minus the other model's accuracy on the same images.

    The interval is the normal one of the mean of the per-image differences (-1, 0 or 1).

    Args:
        right: bool [n], whether each image was classified correctly.
        right_other: bool [n], the same for the other model.
    """
    difference = right.astype(np.float64) - right_other.astype(np.float64)
    half = Z95 * float(difference.std()) / math.sqrt(len(difference))
    mean = float(difference.mean())
    return Share(mean, mean - half, mean + half, len(difference))


def open_session(model: Path, threads: int = 0) -> Any:
    """Open an onnxruntime session on the CPU.

    Args:
        model: ONNX file.
        threads: threads of onnxruntime, 0 for its own choice.

    Raises:
        DataError: if the file is missing or no model that onnxruntime can load.
    """
    import onnxruntime as ort

    if not model.is_file():
        raise DataError(f"{model}: no such model file")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime raises a dozen unrelated types
        raise DataError(f"{model}: onnxruntime cannot load it ({str(e).splitlines()[0]})") from e


def predict(session: Any, images: Images, preprocessing: Mapping[str, Any], batch: int = 100) -> np.ndarray:
    """Logits of every image.

    Args:
        session: onnxruntime session with one image input [n, 3, side, side].
        images: what to classify.
        preprocessing: entry of the index: size, mean and std are used.
        batch: images per call; a model with a fixed batch size decides itself.

    Returns:
        float32 [n, classes].
    """
    entry = session.get_inputs()[0]
    if len(entry.shape) != 4:
        raise DataError(f"input {entry.name} has shape {entry.shape}, expected [N, 3, height, width]")
    size = entry.shape[0] if isinstance(entry.shape[0], int) else batch
    outputs = []
    for part in batches(images, size):
        x = to_input(part.pixels, int(preprocessing["size"][0]), preprocessing["mean"], preprocessing["std"])
        filler = size - len(x) if isinstance(entry.shape[0], int) else 0
        if filler:  # a fixed batch must be full
            x = np.concatenate([x, np.repeat(x[-1:], filler, axis=0)])
        logits = session.run(None, {entry.name: x})[0]
        outputs.append(np.asarray(logits, np.float32)[: len(part)])
    return np.concatenate(outputs)
