"""Codes and values against onnx.reference, which is an independent implementation of the operators."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from onnx_hyvit.errors import ConfigError
from onnx_hyvit.numerics import QParams, QuantSpec, dequantize, fake_quantize, qparams_from_range, quantize


def reference_round_trip(x, qparams):
    axis = {} if qparams.spec.axis is None else {"axis": qparams.spec.axis}
    kind = helper.np_dtype_to_tensor_dtype(qparams.spec.dtype)
    shape = list(qparams.scale.shape)
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **axis),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **axis),
        ],
        "round_trip",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("z", kind, shape),
        ],
        [
            helper.make_tensor_value_info("q", kind, x.shape),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    return ReferenceEvaluator(model).run(None, {"x": x, "s": qparams.scale, "z": qparams.zero_point})


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("signed", "symmetric"), [(False, False), (True, True), (True, False), (False, True)])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_codes_and_values_equal_the_operators(bits, signed, symmetric, axis):
    x = np.random.default_rng(bits).normal(0.3, 2, (3, 4, 5)).astype(np.float32)
    spec = QuantSpec(bits, signed, symmetric, axis)
    others = None if axis is None else tuple(i for i in range(3) if i != axis % 3)
    qparams = qparams_from_range(x.min(axis=others) * 0.7, x.max(axis=others) * 0.7, spec)
    codes, values = reference_round_trip(x, qparams)
    np.testing.assert_array_equal(quantize(x, qparams), codes)
    np.testing.assert_array_equal(dequantize(codes, qparams), values)
    np.testing.assert_array_equal(fake_quantize(x, qparams), values)
    assert quantize(x, qparams).dtype == spec.dtype
    assert fake_quantize(x, qparams).dtype == np.float32


def test_ties_round_to_even_and_infinities_saturate():
    qparams = QParams(np.float32(1), np.uint8(10), QuantSpec())
    x = np.array([0.5, 1.5, 2.5, -0.5, np.inf, -np.inf], np.float32)
    assert quantize(x, qparams).tolist() == [10, 12, 12, 10, 255, 0]


@given(st.floats(-1e6, 1e6, width=32), st.floats(0, 1e6, width=32), st.integers(2, 16), st.booleans(), st.booleans())
def test_zero_is_exact_and_the_error_is_at_most_one_step(low, extent, bits, signed, symmetric):
    spec = QuantSpec(bits, signed, symmetric)
    high = low + extent
    qparams = qparams_from_range(low, high, spec)
    assert spec.qmin <= int(qparams.zero_point) <= spec.qmax
    assert fake_quantize(np.zeros(1, np.float32), qparams)[0] == 0
    x = np.linspace(low, high, 33).astype(np.float32)
    if max(abs(low), abs(high)) > 1e-30:
        assert np.abs(fake_quantize(x, qparams) - x).max() <= float(qparams.scale) * 1.001 + 1e-6 * abs(x).max()


def test_narrow_codes_keep_to_their_range_inside_the_container():
    spec = QuantSpec(bits=4, signed=True, symmetric=True, narrow=True)
    qparams = qparams_from_range(-1.0, 1.0, spec)
    codes = quantize(np.array([-5, -1, 0, 1, 5], np.float32), qparams)
    assert codes.tolist() == [-7, -7, 0, 7, 7]
    assert not spec.is_full_container


def test_a_dead_range_gets_scale_one():
    qparams = qparams_from_range(np.array([0.0, -1.0]), np.array([0.0, 1.0]), QuantSpec(axis=0))
    assert qparams.scale[0] == 1


@pytest.mark.parametrize(("low", "high"), [(np.nan, 1), (0, np.inf)])
def test_a_range_must_be_finite(low, high):
    with pytest.raises(ConfigError, match="not finite"):
        qparams_from_range(low, high, QuantSpec())


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_must_be_positive_and_finite(scale):
    with pytest.raises(ConfigError, match="positive and finite"):
        QParams(np.float32(scale), np.uint8(0), QuantSpec())
