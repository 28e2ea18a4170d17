"""Codes that lie evenly on a logarithmic scale: many for small values, as an attention's softmax has them.

No integer kernel of a common runtime reads them; graphs emulate them in float.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from .histogram import Histogram

POLYNOMIAL = (0.35815147, 0.96963238, 1.0)
"""exp(r) on (-ln 2, 0] as a, b, c of ``a r^2 + b r + c``: I-BERT (arXiv 2101.01321) and FQ-ViT (arXiv 2111.13824).

FQ-ViT rounds the coefficients to the step of the scores; here they stay as they are.
"""
LINE = (0.0, 0.716, 0.9696)
"""The same by a line: HyQ (IJCAI 2024), whose code has 0.0895 and 0.1212 for steps of one eighth."""
PERCENTILES = (99.9, 99.99, 99.999)  # candidates for the largest value, as in RepQ-ViT's code


@dataclass(frozen=True)
class LogCodes:
    """Codes 0 to ``2**bits - 1`` of values above 0: ``code = round(-per_octave * log2(x / scale))``.

    A code stands for ``scale * 2**(-code / per_octave)``; values too small for the last code become 0.

    Args:
        bits: Width of a code, 2 to 8; None takes that of activations.
        per_octave: Codes for each halving: 1 is log2 (FQ-ViT), 2 is log-sqrt2 (RepQ-ViT, arXiv 2212.08254).
        exp: Coefficients of exp on (-ln 2, 0] with which the softmax itself is computed, as FQ-ViT's log-int-softmax
            does; None leaves the softmax as it is.
    """

    bits: int | None = None
    per_octave: int = 2
    exp: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.bits is not None and not 2 <= self.bits <= 8:
            raise ConfigError(f"bits of logarithmic codes must be 2 to 8, found {self.bits}")
        if self.per_octave not in (1, 2):
            raise ConfigError(f"per_octave must be 1 or 2, found {self.per_octave}")
        if self.exp is not None and self.per_octave != 1:
            raise ConfigError("the integer softmax gives codes of whole powers of two: per_octave must be 1")

    @property
    def last(self) -> int:
        """The code of the smallest value that is not 0."""
        return 2 ** (self.bits or 8) - 1

    def describe(self) -> str:
        """What it is, for reports."""
        name = "log-int-softmax" if self.exp else "log2 codes" if self.per_octave == 1 else "log-sqrt2 codes"
        return f"{name} of {self.bits or 8} bits"

    def fake_quantize(self, x: np.ndarray, scale: float) -> np.ndarray:
        """What the codes of ``x`` stand for, float64.

        Args:
            x: Values of at least 0, any shape.
            scale: The value of code 0, above 0.
        """
        tiny = np.finfo(np.float32).tiny
        ratio = np.maximum(np.asarray(x, np.float64) / scale, tiny)
        code = np.maximum(np.rint(-self.per_octave * np.log2(ratio)), 0)
        gone = (ratio <= tiny) | (code > self.last)
        return np.asarray(np.where(gone, 0.0, scale * np.exp2(-code / self.per_octave)))

    def largest(self, histogram: Histogram) -> float:
        """The value of code 0: the percentile whose codes have the least squared error (RepQ-ViT's code).

        Args:
            histogram: What was observed of a softmax, one row.
        """
        used = np.flatnonzero(histogram.counts[0])
        centers = np.maximum(histogram.centers()[used], 0.0)
        weights = histogram.counts[0][used] / histogram.size
        candidates = [max(float(histogram.percentile(each)[0]), 2.0**-24) for each in PERCENTILES]
        errors = [np.square(self.fake_quantize(centers, each) - centers) @ weights for each in candidates]
        return candidates[int(np.argmin(errors))]
