"""Each placement rule of the target: a graph where it applies, and one where it must not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from qdq_graphs import ORT, parse, plan_of, weight

from onnx_hyvit.errors import ConfigError

CONV = "c = Conv<pads=[1,1,1,1]>(x, w, b)"


def conv_then(tail: str, output: str = "y", channels: int = 16, out: int = 16, shape: str = "1,16,8,8", **inits):
    text = f"g (float[1,{channels},8,8] x) => (float[{shape}] {output}) {{ {CONV} {tail} }}"
    return parse(text, w=weight(out, channels, 3, 3), b=np.linspace(-1, 1, out, dtype=np.float32), **inits)


SILU = "s = Sigmoid(c) m = Mul(c, s)"
NEXT = "y = Conv(m, v)"
NEXT_WEIGHT = weight(16, 16, 1, 1, seed=3)


def test_conv_is_int8_with_pairs_on_input_and_output():
    plan = plan_of(conv_then("y = Relu(c)"))
    assert plan.int8_nodes == ("c", "y")
    assert set(plan.activations) == {"x", "y"}
    assert plan.weights["w"].axis == 0 and plan.weights["w"].signed
    assert plan.biases["c"].tensor == "b" and plan.biases["c"].node == "c"


def test_activations_are_unsigned_asymmetric_and_weights_signed_symmetric():
    plan = plan_of(conv_then("y = Relu(c)"))
    assert all(not spec.signed and not spec.symmetric and spec.axis is None for spec in plan.activations.values())
    assert all(spec.signed and spec.symmetric for spec in plan.weights.values())


def test_narrow_conv_between_float_nodes_stays_float():
    plan = plan_of(conv_then("y = Softmax(c)", channels=8, out=8, shape="1,8,8,8"))
    assert "c" in plan.float_nodes and "8 channels" in plan.float_nodes["c"]
    assert not plan.activations


def test_narrow_conv_behind_an_int8_node_is_int8():
    model = conv_then("y = Conv(c, v)", channels=16, out=8, shape="1,8,8,8", v=weight(8, 8, 1, 1))
    assert set(plan_of(model).int8_nodes) == {"c", "y"}


def test_depthwise_conv_is_int8():
    text = "g (float[1,16,8,8] x) => (float[1,16,6,6] y) { y = Conv<group=16>(x, w) }"
    assert plan_of(parse(text, w=weight(16, 1, 3, 3))).int8_nodes == ("y",)


@pytest.mark.parametrize(("channels", "kernel", "int8"), [(24, 3, True), (24, 5, False), (32, 5, True), (32, 7, True)])
def test_wide_depthwise_kernels_are_int8_in_whole_blocks_of_channels(channels, kernel, int8):
    text = f"g (float[1,{channels},8,8] x) => (float[1,{channels},H,W] y) {{ y = Conv<group={channels}>(x, w) }}"
    plan = plan_of(parse(text, w=weight(channels, 1, kernel, kernel)))
    assert (plan.int8_nodes == ("y",)) is int8
    assert int8 or "multiple of 16" in plan.float_nodes["y"]


def test_conv_transpose_stays_float_with_the_target_s_reason():
    text = "g (float[1,16,8,8] x) => (float[1,16,9,9] y) { y = ConvTranspose(x, w) }"
    plan = plan_of(parse(text, w=weight(16, 16, 2, 2)))
    assert plan.float_nodes == {"y": ORT.float["ConvTranspose"]}


def test_weights_that_are_not_constant_stay_float():
    text = "g (float[1,16,8,8] x, float[16,16,1,1] w) => (float[1,16,8,8] y) { y = Conv(x, w) }"
    assert plan_of(parse(text)).float_nodes == {"y": "its weights are not constant"}


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [("transA=1", "transA"), ("alpha=0.5", "alpha or beta"), ("beta=2.0", "alpha or beta")],
)
def test_gemm_outside_of_the_kernel_s_form_stays_float(attributes, reason):
    text = f"g (float[16,16] x) => (float[16,16] y) {{ y = Gemm<{attributes}>(x, w, b) }}"
    plan = plan_of(parse(text, w=weight(16, 16), b=np.ones(16, np.float32)))
    assert reason in plan.float_nodes["y"] and not plan.int8_nodes


@pytest.mark.parametrize(("trans", "axis"), [(0, 1), (1, 0)])
def test_gemm_weight_axis_counts_output_channels(trans, axis):
    text = f"g (float[4,16] x) => (float[4,32] y) {{ y = Gemm<transB={trans}>(x, w, b) }}"
    shape = (32, 16) if trans else (16, 32)
    plan = plan_of(parse(text, w=weight(*shape), b=np.ones(32, np.float32)))
    assert plan.weights["w"].axis == axis


def test_silu_is_an_int8_sigmoid_and_an_int8_product():
    plan = plan_of(conv_then(f"{SILU} {NEXT}", v=NEXT_WEIGHT))
    assert plan.int8_nodes == ("c", "s", "m", "y")
    assert set(plan.activations) == {"x", "c", "s", "m", "y"}


def test_silu_of_a_float_tensor_stays_float():
    text = "g (float[1,16,8,8] x) => (float[1,16,8,8] y) { n = Softmax(x) s = Sigmoid(n) m = Mul(n, s) y = Conv(m, v) }"
    plan = plan_of(parse(text, v=NEXT_WEIGHT))
    assert plan.int8_nodes == ("y",) and set(plan.activations) == {"m", "y"}


def test_gelu_is_one_float_node_between_two_pairs():
    plan = plan_of(conv_then("m = Gelu(c) y = Conv(m, v)", v=NEXT_WEIGHT))
    assert plan.int8_nodes == ("c", "y") and set(plan.activations) == {"x", "c", "m", "y"}
    assert plan.float_nodes == {"m": ORT.float["Gelu"]}


def test_softmax_and_products_of_activations_stay_float():
    text = """g (float[1,8,16] x) => (float[1,8,16] y) {
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) kt = Transpose<perm=[0,2,1]>(k)
        l = MatMul(q, kt) p = Softmax(l) o = MatMul(p, v) y = MatMul(o, wo) }"""
    plan = plan_of(parse(text, wq=weight(16, 16), wk=weight(16, 16), wv=weight(16, 16), wo=weight(16, 16)))
    assert {"l", "p", "o"} <= set(plan.float_nodes)
    assert set(plan.int8_nodes) == {"q", "k", "v", "y"}
    assert "q" not in plan.activations and "v" not in plan.activations, "its kernel writes float by itself"


def test_average_pool_stays_float_and_global_average_pool_is_int8():
    pooled = plan_of(conv_then("y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(c)"))
    assert "y" in pooled.float_nodes and "y" not in pooled.activations
    globally = plan_of(conv_then("y = GlobalAveragePool(c)", shape="1,16,1,1"))
    assert "y" in globally.int8_nodes and "y" in globally.activations


def test_concat_of_int8_tensors_is_int8_each_with_its_own_scale():
    plan = plan_of(
        conv_then("d = Conv(x, v) y = Concat<axis=1>(c, d)", shape="1,32,8,8", v=NEXT_WEIGHT),
    )
    assert "y" in plan.int8_nodes and not plan.tied


RESIDUAL = "d = Conv(c, v) a = Add(c, d) y = Conv(a, v)"


def test_residual_addition_of_convolutions_is_int8():
    plan = plan_of(conv_then(RESIDUAL, v=NEXT_WEIGHT))
    assert "a" in plan.int8_nodes


def test_residual_addition_stays_float_when_asked():
    plan = plan_of(conv_then(RESIDUAL, v=NEXT_WEIGHT), residual="float")
    assert "a" in plan.float_nodes and "a" in plan.activations, "the next convolution reads it through its own pair"


TRANSFORMER = """g (float[1,8,16] x) => (float[1,8,16] y) {
    h = MatMul(x, w) f = MatMul(h, v) a = Add(h, f) n = LayerNormalization(a, s) y = MatMul(n, w) }"""


def transformer():
    return parse(TRANSFORMER, w=weight(16, 16), v=weight(16, 16, seed=1), s=np.ones(16, np.float32))


def test_residual_stream_of_a_transformer_stays_float():
    plan = plan_of(transformer())
    assert "residual stream" in plan.float_nodes["a"]
    assert "n" in plan.float_nodes and set(plan.activations) == {"x", "h", "n"}


def test_residual_stream_is_int8_when_asked():
    assert "a" in plan_of(transformer(), residual="int8").int8_nodes
    assert "a" in plan_of(transformer(), int8_nodes=["a"]).int8_nodes


def test_movement_behind_an_int8_node_is_carried_with_the_same_scale():
    model = conv_then("t = Transpose<perm=[0,2,3,1]>(c) y = Relu(t)", shape="1,8,8,16")
    plan = plan_of(model)
    assert plan.carried_nodes == ("t",) and plan.tied == {"t": "c"}


def test_movement_between_float_nodes_is_not_carried():
    text = (
        "g (float[1,16,8,8] x) => (float[1,8,8,16] y) { n = Softmax(x) t = Transpose<perm=[0,2,3,1]>(n) y = Relu(t) }"
    )
    plan = plan_of(parse(text))
    assert not plan.carried_nodes and not plan.activations


def test_movement_in_front_of_int8_nodes_is_carried():
    text = """g (float[1,8,8,16] x) => (float[1,16,8,8] y) {
        n = Softmax(x) t = Transpose<perm=[0,3,1,2]>(n) y = Conv(t, v) }"""
    plan = plan_of(parse(text, v=NEXT_WEIGHT))
    assert plan.carried_nodes == ("t",) and plan.tied == {"t": "n"}


def test_movement_that_a_float_node_reads_too_is_not_carried_backwards():
    text = """g (float[1,8,8,16] x) => (float[1,16,8,8] y, float[1,16,8,8] z) {
        n = Softmax(x) t = Transpose<perm=[0,3,1,2]>(n) y = Conv(t, v) z = Softmax(t) }"""
    plan = plan_of(parse(text, v=NEXT_WEIGHT))
    assert not plan.carried_nodes and set(plan.activations) == {"t", "y"}


def test_split_is_not_quantized():
    model = conv_then("p, q = Split<axis=1, num_outputs=2>(c) y = Add(p, q)", shape="1,8,8,8")
    assert {"p", "y"} <= set(plan_of(model).float_nodes)


def test_linear_resize_stays_float_and_nearest_is_carried():
    scales = np.array([1, 1, 2, 2], np.float32)
    for mode, carried in (("nearest", True), ("linear", False)):
        model = conv_then(f'y = Resize<mode="{mode}">(c, , r)', shape="1,16,16,16", r=scales)
        assert ("y" in plan_of(model).carried_nodes) is carried


def test_bias_behind_a_matmul_is_int32_and_absorbed():
    text = "g (float[1,8,16] x) => (float[1,8,16] y) { m = MatMul(x, w) a = Add(b, m) r = Relu(a) y = MatMul(r, w) }"
    plan = plan_of(parse(text, w=weight(16, 16), b=np.ones(16, np.float32)))
    assert plan.absorbed == {"a": "m", "r": "m"}
    assert plan.biases["m"].node == "a" and set(plan.activations) == {"x", "r"}


def test_bias_behind_a_matmul_stays_float_with_free_dimensions():
    text = "g (float[N,8,16] x) => (float[N,8,16] y) { m = MatMul(x, w) y = Add(b, m) }"
    plan = plan_of(parse(text, w=weight(16, 16), b=np.ones(16, np.float32)))
    assert plan.absorbed == {"y": "m"} and not plan.biases


def test_relu_with_another_reader_of_its_input_is_not_absorbed():
    plan = plan_of(conv_then("r = Relu(c) a = Add(c, r) y = Conv(a, v)", v=NEXT_WEIGHT))
    assert not plan.absorbed and "c" in plan.activations


def test_a_shared_weight_has_one_spec_and_one_scale_when_its_axes_differ():
    text = "g (float[4,16] x) => (float[4,16] y) { h = MatMul(x, w) y = Gemm<transB=1>(h, w) }"
    assert plan_of(parse(text, w=weight(16, 16))).weights["w"].axis is None


def test_nodes_in_bodies_are_left_alone_and_read_the_outer_tensor():
    text = """g (float[1,16,8,8] x, bool cond) => (float[1,16,8,8] y) {
        c = Conv(x, v)
        y = If(cond) <then_branch = t () => (float[1,16,8,8] u) { u = Relu(c) },
                      else_branch = e () => (float[1,16,8,8] z) { z = Neg(c) }> }"""
    plan = plan_of(parse(text, v=NEXT_WEIGHT))
    assert plan.int8_nodes == ("c",) and "y" in plan.float_nodes


def test_every_node_has_exactly_one_place():
    model = conv_then(f"{SILU} {NEXT}", v=NEXT_WEIGHT)
    plan = plan_of(model)
    places = [*plan.int8_nodes, *plan.carried_nodes, *plan.float_nodes]
    assert sorted(places) == sorted(node.name for node in model.graph.nodes)


def test_a_node_asked_to_stay_float_does():
    plan = plan_of(conv_then(f"{SILU} {NEXT}", v=NEXT_WEIGHT), float_nodes=["c"])
    assert plan.float_nodes["c"] == "asked to stay float" and plan.int8_nodes == ("y",)


def test_an_unknown_node_name_is_an_error():
    with pytest.raises(ConfigError, match="'nope'"):
        plan_of(conv_then("y = Relu(c)"), float_nodes=["nope"])
    with pytest.raises(ConfigError, match="float and int8"):
        plan_of(conv_then("y = Relu(c)"), float_nodes=["c"], int8_nodes=["c"])


def test_bits_narrow_the_codes_but_never_widen_the_target_s():
    plan = plan_of(conv_then("y = Relu(c)"), weight_bits=4, activation_bits=6)
    assert plan.weights["w"].bits == 4 and plan.activations["x"].bits == 6
    narrow = dataclasses.replace(ORT, weight=dataclasses.replace(ORT.weight, bits=7))
    assert plan_of(conv_then("y = Relu(c)"), narrow).weights["w"].bits == 7


def test_a_target_that_wants_codes_behind_a_matmul_gets_them():
    target = dataclasses.replace(ORT, matmul_output="int8")
    assert "f" in plan_of(transformer(), target).activations


def test_concat_with_a_float_operand_is_int8_when_a_layer_reads_it():
    tail = "n = Softmax(x) t = Transpose<perm=[0,1,3,2]>(n) e = Concat<axis=1>(c, t) y = Conv(e, v)"
    plan = plan_of(conv_then(tail, v=weight(16, 32, 1, 1)))
    assert "e" in plan.int8_nodes and plan.carried_nodes == ("t",) and plan.tied == {"t": "n"}
    plan = plan_of(conv_then("n = Softmax(x) y = Concat<axis=1>(c, n)", shape="1,32,8,8"))
    assert "y" in plan.float_nodes


def test_movement_behind_a_linear_layer_is_float_when_only_float_nodes_read_it():
    text = """g (float[1,8,16] x) => (float[1,16,8] y) {
        m = MatMul(x, w) t = Transpose<perm=[0,2,1]>(m) y = Softmax(t) }"""
    plan = plan_of(parse(text, w=weight(16, 16)))
    assert plan.int8_nodes == ("m",) and not plan.carried_nodes and set(plan.activations) == {"x"}
    conv = plan_of(conv_then("t = Transpose<perm=[0,2,3,1]>(c) y = Softmax(t)", shape="1,8,8,16"))
    assert conv.carried_nodes == ("t",), "a convolution writes codes in any case"
