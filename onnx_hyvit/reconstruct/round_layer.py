"""The weight and bias of one layer, rounded for the inputs that the quantized graph really feeds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..numerics import QParams, weight_qparams
from ..numerics.moments import InputMoments, merge_moments
from ..numerics.refit import refit_scale
from ..numerics.ridge import bias_shift, choose_strength, ridge_correct
from ..numerics.rounding import gptq_round, nearest_codes, output_error, search_scale
from ..runtime import run_at_once
from .layers import Layer

Rounding = Literal["nearest", "gptq"]
SCALE_FACTORS = (0.4, 1.0)  # of the scale that covers every weight
SCALES_TRIED = 25
POSITIONS_PER_INPUT = 4  # fewer samples than this per input of a layer, and a ridge learns them by heart
SEARCHED_BITS = 5  # up to here the output decides a weight's scale, above it the weight's own error
STEADY = 1e-3  # of the mean input energy, added to the diagonal of the Gram matrix in the scale search


@dataclass(frozen=True)
class RoundedLayer:
    """What became of a layer.

    Args:
        weight: Float values of the weight's codes, stored as the layer's weight is.
        bias: The corrected bias [out], or None without one.
        qparams: Scale of the weight.
        ridge: Strength of the correction for the inputs' error, None when there was none.
        rounding: How the codes were chosen.
    """

    weight: np.ndarray
    bias: np.ndarray | None
    qparams: QParams
    ridge: float | None
    rounding: Rounding


def round_layer(
    layer: Layer,
    weight: np.ndarray,
    bias: np.ndarray | None,
    halves: tuple[InputMoments, InputMoments],
    *,
    start: QParams,
    rounding: Rounding = "gptq",
    ridge: bool = True,
    correct_bias: bool = True,
    refit: bool = True,
    at_once: int = 1,
) -> RoundedLayer:
    """Choose codes, scale and bias of a layer that minimise ``E|W^ x~ + b^ - (W x + b)|^2``.

    In order: a ridge that makes up for the error of the inputs, its strength chosen on held-out samples (ERQ); a scale
    for each output channel; codes by GPTQ; all scales again, for these codes; the bias that keeps the mean output.
    Inputs that no output reads, such as padded channels, stay unread.

    Args:
        layer: The layer.
        weight: Its float weight, as stored.
        bias: Its float bias [out], or None.
        halves: Moments of its inputs over two disjoint halves of the samples.
        start: Scale of the weight so far.
        rounding: ``nearest`` or ``gptq``.
        ridge: Whether to correct for the inputs' error.
        correct_bias: Whether to correct the bias.
        refit: Whether to fit the scales again, by one factor, once the codes are known.
        at_once: Threads that round at the same time.
    """
    rows = layer.rows(weight)
    unread = np.asarray(~rows.any(axis=-2))
    if unread.any():
        halves = halves[0].without(unread), halves[1].without(unread)
    moments = merge_moments(halves)
    free_bias = correct_bias and bias is not None
    gram = moments.centred_gram if free_bias else moments.gram
    enough = moments.weight >= POSITIONS_PER_INPUT * rows.shape[-1]
    strength = choose_strength(rows, halves) if ridge and free_bias and enough else None
    wanted = rows if strength is None else ridge_correct(rows, moments, strength)
    use_gptq = rounding == "gptq" and _gptq_holds(layer, wanted, halves, start, free_bias, at_once)
    scale, qparams = _scales(layer, wanted, weight, gram, start, use_gptq or strength is not None)
    if use_gptq:
        codes = gptq_round(wanted, gram, scale, layer.spec).astype(np.float64)
    else:
        codes = nearest_codes(wanted, scale, layer.spec)
    if refit:
        factor = refit_scale(rows, codes * scale[..., None], moments, centred=free_bias)
        qparams = QParams(qparams.scale * np.float32(factor), qparams.zero_point, qparams.spec)
        scale = _column(qparams, wanted)
    rounded = codes * scale[..., None]
    new_bias = bias
    if free_bias and bias is not None:
        new_bias = (bias.reshape(-1).astype(np.float64) + bias_shift(rows, rounded, moments)).astype(np.float32)
        new_bias = new_bias.reshape(bias.shape)
    method: Rounding = "gptq" if use_gptq else "nearest"
    return RoundedLayer(layer.weight_of_rows(rounded, weight), new_bias, qparams, strength, method)


def _gptq_holds(
    layer: Layer,
    wanted: np.ndarray,
    halves: tuple[InputMoments, InputMoments],
    start: QParams,
    centred: bool,
    at_once: int,
) -> bool:
    """Whether GPTQ fitted to one half of the samples beats nearest codes on the other half."""
    scale = _column(start, wanted)
    plain = nearest_codes(wanted, scale, layer.spec) * scale[..., None] - wanted
    grams = [half.centred_gram if centred else half.gram for half in halves]

    def gain(fitted: int) -> float:
        codes = gptq_round(wanted, grams[fitted], scale, layer.spec, sweeps=0).astype(np.float64)
        change, held_out = codes * scale[..., None] - wanted, grams[1 - fitted]
        return float(output_error(plain, held_out).sum() - output_error(change, held_out).sum())

    return sum(run_at_once(gain, (0, 1), min(at_once, 2))) > 0.0


def _scales(
    layer: Layer, wanted: np.ndarray, weight: np.ndarray, gram: np.ndarray, start: QParams, changed: bool
) -> tuple[np.ndarray, QParams]:
    """Scale of each row, and the same as qparams; searched where codes are coarse, else fitted to ``wanted``."""
    spec = layer.spec
    if not changed or spec.axis is None or not (spec.signed and spec.symmetric):
        return _column(start, wanted), start
    stored = layer.weight_of_rows(wanted, weight)
    if spec.bits > SEARCHED_BITS:
        fitted = weight_qparams(stored, spec, "mse")
        return _column(fitted, wanted), fitted
    base = _column(weight_qparams(stored, spec, "minmax"), wanted)
    energy = np.diagonal(gram, axis1=-2, axis2=-1).mean(-1)[..., None, None]
    steady = gram + STEADY * energy * np.eye(gram.shape[-1])
    low, high = SCALE_FACTORS
    scale = search_scale(wanted, steady, base, spec, low=low, high=high, candidates=SCALES_TRIED, stride=4)
    scale = scale.astype(np.float32)
    return scale.astype(np.float64), QParams(scale.reshape(-1), np.zeros(scale.size, spec.dtype), spec)


def _column(qparams: QParams, rows: np.ndarray) -> np.ndarray:
    """Scale of each row as float64 [P, out]."""
    scale = np.asarray(qparams.scale, np.float64)
    return np.broadcast_to(scale, rows.shape[:2]) if scale.ndim == 0 else scale.reshape(rows.shape[:2])
