"""Weights as per-channel symmetric codes, and the int32 bias that goes with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from ..errors import ConfigError
from .affine import QParams, QuantSpec, fake_quantize, qparams_from_range, quantize
from .ranges import extremes

WeightMethod = Literal["minmax", "mse"]
WEIGHT_SPEC = QuantSpec(bits=8, signed=True, symmetric=True, axis=0, narrow=True)
BIAS_LIMIT = 2**30  # half of int32: the sum of products needs room as well


def weight_qparams(
    weight: np.ndarray, spec: QuantSpec = WEIGHT_SPEC, method: WeightMethod = "minmax", steps: int = 50
) -> QParams:
    """Scale and zero point of a weight.

    A dead channel (all zeros) takes the smallest scale of the live ones: its codes are 0 with any scale, but the bias
    of the channel is stored in steps of ``input_scale * scale`` and must stay precise.

    Args:
        weight: Float, any shape.
        spec: Codes; ``axis`` is the output channel.
        method: ``minmax`` covers every value; ``mse`` searches the clip with the smallest squared error in each
            channel, never worse than ``minmax``.
        steps: Clips tried by ``mse``.

    Returns:
        float32 scales, positive and finite.

    Raises:
        ConfigError: The weight holds NaN or Inf, or the method is unknown.
    """
    if method not in ("minmax", "mse"):
        raise ConfigError(f"weight method must be minmax or mse, found {method!r}")
    if not weight.size:
        raise ConfigError("the weight is empty")
    weight = np.asarray(weight, np.float32)
    low, high = extremes(weight, spec.axis)
    base = qparams_from_range(low, high, spec)
    if method == "mse":
        base = _search_clip(weight, np.asarray(low), np.asarray(high), base, steps)
    return _revive_dead(base, np.maximum(-np.asarray(low), high))


def _search_clip(weight: np.ndarray, low: np.ndarray, high: np.ndarray, base: QParams, steps: int) -> QParams:
    best_error = _channel_error(weight, base)
    scale, zero_point = base.scale.copy(), base.zero_point.copy()
    for factor in np.linspace(1.0, 0.4, steps)[1:]:
        candidate = qparams_from_range(low * factor, high * factor, base.spec)
        error = _channel_error(weight, candidate)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        scale = np.where(better, candidate.scale, scale)
        zero_point = np.where(better, candidate.zero_point, zero_point)
    return QParams(scale, zero_point, base.spec)


def _channel_error(weight: np.ndarray, qparams: QParams) -> np.ndarray:
    """Squared error of the codes, summed over each channel: float64 scalar or [C]."""
    error = np.square((fake_quantize(weight, qparams) - weight).astype(np.float64))
    axis = qparams.spec.axis
    if axis is None:
        return error.sum()
    return error.sum(axis=tuple(i for i in range(weight.ndim) if i != axis % weight.ndim))


def _revive_dead(qparams: QParams, largest: np.ndarray) -> QParams:
    live = largest > 0
    if qparams.spec.axis is None or live.all() or not live.any():
        return qparams
    return replace(qparams, scale=np.where(live, qparams.scale, qparams.scale[live].min()))


def fit_scale_to_bias(bias: np.ndarray, input_scale: np.ndarray, weight: QParams) -> QParams:
    """Enlarge the weight scales with which the bias would not fit into int32.

    A channel of tiny weights has a tiny scale, and ``bias / (input_scale * scale)`` can exceed int32. The enlarged
    scale costs precision of weights which are tiny beside the bias.

    Args:
        bias: Float [C].
        input_scale: Scale of the activation, scalar.
        weight: Its scale is [C], or a scalar (then the largest ratio decides).

    Returns:
        ``weight`` itself when everything fits, else a copy with ``|bias| / (input_scale * scale) <= 2**30``.
    """
    least = np.abs(np.asarray(bias, np.float64)) / (float(input_scale) * BIAS_LIMIT)
    if weight.spec.axis is None:
        least = least.max(initial=0.0)
    if (weight.scale >= least).all():
        return weight
    enlarged = np.nextafter(np.maximum(weight.scale, least).astype(np.float32), np.float32(np.inf))
    return replace(weight, scale=np.where(weight.scale >= least, weight.scale, enlarged))


def quantize_bias(bias: np.ndarray, input_scale: np.ndarray, weight_scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``round(bias / (input_scale * weight_scale))``, half to even.

    Args:
        bias: Float [C].
        input_scale: float32 scalar.
        weight_scale: float32 scalar or [C].

    Returns:
        Codes int32 [C], and their scale: float32, the shape of ``weight_scale``, the product that the integer kernel
        implies and that DequantizeLinear must carry.

    Raises:
        ConfigError: A code does not fit into int32, or the bias is not finite; call ``fit_scale_to_bias`` first.
    """
    scale = np.asarray(input_scale, np.float32) * np.asarray(weight_scale, np.float32)
    if not (scale > 0).all():
        raise ConfigError("the bias scale underflows to 0: input scale times weight scale is below float32")
    codes = np.rint(np.asarray(bias, np.float64) / scale)
    if not np.isfinite(codes).all():
        raise ConfigError("the bias holds NaN or Inf")
    if (np.abs(codes) > 2**31 - 1).any():
        raise ConfigError(f"the bias needs the code {np.abs(codes).max():.0f}, more than int32 holds")
    return codes.astype(np.int32), scale


def quantize_weight(
    weight: np.ndarray, spec: QuantSpec = WEIGHT_SPEC, method: WeightMethod = "minmax"
) -> tuple[np.ndarray, QParams]:
    """Codes of ``weight`` in the container dtype, and their qparams; see ``weight_qparams``."""
    qparams = weight_qparams(weight, spec, method)
    return quantize(np.asarray(weight, np.float32), qparams), qparams
