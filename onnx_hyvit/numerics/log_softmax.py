"""Logarithm of the softmax, without overflow."""

from __future__ import annotations

import numpy as np


def log_softmax(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """``log(exp(x) / sum(exp(x)))`` along ``axis``.

    Args:
        values: Scores, float64, any shape.
        axis: Axis of the classes.
    """
    shifted = values - values.max(axis=axis, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)))
