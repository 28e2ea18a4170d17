"""Scales fitted again for given codes, against least squares on the samples and against attenuation on paper."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_hyvit.numerics.moments import ConvGeometry, GramAccumulator, weight_rows
from onnx_hyvit.numerics.refit import FACTORS, refit_scale


def moments_of(x: np.ndarray, fed: np.ndarray, geometry: ConvGeometry | None = None):
    accumulator = GramAccumulator(geometry)
    accumulator.update(x, fed)
    return accumulator.result()


def some_layer(seed: int = 0, samples: int = 500, out: int = 5, width: int = 12):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((1, out, width))
    rounded = np.round(weight / 0.7) * 0.7 * 0.9
    x = rng.standard_normal((samples, width)) + 2.0
    return weight, rounded, x, np.minimum(x, 2.5) + 0.1 * rng.standard_normal(x.shape)


@pytest.mark.parametrize("centred", [True, False])
def test_the_factor_is_the_least_squares_one(centred):
    weight, rounded, x, fed = some_layer()
    y, found = x @ weight[0].T, fed @ rounded[0].T
    if centred:
        y, found = y - y.mean(0), found - found.mean(0)
    wanted = np.linalg.lstsq(found.reshape(-1, 1), y.reshape(-1), rcond=None)[0][0]
    assert refit_scale(weight, rounded, moments_of(x, fed), centred=centred) == pytest.approx(wanted, rel=1e-8)


def test_inputs_that_shrank_are_made_up_for():
    weight, _, x, _ = some_layer()
    assert refit_scale(weight, weight, moments_of(x, 0.8 * x)) == pytest.approx(1.25, rel=1e-8)


def test_noise_that_does_not_depend_on_the_input_attenuates():
    """Of an input with variance S and noise N, least squares keeps S / (S + N)."""
    size = 64  # rows of a Hadamard matrix: variance 1, no correlation at all
    hadamard = np.array([[1.0]])
    while len(hadamard) < size:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    x, noise = hadamard[:, 1:5], 0.5 * hadamard[:, 5:9]
    weight = np.random.default_rng(1).standard_normal((1, 3, 4))
    assert refit_scale(weight, weight, moments_of(x, x + noise)) == pytest.approx(1 / 1.25, rel=1e-8)
    # nothing is left to do where the weight was shrunk by that already, as a ridge would
    assert refit_scale(weight, 0.8 * weight, moments_of(x, x + noise)) == pytest.approx(1.0, rel=1e-8)


def test_all_groups_of_a_convolution_share_it():
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((6, 1, 3, 3)).astype(np.float32)
    x = rng.standard_normal((4, 6, 8, 8)).astype(np.float32)
    geometry = ConvGeometry((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 6)
    rows = weight_rows(weight, 6)
    assert refit_scale(rows, rows, moments_of(x, x * np.float32(0.9), geometry)) == pytest.approx(1 / 0.9, rel=1e-5)
    uneven = x * np.linspace(0.6, 1.0, 6, dtype=np.float32)[:, None, None]
    assert 1.0 < refit_scale(rows, rows, moments_of(x, uneven, geometry)) < 1 / 0.6


def test_what_hardly_varies_or_makes_no_sense_is_left_alone():
    weight, _, x, _ = some_layer()
    still = np.broadcast_to(x[:1], x.shape).astype(np.float32)
    assert refit_scale(weight, weight, moments_of(still, 0.5 * still)) == 1.0
    assert refit_scale(weight, np.zeros_like(weight), moments_of(x, x)) == 1.0
    assert refit_scale(weight, -weight, moments_of(x, x)) == FACTORS[0]
