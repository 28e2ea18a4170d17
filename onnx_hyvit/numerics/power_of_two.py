"""Scales per channel that are one scale times powers of two, so that integers align by shifts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .affine import QParams, QuantSpec, fake_quantize, qparams_from_range
from .histogram import Histogram

FACTORS = 4  # 2**0 to 2**3


def power_of_two_qparams(histogram: Histogram, spec: QuantSpec) -> QParams:
    """Power-of-two factors (FQ-ViT, arXiv 2111.13824, section 3.2): ``s_c = 2**a_c * s``, one zero point.

    ``8 s`` covers the tensor's extremes; each channel takes the ``a_c`` in 0..3 of least squared error over its values.

    Args:
        histogram: What was observed of each channel.
        spec: Codes, with the axis of the channels.

    Returns:
        Scale and zero point [C].
    """
    low, high = histogram.range()
    whole = qparams_from_range(low.min(), high.max(), replace(spec, axis=None))
    scales = np.ldexp(whole.scale, np.arange(FACTORS) - (FACTORS - 1)).astype(np.float32)
    zero_points = np.full(FACTORS, whole.zero_point)
    candidates = QParams(scales, zero_points, replace(spec, axis=0))
    best = np.zeros(len(low), np.intp)
    for channel, counts in enumerate(histogram.counts):
        used = np.flatnonzero(counts)
        centers = histogram.centers(channel)[used].astype(np.float32)
        error = fake_quantize(np.broadcast_to(centers, (FACTORS, len(centers))), candidates) - centers
        best[channel] = np.argmin(np.square(error.astype(np.float64)) @ counts[used])
    return QParams(scales[best], np.full(len(low), whole.zero_point), spec)
