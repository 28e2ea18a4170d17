import numpy as np
import pytest

from onnx_hyvit.errors import ConfigError
from onnx_hyvit.numerics import (
    WEIGHT_SPEC,
    QuantSpec,
    dequantize,
    fake_quantize,
    fit_scale_to_bias,
    quantize_bias,
    quantize_weight,
    weight_qparams,
)


@pytest.fixture
def weight():
    rng = np.random.default_rng(6)
    return (rng.standard_t(3, (8, 4, 3, 3)) * 10.0 ** rng.integers(-3, 2, (8, 1, 1, 1))).astype(np.float32)


def test_each_channel_uses_all_codes(weight):
    codes, qparams = quantize_weight(weight)
    assert codes.dtype == np.int8
    assert (np.abs(codes).max(axis=(1, 2, 3)) == 127).all()
    assert (qparams.zero_point == 0).all()
    np.testing.assert_allclose(qparams.scale, np.abs(weight).max(axis=(1, 2, 3)) / 127, rtol=1e-6)
    step = qparams.scale[:, None, None, None]
    assert (np.abs(dequantize(codes, qparams) - weight) <= step * 0.501).all()


@pytest.mark.parametrize("axis", [0, 1, -1, None])
def test_mse_is_never_worse_in_any_channel(weight, axis):
    spec = QuantSpec(bits=4, signed=True, symmetric=True, axis=axis, narrow=True)
    others = None if axis is None else tuple(i for i in range(4) if i != axis % 4)

    def error(method):
        return np.square(fake_quantize(weight, weight_qparams(weight, spec, method)) - weight).sum(axis=others)

    assert (error("mse") <= error("minmax") * (1 + 1e-6)).all()
    assert error("mse").sum() < error("minmax").sum()


def test_a_dead_channel_keeps_its_bias_precise(weight):
    weight[2] = 0
    codes, qparams = quantize_weight(weight)
    assert (codes[2] == 0).all()
    assert qparams.scale[2] == np.delete(qparams.scale, 2).min()
    assert (weight_qparams(np.zeros_like(weight)).scale == 1).all()


def test_bias_codes_are_the_rounded_quotient():
    bias = np.array([1.0, -2.5, 0.0, 3.25], np.float32)
    codes, scale = quantize_bias(bias, np.float32(0.5), np.full(4, 0.25, np.float32))
    assert codes.tolist() == [8, -20, 0, 26]
    assert codes.dtype == np.int32
    assert scale.dtype == np.float32
    assert (scale == 0.125).all()


@pytest.mark.parametrize("axis", [0, None])
def test_a_bias_that_overflows_enlarges_the_weight_scale(axis):
    weight = np.full((2, 3), 1e-9, np.float32)
    weight[1] = 0.5
    bias = np.array([10.0, 1e7], np.float32)
    qparams = weight_qparams(weight, QuantSpec(8, True, True, axis, True))
    tiny_input = np.float32(1e-6)
    with pytest.raises(ConfigError, match="more than int32"):
        quantize_bias(bias, tiny_input, qparams.scale)
    fitted = fit_scale_to_bias(bias, tiny_input, qparams)
    codes, scale = quantize_bias(bias, tiny_input, fitted.scale)
    assert np.abs(codes.astype(np.int64)).max() <= 2**30
    assert (np.abs(codes * scale.astype(np.float64) - bias) <= 0.51 * scale).all()


def test_a_bias_that_fits_leaves_the_weight_alone():
    qparams = weight_qparams(np.ones((2, 3), np.float32))
    assert fit_scale_to_bias(np.ones(2), np.float32(0.1), qparams) is qparams


def test_errors(weight):
    weight[0, 0, 0, 0] = np.nan
    with pytest.raises(ConfigError, match="not finite"):
        weight_qparams(weight)
    with pytest.raises(ConfigError, match="empty"):
        weight_qparams(np.zeros((0, 3), np.float32))
    with pytest.raises(ConfigError, match="minmax or mse"):
        weight_qparams(np.ones((2, 2), np.float32), WEIGHT_SPEC, "kl")
    with pytest.raises(ConfigError, match="NaN or Inf"):
        quantize_bias(np.array([np.inf]), np.float32(1), np.float32(1))
    with pytest.raises(ConfigError, match="underflows"):
        quantize_bias(np.ones(1), np.float32(1e-30), np.float32(1e-30))
