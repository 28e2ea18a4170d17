"""The scale of weights fitted again once their codes are known, so that outputs do not shrink from layer to layer.

What is clipped is smaller than before, in weights as in ranges, and so is what least squares on noisy inputs gives
(attenuation: of an input with variance S and noise N it keeps ``S / (S + N)``). A layer whose inputs are
small hands that on, unless its own scale makes up for it.
"""

from __future__ import annotations

import numpy as np

from .ridge import InputMoments
from .rounding import output_error

LEAST_VARIANCE = 1e-5  # of an output's energy: a smaller one may be rounding error of the moments
FACTORS = (0.5, 2.0)


def refit_scale(
    weight: np.ndarray,
    weight_quantized: np.ndarray,
    moments: InputMoments,
    *,
    centred: bool = True,
    shared: bool = False,
) -> np.ndarray:
    """Factor of each output channel with the least error: ``E[y y^] / E[y^ y^]``, ``y = W x``, ``y^ = W^ x~``.

    Codes stay as they are, so that only scales change, and the regression of y on y^ has slope 1 afterwards.

    Args:
        weight: Float rows ``[P, out, I]``.
        weight_quantized: Dequantized rows, same shape.
        moments: Moments of the layer's inputs.
        centred: Use covariances, for a bias that is set by ``bias_shift`` afterwards.
        shared: One factor for all channels (a scale per tensor).

    Returns:
        float64 ``[P, out]`` within ``FACTORS``; 1 where the output hardly varies.
    """
    gram = moments.centred_gram if centred else moments.gram
    cross = moments.centred_cross if centred else moments.cross
    exact, found = (np.asarray(rows, np.float64) for rows in (weight, weight_quantized))
    both = np.einsum("poi,poi->po", exact @ (gram - cross), found)  # E[x x~^T] is the difference
    own = output_error(found, gram)
    energy = output_error(found, moments.gram)
    if shared:
        both, own, energy = (np.full_like(part, part.sum()) for part in (both, own, energy))
    varies = own > LEAST_VARIANCE * energy
    return np.where(varies, np.clip(both / np.where(varies, own, 1.0), *FACTORS), 1.0)
