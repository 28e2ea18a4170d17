"""One layer: what is corrected, and what is left alone because samples do not confirm it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from onnx_hyvit.numerics import QuantSpec, weight_qparams
from onnx_hyvit.numerics.moments import GramAccumulator, merge_moments
from onnx_hyvit.numerics.ridge import choose_strength
from onnx_hyvit.numerics.rounding import gptq_round
from onnx_hyvit.reconstruct.layers import Layer
from onnx_hyvit.reconstruct.round_layer import round_layer

WIDTH, OUT = 24, 16


def layer(bits: int = 4) -> Layer:
    spec = QuantSpec(bits=bits, signed=True, symmetric=True, axis=0, narrow=True)
    return Layer("node", "x", "w", "b", spec, None, False, "y")


def data(samples: int, noise: float = 0.0, seed: int = 0):
    """Weight, bias, correlated inputs, and what the quantized graph feeds: clipped, and with noise."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((OUT, WIDTH)).astype(np.float32)
    mix = rng.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH)
    x = (rng.standard_normal((samples, WIDTH)) @ mix + 0.5).astype(np.float32)
    return weight, np.zeros(OUT, np.float32), x, np.minimum(x, 1.0) + noise * rng.standard_normal(x.shape).astype("f")


def moments(x: np.ndarray, fed: np.ndarray):
    halves = [GramAccumulator() for _ in range(2)]
    for index, half in enumerate(halves):
        half.update(x[index::2], fed[index::2])
    return halves[0].result(), halves[1].result()


def output_error(weight, bias, x, fed, rounded) -> float:
    return float(np.square(fed @ rounded.weight.T + rounded.bias - (x @ weight.T + bias)).mean())


def rounded_by(weight, bias, x, fed, bits=4, **options):
    how = layer(bits)
    start = weight_qparams(weight, how.spec, "mse")
    return round_layer(how, weight, bias, moments(x, fed), start=start, **options)


def test_each_part_lowers_the_error_on_new_samples():
    weight, bias, x, fed = data(8000)
    train, test = slice(0, 4000), slice(4000, None)
    errors = []
    for options in (
        {"rounding": "nearest", "ridge": False, "correct_bias": False, "refit": False},
        {"rounding": "nearest", "ridge": False, "refit": False},
        {"rounding": "gptq", "ridge": False, "refit": False},
        {"rounding": "gptq", "ridge": False},
        {"rounding": "gptq"},
    ):
        found = rounded_by(weight, bias, x[train], fed[train], **options)
        errors.append(output_error(weight, bias, x[test], fed[test], found))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.6 * errors[0]


def test_codes_and_scale_give_back_the_weight():
    weight, bias, x, fed = data(1000)
    found = rounded_by(weight, bias, x, fed)
    codes = found.weight / found.qparams.scale[:, None]
    assert np.abs(codes - np.rint(codes)).max() < 1e-4 and np.abs(codes).max() <= 7.001
    assert found.rounding == "gptq" and found.ridge is not None


def test_a_shrunken_input_does_not_shrink_the_output():
    weight, bias, x, _ = data(1000)
    slopes = []
    for refit in (False, True):
        found = rounded_by(weight, bias, x, 0.9 * x, 8, ridge=False, refit=refit)
        exact, output = x @ weight.T, 0.9 * x @ found.weight.T + found.bias
        assert np.abs(output.mean(0) - exact.mean(0)).max() < 1e-3
        slopes.append([np.polyfit(exact[:, row], output[:, row], 1)[0] for row in range(OUT)])
    np.testing.assert_allclose(slopes[0], 0.9, atol=0.005)
    np.testing.assert_allclose(slopes[1], 1.0, atol=0.002)


def test_a_scale_per_tensor_stays_one_scale():
    weight, bias, x, _ = data(1000)
    spec = QuantSpec(bits=8, signed=True, symmetric=True, axis=None, narrow=True)
    how = Layer("node", "x", "w", "b", spec, None, False, "y")
    start = weight_qparams(weight, spec, "mse")
    found = round_layer(how, weight, bias, moments(x, 0.9 * x), start=start, ridge=False)
    assert found.qparams.scale.shape == () and found.qparams.scale == pytest.approx(start.scale / 0.9, rel=1e-3)
    codes = found.weight / found.qparams.scale
    assert np.abs(codes - np.rint(codes)).max() < 1e-3


def test_few_samples_get_no_ridge():
    weight, bias, x, fed = data(40)
    assert rounded_by(weight, bias, x, fed).ridge is None


def test_a_ridge_that_follows_noise_is_refused():
    rng = np.random.default_rng(1)
    weight, _, x, _ = data(120)
    fed = x + 0.3 * rng.standard_normal(x.shape).astype(np.float32) * (rng.random(x.shape) < 0.05)
    assert choose_strength(weight[None].astype(np.float64), moments(x, fed), trusted=0.9) is None


def test_without_a_bias_nothing_is_centred():
    weight, _, x, fed = data(1000)
    found = rounded_by(weight, None, x, fed)
    assert found.bias is None and found.ridge is None


def test_weights_on_one_position_leave_no_variance_and_no_error():
    """What is left of the covariance is then rounding error of either sign."""
    spec = QuantSpec(signed=True, symmetric=True, axis=0)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        accumulator = GramAccumulator()
        weights = np.full(24, 1e-12, np.float32)
        weights[0] = 1.0
        inputs = rng.normal(size=(24, 40)) * 10 ** rng.uniform(-3, 3, size=40)
        for _ in range(2):
            accumulator.update(inputs.astype(np.float32), None, weights)
        gram = accumulator.result().centred_gram
        codes = gptq_round(rng.normal(size=(1, 8, 40)), gram, np.full((1, 8), 0.02), spec)
        assert codes.dtype == np.int8 and codes.shape == (1, 8, 40)


def test_an_input_that_nothing_reads_stays_unread():
    """It repeats another one, so that a ridge and GPTQ would share the weight between the two."""
    weight, bias, x, fed = data(4000, noise=0.05)
    x, fed = (np.concatenate([values, values[:, :3]], 1) for values in (x, fed))
    unread = np.zeros((OUT, 3), np.float32)
    found = rounded_by(np.concatenate([weight, unread], 1), bias, x, fed)
    assert found.ridge is not None and found.rounding == "gptq"
    np.testing.assert_array_equal(found.weight[:, WIDTH:], 0.0)
    alone = rounded_by(weight, bias, x[:, :WIDTH], fed[:, :WIDTH])
    errors = [
        output_error(
            weight, bias, x[:, :WIDTH], fed[:, :WIDTH], dataclasses.replace(each, weight=each.weight[:, :WIDTH])
        )
        for each in (found, alone)
    ]
    assert errors[0] == pytest.approx(errors[1], rel=0.05)


def test_merged_moments_are_those_of_all_samples():
    _, _, x, fed = data(101)
    whole = GramAccumulator()
    whole.update(x, fed)
    merged = merge_moments(moments(x, fed))
    for name in ("gram", "cross", "mean", "mean_quantized", "weight"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole.result(), name), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_the_result_is_never_worse_than_nearest_codes(bits):
    weight, bias, x, fed = data(2000, noise=0.05)
    plain = rounded_by(weight, bias, x, fed, bits, rounding="nearest", ridge=False, correct_bias=False)
    best = rounded_by(weight, bias, x, fed, bits)
    assert output_error(weight, bias, x, fed, best) <= output_error(weight, bias, x, fed, plain)
