"""Weight rounding that minimises the error of a layer's output instead of the error of the weights.

With inputs x and their second moments ``G = E[x x^T]`` the output error of a row w of the weight is
``E[((w - wq) x)^2] = (w - wq) G (w - wq)^T``. Weighting output channels by a diagonal D multiplies each row's error by
a constant, so that it changes no rounding here: fold weights of output *positions* into G instead.

Weights are rows ``[..., out, in]`` with one ``G`` ``[..., in, in]`` for each leading index: groups of a grouped or
depthwise convolution are a leading axis (see ``ridge.weight_rows``). Everything is vectorised over rows and groups.
"""

from __future__ import annotations

import numpy as np

from ..errors import ConfigError
from .affine import QuantSpec

SMALL = 64  # triangular matrices up to this size are inverted at once


def output_error(difference: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """``d G d^T`` of each row.

    Args:
        difference: ``[..., out, in]``.
        gram: ``[..., in, in]``.

    Returns:
        float64 ``[..., out]``.
    """
    difference = np.asarray(difference, np.float64)
    return np.einsum("...oi,...oi->...o", difference @ gram, difference)


def nearest_codes(
    weight: np.ndarray, scale: np.ndarray, spec: QuantSpec, zero_point: np.ndarray | int = 0
) -> np.ndarray:
    """Round to nearest, ``clip(round(w / scale) + zero_point)``, as float64 whole numbers.

    Args:
        weight: ``[..., out, in]``.
        scale: ``[..., out]``, positive.
        spec: Code range.
        zero_point: Whole numbers, scalar or like ``scale``.
    """
    zero = _columns(zero_point, scale)
    return np.clip(np.rint(weight / scale[..., None]) + zero, spec.qmin, spec.qmax)


def _columns(zero_point: np.ndarray | int, scale: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.asarray(zero_point, np.float64), scale.shape)[..., None]


def gptq_round(
    weight: np.ndarray,
    gram: np.ndarray,
    scale: np.ndarray,
    spec: QuantSpec,
    *,
    zero_point: np.ndarray | int = 0,
    damping: float = 0.01,
    block: int = 128,
    act_order: bool = True,
    sweeps: int = 1,
    keep_best: bool = True,
) -> np.ndarray:
    """Codes by optimal brain quantization in a fixed order (GPTQ, arXiv 2210.17323; OBQ, arXiv 2208.11580).

    Column by column the weight is rounded and its error ``e_j = (w_j - q_j) / U_jj`` is spread over the columns that
    are still free, ``w_k -= e_j U_jk``, where ``U^T U = (G + d mean(diag G) I)^-1`` is the upper Cholesky factor.
    Sweeps of coordinate descent follow: each code in turn takes its best value for the others as they are, so the error
    never grows.

    Args:
        weight: Float ``[..., out, in]``.
        gram: ``E[x x^T]``, ``[..., in, in]``, symmetric, positive semi-definite.
        scale: ``[..., out]``, positive; stays as it is.
        spec: Code range.
        zero_point: Whole numbers, scalar or like ``scale``.
        damping: d, relative to the mean diagonal of G; an input that was never seen is rounded to nearest.
        block: Columns between two updates of the rest.
        act_order: Round the columns with the most energy first.
        sweeps: Sweeps of coordinate descent.
        keep_best: Give a row its nearest codes where these do better (GPTQ is greedy).

    Returns:
        Codes in the container dtype, of ``weight``'s shape.

    Raises:
        ConfigError: Shapes disagree, or a value is NaN or Inf.
    """
    weight, gram, scale = _checked(weight, gram, scale)
    order = _column_order(gram, act_order)
    inverse = np.argsort(order, axis=-1)
    moved = np.take_along_axis(weight, order[..., None, :], axis=-1)
    turned = np.take_along_axis(np.take_along_axis(gram, order[..., :, None], -2), order[..., None, :], -1)
    zero = _columns(zero_point, scale)
    codes = _eliminate(moved, _inverse_factor(turned, damping), scale, spec, zero, block)
    codes = np.take_along_axis(codes, inverse[..., None, :], axis=-1)
    if keep_best:
        nearest = nearest_codes(weight, scale, spec, zero_point)
        errors = [output_error((c - zero) * scale[..., None] - weight, gram) for c in (codes, nearest)]
        codes = np.where((errors[1] < errors[0])[..., None], nearest, codes)
    for _ in range(sweeps):
        codes = descend(weight, codes, gram, scale, spec, zero_point=zero_point)
    return codes.astype(spec.dtype)


def _checked(weight: np.ndarray, gram: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    weight, gram, scale = (np.asarray(array, np.float64) for array in (weight, gram, scale))
    width = weight.shape[-1]
    if gram.shape != (*weight.shape[:-2], width, width) or scale.shape != weight.shape[:-1]:
        raise ConfigError(f"weight {weight.shape}, gram {gram.shape} and scale {scale.shape} do not fit together")
    if not (np.isfinite(weight).all() and np.isfinite(gram).all() and np.isfinite(scale).all()):
        raise ConfigError("weight rounding found NaN or Inf in the weight, the Gram matrix or the scale")
    return weight, gram, scale


def _column_order(gram: np.ndarray, act_order: bool) -> np.ndarray:
    energy = np.diagonal(gram, axis1=-2, axis2=-1)
    if act_order:
        return np.argsort(-energy, axis=-1, kind="stable")
    return np.broadcast_to(np.arange(energy.shape[-1]), energy.shape)


def _inverse_factor(gram: np.ndarray, damping: float) -> np.ndarray:
    """Upper triangular U with ``U^T U = (G + d mean(diag G) I)^-1``; more damping where G is too close to singular.

    What rounding errors made indefinite is taken for its positive part.

    The Cholesky factor of G turned by 180 degrees, turned back, is an upper V with ``V V^T = G``, so that ``U = V^-1``.
    """
    width = gram.shape[-1]
    energy = np.diagonal(gram, axis1=-2, axis2=-1).mean(axis=-1)[..., None, None]
    energy = np.where(energy > 0, energy, 1.0)
    amount = max(damping, 1e-12)
    while True:
        try:
            turned = np.linalg.cholesky((gram / energy + amount * np.eye(width))[..., ::-1, ::-1])
            return _inverse_upper(turned[..., ::-1, ::-1]) / np.sqrt(energy)
        except np.linalg.LinAlgError:
            if amount > 1.0:  # not even nearly semi-definite: rounding errors of moments are larger than the variances
                gram, amount = _positive_part(gram), max(damping, 1e-12)
            else:
                amount *= 10.0


def _positive_part(gram: np.ndarray) -> np.ndarray:
    """The nearest positive semi-definite matrices."""
    values, vectors = np.linalg.eigh(gram)
    return (vectors * np.maximum(values, 0.0)[..., None, :]) @ vectors.swapaxes(-1, -2)


def _inverse_upper(matrix: np.ndarray) -> np.ndarray:
    """Inverse of upper triangular matrices ``[..., n, n]``, by halves: mostly matrix products."""
    size = matrix.shape[-1]
    if size <= SMALL:
        return np.triu(np.linalg.inv(matrix))
    half = size // 2
    first, last = _inverse_upper(matrix[..., :half, :half]), _inverse_upper(matrix[..., half:, half:])
    inverse = np.zeros_like(matrix)
    inverse[..., :half, :half], inverse[..., half:, half:] = first, last
    inverse[..., :half, half:] = -first @ matrix[..., :half, half:] @ last
    return inverse


def _eliminate(
    weight: np.ndarray, factor: np.ndarray, scale: np.ndarray, spec: QuantSpec, zero: np.ndarray, block: int
) -> np.ndarray:
    rest = weight.copy()
    codes = np.empty_like(rest)
    width = rest.shape[-1]
    for start in range(0, width, block):
        stop = min(start + block, width)
        errors = np.empty((*rest.shape[:-1], stop - start))
        for column in range(start, stop):
            value = rest[..., column]
            code = np.clip(np.rint(value / scale) + zero[..., 0], spec.qmin, spec.qmax)
            codes[..., column] = code
            error = (value - (code - zero[..., 0]) * scale) / factor[..., column, column][..., None]
            errors[..., column - start] = error
            rest[..., column + 1 : stop] -= error[..., None] * factor[..., None, column, column + 1 : stop]
        rest[..., stop:] -= errors @ factor[..., start:stop, stop:]
    return codes


def descend(
    weight: np.ndarray,
    codes: np.ndarray,
    gram: np.ndarray,
    scale: np.ndarray,
    spec: QuantSpec,
    *,
    zero_point: np.ndarray | int = 0,
) -> np.ndarray:
    """One sweep of coordinate descent over the codes of ``w``: ``q_j <- round((w_j - sum_k!=j d_k G_kj / G_jj) / s)``.

    ``d = wq - w``. The error of no row grows. Columns that were never seen (``G_jj = 0``) are left alone.

    Args:
        weight: ``[..., out, in]``.
        codes: Whole numbers, same shape.
        gram: ``[..., in, in]``.
        scale: ``[..., out]``.
        spec: Code range.
        zero_point: Scalar or like ``scale``.

    Returns:
        New codes, float64.
    """
    zero = _columns(zero_point, scale)
    codes = np.asarray(codes, np.float64).copy()
    difference = (codes - zero) * scale[..., None] - weight
    pull = difference @ gram  # gradient / 2 of each coordinate
    energy = np.diagonal(gram, axis1=-2, axis2=-1)
    for column in range(weight.shape[-1]):
        own = energy[..., column][..., None]
        safe = np.where(own > 0, own, 1.0)
        step = np.where(own > 0, np.rint(-pull[..., column] / safe / scale), 0.0)
        moved = np.clip(codes[..., column] + step, spec.qmin, spec.qmax) - codes[..., column]
        codes[..., column] += moved
        pull += (moved * scale)[..., None] * gram[..., None, column, :]
    return codes


def search_scale(
    weight: np.ndarray,
    gram: np.ndarray,
    base: np.ndarray,
    spec: QuantSpec,
    *,
    low: float = 0.01,
    high: float = 1.2,
    candidates: int = 101,
    stride: int = 5,
    shared: bool = False,
) -> np.ndarray:
    """Scale of each row with the smallest output error of nearest rounding.

    Candidates are ``a_i base``, ``a_i = low + i (high - low) / (candidates - 1)``: first every ``stride``-th, then the
    neighbours of each row's best. ``base`` itself is a candidate, so that the result is never worse.

    Args:
        weight: ``[..., out, in]``; symmetric codes (zero point 0).
        gram: ``[..., in, in]``.
        base: ``[..., out]``, such as ``absmax / qmax``.
        spec: Code range, signed and symmetric.
        low: Smallest factor.
        high: Largest factor.
        candidates: Number of factors.
        stride: Coarseness of the first pass; 1 tries all.
        shared: One factor for all rows (a scale per tensor).

    Returns:
        float64 scales ``[..., out]``.

    Raises:
        ConfigError: Shapes disagree, or the spec is not signed and symmetric.
    """
    if not (spec.signed and spec.symmetric):
        raise ConfigError("the scale search is for signed symmetric weights")
    weight, gram, base = _checked(weight, gram, base)
    factors = np.linspace(low, high, candidates)
    best = np.ones_like(base)
    least = _nearest_error(weight, gram, base, spec, shared)
    centre = np.full(base.shape, int(np.argmin(np.abs(factors - 1.0))))
    for index in range(0, candidates, stride):
        position = np.full(base.shape, index)
        best, least, centre = _try(position, best, least, centre, weight, gram, base, spec, shared, factors)
    middle = centre.copy()
    for offset in (o for o in range(1 - stride, stride) if o):
        position = np.clip(middle + offset, 0, candidates - 1)
        best, least, centre = _try(position, best, least, centre, weight, gram, base, spec, shared, factors)
    return best * base


def _nearest_error(
    weight: np.ndarray, gram: np.ndarray, scale: np.ndarray, spec: QuantSpec, shared: bool
) -> np.ndarray:
    rounded = nearest_codes(weight, scale, spec) * scale[..., None]
    error = output_error(rounded - weight, gram)
    return np.full_like(error, error.sum()) if shared else error


def _try(
    position: np.ndarray, best: np.ndarray, least: np.ndarray, centre: np.ndarray, weight: np.ndarray,
    gram: np.ndarray, base: np.ndarray, spec: QuantSpec, shared: bool, factors: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    error = _nearest_error(weight, gram, factors[position] * base, spec, shared)
    better = error < least
    return (
        np.where(better, factors[position], best),
        np.where(better, error, least),
        np.where(better, position, centre),
    )
