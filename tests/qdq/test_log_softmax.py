"""Emulated codes of softmax: functions that every optimisation level loads, equal to a numpy oracle."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from qdq_graphs import parse, plan_of, weight

from onnx_hyvit.graph import Model, load_model, model_to_proto
from onnx_hyvit.insert_qdq import insert_qdq
from onnx_hyvit.numerics import LogCodes, QParams, qparams_from_range
from onnx_hyvit.numerics.log_codes import LINE, POLYNOMIAL
from onnx_hyvit.placement import FullMode, Plan
from onnx_hyvit.runtime import make_session
from onnx_hyvit.validate import validate

LEVELS = ("none", "basic", "extended", "all")
SCORES = np.random.default_rng(3).standard_normal((2, 5, 9)).astype(np.float32) * 2  # inside the range of its pair


def product(axis: int = -1) -> Model:
    text = f"""g (float[2,5,9] x, float[2,9,16] v) => (float[2,5,16] y) {{
        p = Softmax<axis={axis}>(x)  m = MatMul(p, v)  y = MatMul(m, w) }}"""
    return parse(text, w=weight(16, 16))


def emulated(codes: LogCodes, largest: float = 1.0) -> tuple[Plan, onnx.ModelProto]:
    model = product()
    plan = plan_of(model, full=FullMode(softmax=codes))
    ranges = dict.fromkeys(plan.activations, (-8.0, 8.0)) | {"p": (0.0, largest)}
    qparams = {name: qparams_from_range(*ranges[name], spec) for name, spec in plan.activations.items()}
    return plan, model_to_proto(insert_qdq(model, plan, qparams), check=True)


def outputs_of(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], level: str) -> dict[str, np.ndarray]:
    exposed = onnx.ModelProto()
    exposed.CopyFrom(proto)
    exposed.graph.output.append(onnx.helper.make_tensor_value_info("p", onnx.TensorProto.FLOAT, None))
    return make_session(exposed, optimize=level).run(feeds)


def rounded_scores() -> np.ndarray:
    """What the softmax reads: the scores behind their pair (16 / 255 a step, zero point 128)."""
    step = np.float32(16 / 255)
    return (np.clip(np.rint(SCORES / step) + 128, 0, 255) - 128).astype(np.float64) * step


def integer_softmax(scores: np.ndarray, exp: tuple[float, float, float], bits: int) -> np.ndarray:
    """FQ-ViT's log-int-softmax, one row at a time, in float64; the nearest power of two counts from 1.5 up."""
    result = np.zeros_like(scores)
    for index in np.ndindex(scores.shape[:-1]):
        z = scores[index] - scores[index].max()
        q = np.floor(-z / np.log(2))
        r = z + q * np.log(2)
        values = (exp[0] * r * r + exp[1] * r + exp[2]) / 2.0**q
        for position, value in enumerate(values):
            ratio = np.rint(values.sum() / value)
            code = np.floor(np.log2(ratio))
            code += ratio - 2**code >= 2 ** (code - 1)
            result[(*index, position)] = 0.0 if code >= 2**bits else 2.0**-code
    return result


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("bits", "largest"), [(4, 1.0), (4, 0.6), (8, 1.0)])
def test_log_sqrt2_softmax_equals_the_oracle(level: str, bits: int, largest: float) -> None:
    _, proto = emulated(LogCodes(bits, 2), largest)
    feeds = {"x": SCORES, "v": np.zeros((2, 9, 16), np.float32)}
    exact = np.exp(rounded_scores())
    exact /= exact.sum(-1, keepdims=True)
    code = np.maximum(np.rint(-2 * np.log2(exact / largest)), 0)
    expected = np.where(code < 2**bits, largest * 2 ** (-code / 2), 0)
    assert (expected == 0).any() == (bits == 4)
    np.testing.assert_allclose(outputs_of(proto, feeds, level)["p"], expected, rtol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("exp", "bits"), [(POLYNOMIAL, 4), (LINE, 4), (POLYNOMIAL, 2)])
def test_integer_softmax_equals_the_oracle(level: str, exp: tuple, bits: int) -> None:
    _, proto = emulated(LogCodes(bits, 1, exp))
    feeds = {"x": SCORES, "v": np.zeros((2, 9, 16), np.float32)}
    expected = integer_softmax(rounded_scores(), exp, bits)
    assert len(np.unique(expected)) >= 4
    np.testing.assert_array_equal(outputs_of(proto, feeds, level)["p"], expected)
    assert not any(node.op_type == "Softmax" for node in proto.graph.node)


@pytest.mark.parametrize("codes", [LogCodes(4, 2), LogCodes(4, 1, POLYNOMIAL)])
def test_emulated_models_are_valid_and_load_again(codes: LogCodes) -> None:
    plan, proto = emulated(codes)
    feeds = {"x": SCORES, "v": np.random.default_rng(4).standard_normal((2, 9, 16)).astype(np.float32)}
    assert plan.log_codes == {"p": codes}
    validate(proto, model_to_proto(product()), feeds, threads=1)  # raises where a level disagrees
    assert [function.domain for function in proto.functions] == ["onnx_hyvit"]
    assert len(load_model(proto, quantized_ok=True).graph.nodes) == len(proto.graph.node)


def test_the_scale_reaches_the_largest_value_of_any_container() -> None:
    model = product()
    plan = plan_of(model, full=FullMode(softmax=LogCodes(4, 2)))
    qparams: dict[str, QParams] = {n: qparams_from_range(-8, 8, spec) for n, spec in plan.activations.items()}
    qparams["p"] = qparams_from_range(0, 0.5, plan.activations["p"])
    proto = model_to_proto(insert_qdq(model, plan, qparams), check=True)
    found = outputs_of(proto, {"x": 40 * SCORES, "v": np.zeros((2, 9, 16), np.float32)}, "all")["p"]
    assert found.max() == pytest.approx(0.5, rel=1e-6)


def test_another_axis_keeps_uniform_codes() -> None:
    plan = plan_of(product(axis=1), full=FullMode(softmax=LogCodes(4, 2)))
    assert not plan.log_codes and plan.fixed == {"p": (0.0, 1.0)}


def test_moved_codes_stay_uniform() -> None:
    text = """g (float[2,5,9] x, float[2,9,16] v) => (float[2,9,16] y) {
        p = Softmax<axis=-1>(x)  t = Transpose<perm=[0,2,1]>(p)  u = Transpose<perm=[0,2,1]>(t)  m = MatMul(u, v)
        y = MatMul(m, w) }"""
    model = parse(text.replace("float[2,9,16] y", "float[2,5,16] y"), w=weight(16, 16))
    plan = plan_of(model, full=FullMode(softmax=LogCodes(4, 2)))
    assert plan.tied["t"] == "p" and not plan.log_codes


def test_norms_have_channel_scales_where_only_they_read() -> None:
    text = """g (float[2,5,16] x) => (float[2,5,16] y) {
        a = Add(x, x)  n = LayerNormalization<axis=-1>(a, g1, b1)  m = MatMul(n, w)  s = Add(m, a)
        o = LayerNormalization<axis=-1>(s, g1, b1)  q = MatMul(o, w)  y = Add(q, s) }"""
    model = parse(text, w=weight(16, 16), g1=np.ones(16, np.float32), b1=np.zeros(16, np.float32))
    plan = plan_of(model, full=FullMode(norm_channels=True))
    assert [name for name, spec in plan.activations.items() if spec.axis == 2] == ["a", "s"]
    ranges = {
        name: QParams(np.geomspace(0.01, 0.08, 16), np.full(16, 128), spec)
        if spec.axis is not None
        else qparams_from_range(-8, 8, spec)
        for name, spec in plan.activations.items()
    }
    proto = model_to_proto(insert_qdq(model, plan, ranges), check=True)
    validate(proto, None, {"x": SCORES[:, :, :1].repeat(16, 2)}, threads=1)
    axes = [
        onnx.helper.get_node_attr_value(n, "axis")
        for n in proto.graph.node
        if n.op_type == "QuantizeLinear" and n.attribute
    ]
    assert axes == [2, 2]
