"""What single targets ask for: biases, granularity, shapes, weight types; and that each breach says what to do."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from qdq_graphs import ORT, parse, plan_of, quantize, run, weight

import onnx_hyvit
from onnx_hyvit.graph import model_to_proto
from onnx_hyvit.targets import Target, check_target, load_target

ARM_SESSION = {"session.qdqisint8allowed": "1", "session.x64quantprecision": "0"}


def conv() -> onnx_hyvit.graph.Model:
    text = "g (float[1,16,8,8] x) => (float[1,16,8,8] y) { c = Conv(x, w, b) s = Sigmoid(c) y = Mul(c, s) }"
    return parse(text, w=weight(16, 16, 1, 1), b=np.linspace(-1, 1, 16, dtype=np.float32))


def gemm() -> onnx_hyvit.graph.Model:
    text = "g (float[8,16] x) => (float[8,16] y) { c = Gemm<transB=1>(x, w, b) y = Sigmoid(c) }"
    return parse(text, w=weight(16, 16), b=np.linspace(-1, 1, 16, dtype=np.float32))


def problems(proto: onnx.ModelProto, target: Target) -> list[str]:
    breaches = check_target(proto, target)
    assert all(breach.advice and breach.node for breach in breaches)
    return [breach.problem for breach in breaches]


def test_tensorrt_takes_no_int32_bias():
    target = load_target("tensorrt")
    plan, proto, _ = quantize(conv(), target)
    assert plan.biases == {} and plan.weights
    assert not any(tensor.data_type == onnx.TensorProto.INT32 for tensor in proto.graph.initializer)
    assert problems(proto, target) == []
    with_bias = quantize(conv(), dataclasses.replace(target, float_bias=False))[1]
    assert problems(with_bias, target) == ["the bias is int32, tensorrt takes float biases only"]


def test_qnn_takes_one_scale_for_a_gemm_and_many_for_a_convolution():
    target = load_target("qnn")
    assert plan_of(gemm(), target).weights["w"].axis is None
    assert plan_of(conv(), target).weights["w"].axis == 0
    per_channel = quantize(gemm(), load_target("generic"))[1]
    assert problems(per_channel, target) == ["weight has a scale per channel, qnn takes one for Gemm"]


def test_qnn_takes_fixed_shapes_only():
    proto = quantize(conv(), load_target("qnn"))[1]
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    (breach,) = check_target(proto, load_target("qnn"))
    assert breach.node == "x" and "--fixed-shape x=1,16,8,8" in breach.advice
    assert problems(proto, load_target("openvino")) == []


def test_an_int8_softmax_breaks_the_rules_of_onnxruntime():
    text = "g (float[1,16,8,8] x) => (float[1,16,8,8] y) { c = Conv(x, w) s = Softmax<axis=1>(c) y = Conv(s, w) }"
    wanted = dataclasses.replace(
        ORT,
        glue={**ORT.glue, "Softmax": ORT.glue["Sigmoid"]},
        float={op: reason for op, reason in ORT.float.items() if op != "Softmax"},
    )
    proto = quantize(parse(text, w=weight(16, 16, 1, 1)), wanted)[1]
    assert any("Softmax stands between Q/DQ pairs" in problem for problem in problems(proto, ORT))


@pytest.mark.parametrize("model", [conv, gemm], ids=["conv", "gemm"])
def test_unsigned_weights_have_the_middle_as_zero_point(model):
    unsigned = dataclasses.replace(ORT, weight=dataclasses.replace(ORT.weight, dtype="uint8"))
    _, proto, feeds = quantize(model(), unsigned)
    signed = quantize(model())[1]
    codes = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    assert codes["w_quantized"].dtype == np.uint8 and (codes["w_zero_point"] == 128).all()
    assert problems(proto, unsigned) == []
    assert "weight is uint8, ort-x86 takes int8" in problems(proto, ORT)
    # 127 steps to each side in both containers: the same values
    assert np.array_equal(run(proto, feeds, "none"), run(signed, feeds, "none"))
    assert onnx_hyvit.audit(proto).clean


@pytest.mark.parametrize("name", ["ort-arm", "xnnpack", "tensorrt"])
def test_targets_with_signed_activations_are_optimised_as_on_arm(name):
    target = load_target(name)
    assert target.session == ARM_SESSION
    proto = quantize(conv(), target)[1]
    if not target.float_bias:
        assert onnx_hyvit.audit(proto, config=target.session).clean


def test_quantize_reports_what_breaks_a_rule():
    model = model_to_proto(conv())
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    data = {"x": np.random.default_rng(0).standard_normal((4, 16, 8, 8)).astype(np.float32)}

    def found(target: str) -> list[str]:
        config = onnx_hyvit.QuantConfig(target=target, recipe="minmax")
        report = onnx_hyvit.quantize(model, calibration=data, config=config).report
        return [line for line in report["findings"] if line.startswith("target: ")]

    assert len(found("qnn")) == 1 and "fixed shapes" in found("qnn")[0]
    assert found("tensorrt") == [] and found("ort-arm") == []
