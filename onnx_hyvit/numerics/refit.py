"""The scale of weights fitted again once their codes are known, so that outputs do not shrink from layer to layer.

What is clipped is smaller than before, in weights as in ranges, and so is what least squares on noisy inputs gives
(attenuation: of an input with variance S and noise N it keeps ``S / (S + N)``). A layer whose inputs are
small hands that on, unless its own scale makes up for it.
"""

from __future__ import annotations

import numpy as np

from .moments import InputMoments
from .rounding import output_error

LEAST_VARIANCE = 1e-5  # of the outputs' energy: a smaller one may be rounding error of the moments
FACTORS = (0.5, 2.0)


def refit_scale(
    weight: np.ndarray, weight_quantized: np.ndarray, moments: InputMoments, *, centred: bool = True
) -> float:
    """Factor of a layer's scales with the least error: ``E[y y^] / E[y^ y^]``, ``y = W x``, ``y^ = W^ x~``.

    Codes stay as they are, so that only scales change, and the regression of y on y^ has slope 1 afterwards. One factor
    for all channels: those that are mostly noise would be made to vanish one by one.

    Args:
        weight: Float rows ``[P, out, I]``.
        weight_quantized: Dequantized rows, same shape.
        moments: Moments of the layer's inputs.
        centred: Use covariances, for a bias that is set by ``bias_shift`` afterwards.

    Returns:
        The factor, within ``FACTORS``; 1 where outputs hardly vary.
    """
    gram = moments.centred_gram if centred else moments.gram
    cross = moments.centred_cross if centred else moments.cross
    exact, found = (np.asarray(rows, np.float64) for rows in (weight, weight_quantized))
    both = float(np.sum((exact @ (gram - cross)) * found))  # E[x x~^T] is the difference
    own = float(output_error(found, gram).sum())
    if own <= LEAST_VARIANCE * float(output_error(found, moments.gram).sum()):
        return 1.0
    return float(np.clip(both / own, *FACTORS))
