"""Activations of 16 bits: codes of the right type, closer to float, right at every level, told and refused."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper
from qdq_graphs import parse, values_of
from test_mixed_precision import DATA, GRAPH, kl, weights

import onnx_hyvit
from onnx_hyvit.config import QuantConfig
from onnx_hyvit.errors import ConfigError, TargetError
from onnx_hyvit.graph import model_to_proto


@pytest.fixture(scope="module")
def proto():
    return model_to_proto(parse(GRAPH, **weights()))


def quantized(proto, **settings):
    wanted = {"samples": None, "cache": False, "threads": 1, "recipe": "minmax", "bits": "w8a16", **settings}
    return onnx_hyvit.quantize(proto, calibration={"x": DATA}, config=QuantConfig(**wanted))


def zero_points(model) -> dict[str, np.ndarray]:
    """Zero point of every QuantizeLinear, by the tensor that it reads."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {node.input[0]: stored[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"}


@pytest.mark.parametrize("recipe", ["minmax", "q-hyvit"])
def test_it_is_closer_to_float_than_8_bits(proto, recipe):
    settings = {"recipe": recipe, "objective": "size"}  # so small a model is faster in float
    wide, plain = (quantized(proto, bits=bits, **settings).model for bits in ("w8a16", "w8a8"))
    assert kl(proto, wide) < kl(proto, plain)


def test_every_activation_has_16_bits_and_the_scale_of_its_range(proto):
    model = quantized(proto).model
    assert model.opset_import[0].version == 21
    assert {value.dtype.name for value in zero_points(model).values()} == {"uint16"}
    assert not any(node.op_type == "Clip" for node in model.graph.node), "no runtime clips 16-bit codes"
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x")
    low, high = float(DATA.min()), float(DATA.max())
    assert stored[first.input[1]] == pytest.approx((high - low) / 65535, rel=1e-6)
    assert int(stored[first.input[2]]) == round(-low / (high - low) * 65535)


@pytest.mark.parametrize("target", ["ort-x86", "ort-arm", "ort-web", "generic", "openvino", "xnnpack"])
def test_targets_without_kernels_say_so(proto, target):
    notes = [note for note in quantized(proto, target=target).report["findings"] if "int16-activations" in note]
    assert "not accelerated" in notes[0]


def test_a_target_with_kernels_takes_its_own_type(proto):
    fixed = parse(GRAPH.replace("[N,", "[1,"), **weights())
    for settings, dtype in (({}, "uint16"), ({"activation_type": "int8"}, "int16")):
        result = quantized(model_to_proto(fixed), target="qnn", **settings)
        assert not any("int16-activations" in note for note in result.report["findings"])
        assert {value.dtype.name for value in zero_points(result.model).values()} == {dtype}
        assert settings or onnx_hyvit.check(result.model, "qnn")["problems"] == []


@pytest.mark.parametrize(("dtype", "middle"), [("uint8", 32768), ("int8", 0)])
def test_symmetric_codes_have_the_middle_as_zero_point(proto, dtype, middle):
    model = quantized(proto, activation_type=dtype, activation_symmetric=True).model
    assert {int(value) for value in zero_points(model).values()} == {middle}


def test_the_audit_finds_no_fault_in_what_was_asked_for(proto):
    result = quantized(proto)
    found = onnx_hyvit.audit(result.model)
    assert found.clean and found.counts["int8"] == 0 and found.counts["float_by_type"] > 0
    kinds = {tensor.data_type for tensor in result.model.graph.initializer if len(tensor.dims) > 1}
    assert kinds == {TensorProto.INT8}, "weights stay int8"


def test_4_bit_weights_pack_beside_it(proto):
    result = quantized(proto, bits="w4a16", pack_int4=True)
    assert result.report["size"]["int4_weights"] == 4 and onnx_hyvit.audit(result.model).clean
    floats = values_of(result.model, ["y"], {"x": DATA})["y"]
    assert np.isfinite(floats).all()


def test_a_target_that_takes_8_bits_only_refuses(proto):
    with pytest.raises(TargetError, match="target tensorrt takes no activations of 16 bits"):
        quantized(proto, target="tensorrt")
    problems = onnx_hyvit.check(quantized(proto).model, "tensorrt")["problems"]
    assert any("activation is uint16, tensorrt takes int8" in entry["problem"] for entry in problems)


@pytest.mark.parametrize("bits", ["w8a12", "w16a16", "w8a9", "w1a16"])
def test_other_widths_are_refused(bits):
    with pytest.raises(ConfigError, match="expected w2a2 to w8a8, w2a16 to w8a16, or auto"):
        QuantConfig(bits=bits)
