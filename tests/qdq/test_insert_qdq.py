from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from qdq_graphs import ORT, feeds_of, minmax, ops, parse, plan_of, quantize, run, values_of, weight

from onnx_hyvit.errors import CalibrationError, ModelError
from onnx_hyvit.graph import model_to_proto
from onnx_hyvit.insert_qdq import insert_qdq
from onnx_hyvit.kernel_audit import audit
from onnx_hyvit.numerics import QParams, QuantSpec
from onnx_hyvit.targets import load_target
from onnx_hyvit.validate import find_patterns

BIAS = np.linspace(-1, 1, 16, dtype=np.float32)


def conv_net(tail: str = "s = Sigmoid(c) y = Mul(c, s)", shape: str = "1,16,8,8", **inits):
    text = f"g (float[1,16,8,8] x) => (float[{shape}] y) {{ c = Conv<pads=[1,1,1,1]>(x, w, b) {tail} }}"
    return parse(text, w=weight(16, 16, 3, 3), b=BIAS, **inits)


def initializers(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def test_names_types_and_interface():
    model = conv_net()
    _, proto, _ = quantize(model)
    assert [value.name for value in proto.graph.input] == ["x"]
    assert [value.name for value in proto.graph.output] == ["y"]
    assert proto.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    names = {node.name for node in proto.graph.node}
    assert {"x_QuantizeLinear", "x_DequantizeLinear", "c_QuantizeLinear", "w_DequantizeLinear"} <= names
    stored = initializers(proto)
    assert stored["w_quantized"].dtype == np.int8 and stored["b_quantized"].dtype == np.int32
    assert not any(value.dtype == np.float32 and value.size > 16 for value in stored.values())


def test_the_model_given_is_not_changed():
    model = conv_net()
    before = model_to_proto(model).SerializeToString(deterministic=True)
    quantize(model)
    assert model_to_proto(model).SerializeToString(deterministic=True) == before


def test_inserting_is_deterministic():
    protos = [quantize(conv_net())[1].SerializeToString(deterministic=True) for _ in range(2)]
    assert protos[0] == protos[1]


def test_the_result_is_what_the_onnx_reference_computes():
    _, proto, feeds = quantize(conv_net())
    expected = ReferenceEvaluator(proto).run(None, feeds)[0]
    found = run(proto, feeds)
    step = initializers(proto)["y_scale"]
    assert np.abs(found - expected).max() <= 1.01 * step
    assert np.abs(expected).max() > 20 * step


def test_the_result_is_close_to_float():
    model = conv_net()
    _, proto, feeds = quantize(model)
    expected, found = run(model_to_proto(model), feeds), run(proto, feeds)
    assert 10 * np.log10((expected**2).sum() / ((expected - found) ** 2).sum()) > 30


def test_a_conv_with_silu_runs_on_int8_kernels_only():
    report = audit(quantize(conv_net())[1])
    assert report.counts["int8"] == 1 and report.counts["float"] == 0 and report.clean
    assert {"QLinearSigmoid", "QLinearMul"} <= set(report.operators)


@pytest.mark.parametrize("op", ["r = Relu(c)", "r = Clip(c, low, high)", "r = Clip(c, , high)"])
def test_relu_and_clip_become_limits_of_the_codes_exactly(op):
    limits = {"low": np.float32(-0.25), "high": np.float32(0.7)}
    model = conv_net(f"{op} y = Conv(r, v)", v=weight(16, 16, 1, 1, seed=2), **limits)
    plan, feeds = plan_of(model), feeds_of(model)
    wide = {**minmax(model, plan, feeds), "r": QParams(np.float32(0.02), np.uint8(90), plan.activations["r"])}
    folded = model_to_proto(insert_qdq(model, plan, wide), check=True)
    kept = model_to_proto(insert_qdq(model, dataclasses.replace(plan, fold_clip=False), wide), check=True)
    assert "Relu" not in ops(folded) and {"Relu", "Clip"} & set(ops(kept))
    np.testing.assert_array_equal(run(folded, feeds, "none"), run(kept, feeds, "none"))
    assert audit(folded).counts["int8"] == 2, "a Clip of uint8 codes keeps both convolutions int8"


def test_relu_needs_no_clip_when_zero_is_the_lowest_code():
    _, proto, _ = quantize(conv_net("r = Relu(c) y = Conv(r, v)", v=weight(16, 16, 1, 1, seed=2)))
    assert "Relu" not in ops(proto) and "Clip" not in ops(proto)


def test_narrow_codes_are_clipped_in_their_container():
    model = conv_net()
    _, proto, feeds = quantize(model, activation_bits=6, weight_bits=4)
    stored = initializers(proto)
    assert np.abs(stored["w_quantized"]).max() == 7
    assert stored["x_code_max"] == 63 and stored["x_code_max"].dtype == np.uint8
    codes = run_codes(proto, "x_Clip_Output", feeds)
    assert codes.max() == 63 and codes.min() == 0
    assert "c_code_max" not in stored  # no layer reads it: 8 bits
    assert audit(proto).counts["int8"] == 1


def run_codes(proto: onnx.ModelProto, name: str, feeds) -> np.ndarray:
    exposed = onnx.ModelProto()
    exposed.CopyFrom(proto)
    del exposed.graph.output[:]
    exposed.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None))
    return run(exposed, feeds)


def test_a_shared_tensor_has_one_pair_and_a_shared_weight_one_initializer():
    model = conv_net("d = Conv(c, v) e = Conv(c, v) y = Add(d, e)", v=weight(16, 16, 1, 1, seed=2))
    _, proto, _ = quantize(model)
    names = [node.name for node in proto.graph.node]
    assert sum(name.startswith("c_QuantizeLinear") for name in names) == 1
    assert sum(name.startswith("v_DequantizeLinear") for name in names) == 1
    assert audit(proto).counts["int8"] == 3


def test_a_shared_bias_has_codes_for_each_scale():
    model = conv_net("d = Conv(x, v, b) e = Conv(c, v, b) y = Add(d, e)", v=weight(16, 16, 1, 1, seed=2))
    _, proto, feeds = quantize(model)
    assert sum(name.startswith("b_quantized") for name in initializers(proto)) == 3
    assert np.abs(run(proto, feeds) - run(model_to_proto(model), feeds)).max() < 0.2


def test_a_weight_that_a_float_node_reads_too_stays_float_there():
    text = """g (float[1,16,8,8] x, float[1] z) => (float[1,16,8,8] y, float[16,16,1,1] n) {
        y = Conv(x, w1) n = Mul(z, w1) }"""
    _, proto, _ = quantize(parse(text, w1=weight(16, 16, 1, 1)))
    assert [node.op_type for node in proto.graph.node if "w1" in node.input] == ["Mul"]


@pytest.mark.parametrize("op", ["MatMul(x, w)", "Gemm<transB=1>(x, wt, b)"])
def test_scales_lie_along_the_output_channels(op):
    w = weight(16, 24) * np.linspace(0.1, 10, 24, dtype=np.float32)
    model = parse(f"g (float[4,16] x) => (float[4,24] y) {{ y = {op} }}", w=w, wt=w.T, b=np.ones(24, np.float32))
    _, proto, feeds = quantize(model)
    (scale,) = [value for name, value in initializers(proto).items() if name in ("w_scale", "wt_scale")]
    np.testing.assert_allclose(scale, np.abs(w).max(axis=0) / 127, rtol=1e-6)
    assert audit(proto).counts["int8"] == 1
    assert np.abs(run(proto, feeds) - run(model_to_proto(model), feeds)).max() < 0.5


def test_bias_behind_a_matmul_runs_in_one_integer_kernel():
    text = "g (float[1,8,16] x) => (float[1,8,16] y) { m = MatMul(x, w) y = Add(b, m) }"
    model = parse(text, w=weight(16, 16), b=BIAS)
    _, proto, _ = quantize(model)
    report = audit(proto)
    assert report.operators.get("QGemm") == 1 and report.counts["float"] == 0 and report.clean


@pytest.mark.parametrize("clamp", ["Relu(m)", "Clip(m, low)"])
def test_a_clamped_product_read_by_float_nodes_still_runs_in_int8(clamp):
    text = f"g (float[1,8,16] x) => (float[1,8,16] y) {{ m = MatMul(x, w) r = {clamp} y = Softmax(r) }}"
    _, proto, _ = quantize(parse(text, w=weight(16, 16), low=np.float32(-0.5)))
    report = audit(proto)
    assert report.counts["int8"] == 1 and report.counts["float"] == 0 and report.clean


def test_free_batch_keeps_a_float_bias_and_an_int8_product():
    text = "g (float[N,8,16] x) => (float[N,8,16] y) { m = MatMul(x, w) y = Add(b, m) }"
    _, proto, _ = quantize(parse(text, w=weight(16, 16), b=BIAS))
    report = audit(proto)
    assert report.counts["int8"] == 1 and report.clean


def test_carried_nodes_run_on_codes():
    model = conv_net("t = Transpose<perm=[0,2,3,1]>(c) r = Reshape(t, n) y = MatMul(r, v)", "1,64,16",
                     n=np.array([1, 64, 16]), v=weight(16, 16, seed=2))  # fmt: skip
    plan, proto, feeds = quantize(model)
    assert plan.carried_nodes == ("t", "r")
    stored = initializers(proto)
    assert sum(name.endswith("_scale") and value.ndim == 0 for name, value in stored.items()) == 2, "x and c, no others"
    assert "DequantizeLinear" not in audit(proto).operators, "everything between the input and the product is codes"
    np.testing.assert_allclose(run(proto, feeds), run(proto, feeds, "none"), rtol=1e-5, atol=1e-5)


def test_constant_operands_of_int8_products_are_codes():
    model = conv_net("y = Mul(c, k)", k=np.linspace(0.5, 2, 16, dtype=np.float32).reshape(1, 16, 1, 1))
    _, proto, _ = quantize(model)
    assert initializers(proto)["k_quantized"].dtype == np.uint8
    assert "QLinearMul" in audit(proto).operators


def test_a_product_by_a_number_folds_into_a_scale_only_where_pairs_may_differ():
    model = conv_net("k = Mul(c, two) s = Sigmoid(k) y = Mul(c, s)", two=np.float32(1.702))
    _, folded, feeds = quantize(model)
    _, plain, _ = quantize(model, dataclasses.replace(ORT, mismatched_pairs=False))
    assert ops(folded).count("Mul") == 1 and ops(plain).count("Mul") == 2
    assert np.abs(run(folded, feeds) - run(plain, feeds)).max() < 0.1


def test_an_output_that_an_int8_node_makes_and_others_read_keeps_its_name():
    text = "g (float[1,16,8,8] x) => (float[1,16,8,8] c, float[1,16,8,8] y) { c = Conv(x, v) y = Conv(c, v) }"
    _, proto, feeds = quantize(parse(text, v=weight(16, 16, 1, 1)))
    assert [value.name for value in proto.graph.output] == ["c", "y"]
    assert audit(proto).counts["int8"] == 2
    assert np.isfinite(run(proto, feeds)).all()


def test_bodies_read_the_outer_tensor_under_its_name():
    text = """g (float[1,16,8,8] x, bool cond) => (float[1,16,8,8] y) {
        c = Conv(x, v)
        y = If(cond) <then_branch = t () => (float[1,16,8,8] u) { u = Relu(c) },
                      else_branch = e () => (float[1,16,8,8] z) { z = Neg(c) }> }"""
    model = parse(text, v=weight(16, 16, 1, 1))
    plan = plan_of(model)
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 16, 8, 8)).astype(np.float32), "cond": np.array(True)}
    qparams = {name: QParams(np.float32(0.05), np.uint8(128), spec) for name, spec in plan.activations.items()}
    proto = model_to_proto(insert_qdq(model, plan, qparams), check=True)
    expected = run(model_to_proto(model), feeds)
    assert np.abs(run(proto, feeds) - expected).max() < 0.15 and expected.max() > 1
    assert audit(proto).counts["int8"] == 1


def test_a_float_convolution_between_pairs_is_not_quantized_by_the_runtime():
    model = conv_net("d = Conv(c, v) e = Relu(d) y = Conv(e, v)", v=weight(16, 16, 1, 1, seed=2))
    _, shielded, feeds = quantize(model, float_nodes=["d", "e"])
    bare = dataclasses.replace(ORT, shield_float=False)
    _, exposed, _ = quantize(model, bare, float_nodes=["d", "e"])
    assert audit(shielded).counts["float"] == 1 and audit(exposed).counts["float"] == 0
    np.testing.assert_array_equal(run(shielded, feeds, "none"), run(exposed, feeds, "none"))


@pytest.mark.parametrize(
    ("tail", "name"),
    [
        ("d = Conv(c, v) n = Add(c, d) y = Conv(n, v)", "QLinearAdd"),
        ("n = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(c) y = Conv(n, v)", "QLinearAveragePool"),
        ("n = Softmax(c) y = Conv(n, v)", "QLinearSoftmax"),
    ],
)
def test_a_node_planned_float_between_pairs_runs_in_float(tail, name):
    model = conv_net(tail, v=weight(16, 16, 1, 1, seed=2))
    assert name not in audit(quantize(model, float_nodes=["n"])[1]).operators
    bare = dataclasses.replace(ORT, shield_float=False)
    assert name in audit(quantize(model, bare, float_nodes=["n"])[1]).operators


def test_signed_target_gives_signed_codes():
    _, proto, feeds = quantize(conv_net(), load_target("ort-arm"))
    assert initializers(proto)["x_zero_point"].dtype == np.int8
    assert np.isfinite(run(proto, feeds)).all()


def test_a_huge_bias_on_a_dead_channel_fits():
    w = weight(16, 16, 1, 1)
    w[3], b = 0, BIAS * 1e4
    model = parse("g (float[1,16,8,8] x) => (float[1,16,8,8] y) { y = Conv(x, w, b) }", w=w, b=b)
    _, proto, feeds = quantize(model)
    found = run(proto, feeds)
    assert np.abs(found[0, 3] - b[3]).max() < 100


def test_a_missing_scale_names_the_tensor():
    model = conv_net()
    with pytest.raises(CalibrationError, match="'x'"):
        insert_qdq(model, plan_of(model), {})


def test_an_old_opset_is_refused():
    model = conv_net()
    model.opset = 12
    with pytest.raises(ModelError, match="opset 12"):
        insert_qdq(model, plan_of(conv_net()), {})


def test_given_weight_scales_are_used():
    model = conv_net()
    plan, feeds = plan_of(model), feeds_of(model)
    spec = plan.weights["w"]
    given = QParams(np.full(16, 0.5, np.float32), np.zeros(16, np.int8), spec)
    proto = model_to_proto(insert_qdq(model, plan, {**minmax(model, plan, feeds), "w": given}))
    np.testing.assert_array_equal(initializers(proto)["w_scale"], given.scale)
    assert isinstance(spec, QuantSpec)


POOL = "MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>"


@pytest.mark.parametrize(
    "tail",
    [
        f"m = {POOL}(s)",
        "m = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(s)",  # of the same size: movement, but for its cost
        f"p = {POOL}(s) m = Transpose<perm=[0,1,3,2]>(p)",
        f"p = {POOL}(s) m = Reshape(p, flat)",
    ],
)
def test_a_float_maxpool_is_not_made_int8_by_the_runtime(tail: str):
    text = f"g (float[1,16,9,9] x) => (float[1,16,H,W] y) {{ s = Softmax(x) {tail} y = Conv(m, v) }}"
    model = parse(text, v=weight(16, 16, 1, 1), flat=np.array([1, 16, -1, 1]))
    plan, proto, feeds = quantize(model)
    report = audit(proto)
    assert report.counts["int8"] == 1 and report.clean
    assert "Sum" in report.operators, "what keeps Q behind the MaxPool"
    bare = model_to_proto(insert_qdq(model, dataclasses.replace(plan, shield_float=False), minmax(model, plan, feeds)))
    assert [kernel.op for kernel in audit(bare).bad_kernels] == ["MaxPool"]
    np.testing.assert_array_equal(run(proto, feeds, "none"), run(bare, feeds, "none"))


def test_a_maxpool_behind_an_int8_convolution_works_on_its_codes():
    model = conv_net(f"p = {POOL}(c) q = {POOL}(p) y = Conv(q, v)", "1,16,2,2", v=weight(16, 16, 1, 1, seed=2))
    _, proto, _ = quantize(model)
    report = audit(proto)
    assert report.operators["NhwcMaxPool"] == 2 and "Sum" not in report.operators and report.clean


def test_the_bias_behind_a_folded_product_has_the_scale_that_its_layer_reads():
    model = conv_net("k = Mul(c, two) y = Conv(k, v, b)", two=np.float32(1.702), v=weight(16, 16, 1, 1, seed=2))
    plan, feeds = plan_of(model), feeds_of(model)
    searched = minmax(model, plan, feeds)
    searched["k"] = dataclasses.replace(searched["k"], scale=searched["k"].scale * np.float32(0.9))  # as mse finds it
    proto = model_to_proto(insert_qdq(model, plan, searched), check=True)
    assert "Mul" not in ops(proto) and [str(finding) for finding in find_patterns(proto)] == []
    np.testing.assert_allclose(run(proto, feeds), run(proto, feeds, "none"), rtol=1e-5, atol=1e-5)


def test_a_product_that_a_relu_limits_is_not_folded():
    model = conv_net("k = Mul(c, two) r = Relu(k) y = Conv(r, v)", two=np.float32(0.5), v=weight(16, 16, 1, 1, seed=2))
    plan, proto, feeds = quantize(model)
    expected = run(model_to_proto(model), feeds)
    assert plan.absorbed == {"r": "k"}
    assert np.square(run(proto, feeds) - expected).mean() < 1e-3 * np.square(expected).mean()


def scaled_net(**options) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A product by a number between two convolutions; its own scale is half of what its values need."""
    model = conv_net("p = Mul(c, k) y = Conv(p, v, b)", k=np.float32(0.25), v=weight(16, 16, 1, 1, seed=2))
    plan, feeds = plan_of(model, **options), feeds_of(model)
    searched = minmax(model, plan, feeds)
    searched["p"] = dataclasses.replace(searched["p"], scale=searched["p"].scale * np.float32(0.5))
    return model_to_proto(insert_qdq(model, plan, searched), check=True), feeds


@pytest.mark.parametrize("options", [{"float_nodes": ["p"]}, {"activation_bits": 6}])
def test_a_folded_product_keeps_a_pair_that_is_its_own(options):
    proto, feeds = scaled_net(**options)
    stored = initializers(proto)
    assert "Mul" not in ops(proto) and ops(proto).count("QuantizeLinear") == 4
    np.testing.assert_allclose(stored["b_scale_1"], stored["p_scale"] * stored["v_scale"], rtol=1e-6)
    found = audit(proto)
    assert found.counts["int8"] == 2 and found.counts["dequantized_weights"] == found.counts["orphan_pairs"] == 0
    np.testing.assert_allclose(run(proto, feeds), run(proto, feeds, "none"), rtol=1e-5, atol=1e-5)


def test_moved_codes_have_the_scale_of_a_product_of_narrow_codes():
    model = conv_net(
        "d = Conv(c, v) p = Mul(c, k) t = Transpose<perm=[0,1,3,2]>(p) y = Mul(t, d)",
        k=np.float32(0.25),
        v=weight(16, 16, 1, 1, seed=2),
    )
    plan, proto, feeds = quantize(model, activation_bits=6)
    assert plan.activations["c"].bits == 6 and plan.activations["p"].bits == 8 and plan.tied == {"t": "p"}
    stored, products = initializers(proto), [node for node in proto.graph.node if node.op_type == "Mul"]
    assert [node.name for node in products] == ["y"]
    pair = ("t_QuantizeLinear", "t_DequantizeLinear")
    scales = [stored[node.input[1]] for node in proto.graph.node if node.name in pair]
    assert scales == [stored["c_scale"] * np.float32(0.25)] * 2
    np.testing.assert_allclose(run(proto, feeds), run(proto, feeds, "none"), rtol=1e-5, atol=1e-5)


def test_a_float_product_of_a_float_tensor_is_not_folded():
    text = "g (float[1,16,8,8] x) => (float[1,16,8,8] y, float[1,16,8,8] p) { y = Conv(x, v) p = Mul(x, k) }"
    model = parse(text, v=weight(16, 16, 1, 1), k=np.float32(0.25))
    plan, proto, feeds = quantize(model, float_nodes=["p"])
    assert "x" in plan.activations and ops(proto).count("Mul") == 1
    np.testing.assert_array_equal(values_of(proto, ["p"], feeds)["p"], feeds["x"] * np.float32(0.25))


def test_a_chain_of_float_products_folds():
    model = conv_net("p = Mul(c, k) y = Mul(k, p)", k=np.float32(0.25))
    _, proto, feeds = quantize(model, float_nodes=["p", "y"])
    assert "Mul" not in ops(proto)
    whole = dataclasses.replace(ORT, mismatched_pairs=False)
    _, kept, _ = quantize(model, whole, float_nodes=["p", "y"])
    np.testing.assert_allclose(run(proto, feeds), run(kept, feeds), rtol=1e-6, atol=1e-7)
