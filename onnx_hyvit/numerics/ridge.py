"""What moments of a layer's inputs give in closed form: ridge and bias correction.

x is the float input of a layer, ``x~`` what the quantized graph feeds it, ``dx = x~ - x``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import ConfigError
from .moments import InputMoments


def ridge_correct(
    weight: np.ndarray, moments: InputMoments, strength: float = 0.01, *, centred: bool = True
) -> np.ndarray:
    """Float weight that makes up for the error of the quantized inputs (ERQ, arXiv 2407.06794).

    Minimises ``E|(W + dW) x~ - W x|^2 + l |dW|^2``, l = ``strength`` times the mean diagonal of the Gram matrix:
    ``dW = -W E[dx x~^T] (E[x~ x~^T] + l I)^-1``. With ``centred`` the bias is free too, to be set by ``bias_shift``.

    Args:
        weight: Rows ``[P, out, I]``.
        moments: Moments of the layer's inputs.
        strength: Regularisation, >= 0.
        centred: Use covariances.

    Returns:
        ``W + dW``, float64, same shape. Rounding it with ``gram`` (or ``centred_gram``) minimises the error against the
        float layer.

    Raises:
        ConfigError: ``strength`` is negative.
    """
    if strength < 0:
        raise ConfigError(f"strength must not be negative, found {strength}")
    gram = moments.centred_gram if centred else moments.gram
    cross = moments.centred_cross if centred else moments.cross
    energy = np.diagonal(gram, axis1=-2, axis2=-1).mean(axis=-1)[..., None, None]
    level = np.where(energy > 0, energy, 1.0) * max(strength, 1e-12)
    damped = gram + level * np.eye(gram.shape[-1])
    weight = np.asarray(weight, np.float64)
    change = np.linalg.solve(damped, (weight @ cross).swapaxes(-1, -2)).swapaxes(-1, -2)
    return weight - change


RIDGE_STRENGTHS = (0.1, 1.0, 10.0)
TRUSTED_SHARE = 0.5


def choose_strength(
    weight: np.ndarray,
    halves: Sequence[InputMoments],
    strengths: Sequence[float] = RIDGE_STRENGTHS,
    trusted: float = TRUSTED_SHARE,
) -> float | None:
    """The ridge that does best on inputs that it was not fitted to.

    ``dW`` changes the squared output error by ``tr(dW G dW^T) + 2 tr(dW E[x~ dx^T] W^T)``. Fitted to one half of the
    data, it is judged with the moments of the other. A ridge that keeps less than ``trusted`` of its gain there follows
    noise of the samples and is refused, even though it gains: the samples behind both halves went through the layers
    before, which were fitted to all of them.

    Args:
        weight: Rows ``[P, out, I]``.
        halves: Moments of two disjoint sets of samples.
        strengths: Candidates.
        trusted: Share of the gain, 0 to 1.

    Returns:
        The best strength, or None when leaving the weight as it is does better than all.
    """
    rows = np.asarray(weight, np.float64)
    best, most = None, 0.0
    for strength in strengths:
        kept = promised = 0.0
        for fitted, held_out in (tuple(halves), tuple(halves)[::-1]):
            change = ridge_correct(rows, fitted, strength) - rows
            promised += _gain(rows, change, fitted)
            kept += _gain(rows, change, held_out)
        if kept > most and kept >= trusted * promised:
            best, most = strength, kept
    return best


def _gain(rows: np.ndarray, change: np.ndarray, moments: InputMoments) -> float:
    """By how much ``change`` lowers the squared output error, the bias set by ``bias_shift``."""
    own = float(np.sum((change @ moments.centred_gram) * change))
    return -own - 2.0 * float(np.sum((rows @ moments.centred_cross) * change))


def bias_shift(weight: np.ndarray, weight_quantized: np.ndarray, moments: InputMoments) -> np.ndarray:
    """What to add to the bias so that the mean output stays: ``-(E[W^ x~] - E[W x])``.

    Args:
        weight: Float rows ``[P, out, I]``.
        weight_quantized: Dequantized rows, same shape.
        moments: Moments of the layer's inputs.

    Returns:
        float64 ``[P * out]``, in the order of the layer's output channels.
    """
    quantized = np.einsum("poi,pi->po", np.asarray(weight_quantized, np.float64), moments.mean_quantized)
    exact = np.einsum("poi,pi->po", np.asarray(weight, np.float64), moments.mean)
    return (exact - quantized).reshape(-1)
