"""Scale of a layer's weight by the error at its block's outputs, all channels by one factor.

This is the search of EasyQuant (arXiv 2006.16669) and PTQ4ViT (arXiv 2111.12293), which takes turns with that of the
activations' ranges. It is for recipes that leave codes at the nearest ones; ``round_layer`` chooses scales and codes by
the layer's own output instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..numerics import QParams, fake_quantize
from .search_ranges import LEAST_GAIN

COARSE = (1.2, 0.85, 0.7, 0.55)
FINE = (1.07, 0.94)


def search_weight(
    weight: np.ndarray,
    start: QParams,
    error: float,
    measure: Callable[[np.ndarray], float],
    steps: Sequence[Sequence[float]] = (COARSE, FINE),
) -> tuple[QParams, np.ndarray, float]:
    """Improve the scale of one weight; the best one is kept, so the error never grows.

    The factors of a step are tried in order on the best scale so far, those below 1 until one does not help.

    Args:
        weight: Float32 values, as stored.
        start: Its scale so far, of the tensor or of each channel.
        error: The error with it.
        measure: Error with given float32 values of the weight's codes instead.
        steps: Factors, coarse to fine.

    Returns:
        The scale, float32 values of the nearest codes, and the error with them.
    """
    best, values = start, fake_quantize(weight, start).astype(np.float32)
    for factors in steps:
        middle = best
        for factor in factors:
            candidate = QParams(middle.scale * np.float32(factor), middle.zero_point, middle.spec)
            rounded = fake_quantize(weight, candidate).astype(np.float32)
            found = measure(rounded)
            if found < error * (1.0 - LEAST_GAIN):
                best, values, error = candidate, rounded, found
            elif factor < 1.0:
                break
    return best, values, error
