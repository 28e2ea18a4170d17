"""Operators by their definition in float64, where the reference evaluator of the onnx package is wrong or rounds."""

from __future__ import annotations

import math

import numpy as np

_erf = np.vectorize(math.erf)


def _gelu(attrs, x):
    if attrs.get("approximate") == "tanh":
        return _fast_gelu(attrs, x)
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _fast_gelu(attrs, x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _quick_gelu(attrs, x):
    return x / (1 + np.exp(-attrs.get("alpha", 1.702) * x))


def _group_norm(attrs, x, scale, bias):
    groups = attrs["num_groups"]
    parts = x.reshape(x.shape[0], groups, -1)
    variance = parts.var(axis=2, keepdims=True)
    normal = ((parts - parts.mean(axis=2, keepdims=True)) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    repeat = x.shape[1] // len(scale)
    shape = (-1,) + (1,) * (x.ndim - 2)
    return normal * np.repeat(scale, repeat).reshape(shape) + np.repeat(bias, repeat).reshape(shape)


def _lp_normalization(attrs, x):
    return x / np.linalg.norm(x, ord=attrs.get("p", 2), axis=attrs.get("axis", -1), keepdims=True)


def _mean_variance(attrs, x):
    centred = x - x.mean(axis=(0, 2, 3), keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=(0, 2, 3), keepdims=True))


DEFINITIONS = {
    "Erf": lambda attrs, x: _erf(x),
    "FastGelu": _fast_gelu,
    "Gelu": _gelu,
    "GroupNormalization": _group_norm,
    "LpNormalization": _lp_normalization,
    "MeanVarianceNormalization": _mean_variance,
    "QuickGelu": _quick_gelu,
}
