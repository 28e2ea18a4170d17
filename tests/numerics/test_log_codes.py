"""Logarithmic codes and power-of-two factors against formulas written down a second time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnx_hyvit import ConfigError
from onnx_hyvit.numerics import Histogram, LogCodes, QuantSpec, power_of_two_qparams


def log_sqrt2(value: float, largest: float, bits: int) -> float:
    """RepQ-ViT's quantizer, one value at a time: whole octaves, and sqrt(2) for odd codes."""
    if value <= 0:
        return 0.0
    code = max(round(-2 * math.log2(value / largest)), 0)
    if code >= 2**bits:
        return 0.0
    return largest * 2.0 ** -math.ceil(code / 2) * (math.sqrt(2) if code % 2 else 1.0)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("largest", [1.0, 0.37])
def test_log_sqrt2_codes(bits: int, largest: float) -> None:
    values = np.concatenate([[0.0, 1.0, largest], np.random.default_rng(0).random(500) ** 6])
    expected = [log_sqrt2(value, largest, bits) for value in values]
    np.testing.assert_allclose(LogCodes(bits, 2).fake_quantize(values, largest), expected, rtol=1e-12)


def test_log2_codes_are_powers_of_two_or_zero() -> None:
    found = LogCodes(3, 1).fake_quantize(np.geomspace(1e-6, 1, 100), 1.0)
    assert set(found) == {0.0, *(2.0**-code for code in range(8))}


def test_largest_is_the_percentile_with_the_least_error() -> None:
    values = np.random.default_rng(1).random(4000).astype(np.float32) ** 4 * 0.1
    values[:2] = 1.0  # 0.05 %: covering them costs the others nothing but a shift of all codes
    histogram, codes = Histogram(), LogCodes(4, 2)
    histogram.update(values)
    candidates = [np.percentile(values, percent) for percent in (99.9, 99.99, 99.999)]
    errors = [np.square(codes.fake_quantize(values, each) - values).sum() for each in candidates]
    assert codes.largest(histogram) == pytest.approx(candidates[int(np.argmin(errors))], abs=2 * histogram.width[0])


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"bits": 9}, "bits"), ({"per_octave": 3}, "per_octave"), ({"exp": (0.0, 1.0, 1.0)}, "integer softmax")],
)
def test_bad_codes_are_refused(settings: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        LogCodes(**settings)


@pytest.mark.parametrize("signed", [False, True])
def test_power_of_two_factors_are_those_of_least_error(signed: bool) -> None:
    generator = np.random.default_rng(2)
    values = (generator.standard_normal((400, 12)) * np.geomspace(0.05, 8, 12) + 0.3).astype(np.float32)
    spec = QuantSpec(signed=signed, axis=1)
    histogram = Histogram(65536, axis=1)
    histogram.update(values)
    found = power_of_two_qparams(histogram, spec)
    base = (float(max(values.max(), 0)) - float(min(values.min(), 0))) / 255 / 8
    zero = np.rint(spec.qmin - min(float(values.min()), 0) / (8 * base))
    assert (found.zero_point == zero).all()
    for channel in range(12):
        errors = []
        for power in range(4):
            step = base * 2**power
            codes = np.clip(np.rint(values[:, channel] / step) + zero, spec.qmin, spec.qmax)
            errors.append(np.square((codes - zero) * step - values[:, channel]).sum())
        assert found.scale[channel] == pytest.approx(base * 2 ** int(np.argmin(errors)), rel=1e-6)
    assert len(set(found.scale)) == 4
