"""Nodes with 16-bit activations beside 8-bit ones: where codes are converted, what follows whom, what it computes."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from qdq_graphs import HEADER_21, ORT, feeds_of, minmax, ops, parse, plan_of, quantize, run, weight

from onnx_hyvit.graph import model_to_proto
from onnx_hyvit.insert_qdq import insert_qdq
from onnx_hyvit.numerics import LogCodes
from onnx_hyvit.placement import Conversion, FullMode
from onnx_hyvit.targets import check_target, load_target
from onnx_hyvit.validate import find_patterns

QNN = load_target("qnn")
FOLDING = dataclasses.replace(QNN, fold_clip=True)
LOGARITHMIC = FullMode(softmax=LogCodes())
WHY = "a test asks for it"
CHAIN = """g (float[1,16,8,8] x) => (float[1,16,8,8] y) {
    a = Conv(x, w, i) b = Conv(a, v, i) c = Conv(b, u) d = Conv(b, t) y = Add(c, d) }"""


def exact_weight(seed: int) -> np.ndarray:
    """A weight of 8-bit codes, so that nothing but activations is rounded."""
    codes = np.random.default_rng(seed).integers(-127, 128, (16, 16, 1, 1))
    codes[:, 0] = 127
    return (codes / 512).astype(np.float32)


def chain(text: str = CHAIN):
    used = {name: exact_weight(seed) for seed, name in enumerate("wvut") if f" {name})" in text or f" {name}," in text}
    bias = {"i": np.linspace(-1, 1, 16, dtype=np.float32)} if ", i)" in text else {}
    return parse(text, HEADER_21, **used, **bias)


def wide(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, WHY)


def pairs_of(proto: onnx.ModelProto) -> list[tuple[str, str, str]]:
    """Every activation pair in order: what is quantized, the type of the codes, who reads what they stand for."""
    stored = {tensor.name: numpy_helper.to_array(tensor).dtype.name for tensor in proto.graph.initializer}
    readers: dict[str, list[str]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.name)
    behind = {
        node.input[0]: node.output[0] for node in proto.graph.node if node.op_type in ("DequantizeLinear", "Clip")
    }
    found = []
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear":
            result = behind[node.output[0]]
            result = behind.get(result, result)
            found.append((node.input[0], stored[node.input[2]], " ".join(sorted(readers.get(result, [])))))
    return found


def test_a_wide_layer_between_narrow_ones_has_a_conversion_on_either_side():
    model = chain()
    plan, proto, _ = quantize(model, QNN, wide_nodes=wide("b"))
    assert plan.wide_nodes == {"b": WHY}
    assert plan.conversions == {"a_as_uint16": Conversion("a", ("b",)), "b_as_uint8": Conversion("b", ("c", "d"))}
    assert pairs_of(proto) == [
        ("x", "uint8", "a"),
        ("a_QuantizeLinear_Input", "uint8", "a_as_uint16_QuantizeLinear"),
        ("a", "uint16", "b"),
        ("b_QuantizeLinear_Input", "uint16", "b_as_uint8_QuantizeLinear"),
        ("b", "uint8", "c d"),
        ("c_QuantizeLinear_Input", "uint8", "y"),
        ("d_QuantizeLinear_Input", "uint8", "y"),
        ("y_QuantizeLinear_Input", "uint8", ""),
    ]
    assert plan.biases["b"].activation == "a_as_uint16" and plan.biases["a"].activation == "x"
    assert not find_patterns(proto) and not check_target(proto, QNN)


def test_a_float_value_is_quantized_for_each_width_by_itself():
    model = chain("g (float[1,16,8,8] x) => (float[1,16,8,8] a, float[1,16,8,8] b) { a = Conv(x, w) b = Conv(x, v) }")
    plan, proto, _ = quantize(model, QNN, wide_nodes=wide("b"))
    assert plan.conversions == {"x_as_uint16": Conversion("x", ("b",))}
    assert sorted(pairs_of(proto)) == [
        ("a_QuantizeLinear_Input", "uint8", ""),
        ("b_QuantizeLinear_Input", "uint16", ""),
        ("x", "uint16", "b"),
        ("x", "uint8", "a"),
    ]
    alone = plan_of(model, QNN, wide_nodes=wide("a", "b"))
    assert not alone.conversions and {spec.bits for spec in alone.activations.values()} == {16}


def test_a_wide_addition_reads_both_operands_wide():
    plan, proto, _ = quantize(chain(), QNN, wide_nodes=wide("y", "d"))
    assert sorted(pairs_of(proto)[2:]) == [
        ("b", "uint16", "d"),
        ("b_QuantizeLinear_Input", "uint8", "b_as_uint16_QuantizeLinear c"),
        ("c", "uint16", "y"),
        ("c_QuantizeLinear_Input", "uint8", "c_as_uint16_QuantizeLinear"),
        ("d_QuantizeLinear_Input", "uint16", "y"),
        ("y_QuantizeLinear_Input", "uint16", ""),
    ]
    assert list(plan.wide_nodes) == ["d", "y"]


def test_the_more_is_wide_the_closer_the_outputs_are():
    model = chain()
    truth = run(model_to_proto(model), feeds_of(model))

    def error(*names: str) -> float:
        _, proto, feeds = quantize(model, QNN, wide_nodes=wide(*names))
        found = [run(proto, feeds, level) for level in ("none", "all")]
        np.testing.assert_allclose(*found, atol=1e-4 * np.abs(truth).max())
        return float(np.linalg.norm(found[0] - truth) / np.linalg.norm(truth))

    narrow, front, behind, whole = error(), error("a", "b"), error("c", "d", "y"), error("a", "b", "c", "d", "y")
    assert whole < narrow / 50 and max(front, behind) < narrow < 0.03


def test_a_wide_layer_keeps_its_relu_and_a_narrow_one_folds_it():
    text = "g (float[1,16,8,8] x) => (float[1,16,8,8] y) { a = Conv(x, w) r = Relu(a) b = Conv(r, v) y = Relu(b) }"
    model = chain(text)
    plan, proto, feeds = quantize(model, FOLDING, wide_nodes=wide("a"))
    assert plan.wide_nodes == {"a": WHY, "r": WHY} and plan.absorbed == {"r": "a", "y": "b"}
    assert [node.name for node in proto.graph.node if node.op_type in ("Relu", "Clip")] == ["r"]
    found = run(proto, feeds, "none")
    assert found.min() == 0.0
    np.testing.assert_allclose(found, run(model_to_proto(model), feeds), atol=0.05 * found.max())


@pytest.mark.parametrize("maker", [("a",), ()])
def test_what_moves_codes_takes_the_width_of_their_maker(maker):
    model = chain(
        """g (float[1,16,8,8] x) => (float[1,16,8,8] y) {
        a = Conv(x, w) m = Transpose<perm=[0,1,3,2]>(a) n = Transpose<perm=[0,1,3,2]>(m) y = Conv(n, v) }"""
    )
    plan, proto, _ = quantize(model, QNN, wide_nodes=wide(*maker) or wide("y"))
    moves = [name for name in ("m", "n") if name in plan.wide_nodes]
    assert moves == (["m", "n"] if maker else [])
    assert plan.tied == {"m": "a", "n": "a"}
    assert list(plan.conversions) == (["n_as_uint8"] if maker else ["n_as_uint16"])
    assert not check_target(proto, QNN)


def test_what_moves_a_float_value_takes_the_width_of_its_readers():
    text = """g (float[1,16,8,8] x) => (float[1,16,8,8] y, float[1,16,8,8] z) {
        m = Transpose<perm=[0,1,3,2]>(x) y = Conv(m, w) z = Conv(m, v) }"""
    same, mixed = (plan_of(chain(text), QNN, wide_nodes=names) for names in (wide("y", "z"), wide("y")))
    assert "m" in same.wide_nodes and not same.conversions and same.activations["x"].bits == 16
    assert "m" not in mixed.wide_nodes and mixed.conversions == {"m_as_uint16": Conversion("m", ("y",))}
    both = plan_of(chain(text.replace("Conv(m, v)", "Conv(x, v)")), QNN, wide_nodes=wide("y"))
    assert both.conversions == {"x_as_uint16": Conversion("x", ("m",))} and both.tied == {"m": "x_as_uint16"}


def test_a_constant_that_both_widths_read_is_stored_in_each():
    text = "g (float[1,16,8,8] x) => (float[1,16,8,8] y) { a = Conv(x, w) b = Mul(a, k) y = Mul(b, k) }"
    model = parse(text, HEADER_21, w=exact_weight(0), k=np.linspace(0.5, 2, 16, dtype=np.float32).reshape(16, 1, 1))
    _, proto, feeds = quantize(model, QNN, wide_nodes=wide("b"))
    stored = [tensor for tensor in proto.graph.initializer if tensor.name.startswith("k_quantized")]
    assert sorted(numpy_helper.to_array(tensor).dtype.name for tensor in stored) == ["uint16", "uint8"]
    assert not check_target(proto, QNN)
    truth = run(model_to_proto(model), feeds)
    np.testing.assert_allclose(run(proto, feeds), truth, atol=0.03 * np.abs(truth).max())


def test_conversions_to_fewer_bits_keep_to_their_codes():
    plan, proto, _ = quantize(chain(), QNN, wide_nodes=wide("b"), activation_bits=6)
    assert {name: spec.bits for name, spec in plan.activations.items()} == {
        "x": 6, "a": 8, "a_as_uint16": 16, "b": 16, "b_as_uint8": 6, "c": 8, "d": 8, "y": 8
    }  # fmt: skip
    limits = {
        tensor.name: int(numpy_helper.to_array(tensor)) for tensor in proto.graph.initializer if "_code_" in tensor.name
    }
    assert limits == {"x_code_min": 0, "x_code_max": 63, "b_as_uint8_code_min": 0, "b_as_uint8_code_max": 63}


def test_signed_codes_become_int16():
    signed = dataclasses.replace(QNN, activation=dataclasses.replace(QNN.activation, dtype="int8"))
    plan, proto, _ = quantize(chain(), signed, wide_nodes=wide("b"))
    assert list(plan.conversions) == ["a_as_int16", "b_as_int8"]
    assert {dtype for _, dtype, _ in pairs_of(proto)} == {"int8", "int16"}


def test_the_name_of_a_conversion_is_no_name_of_the_graph():
    text = CHAIN.replace("b = Conv(a, v, i)", "a_as_uint16 = Relu(x) b = Conv(a, v, i)").replace(
        "y) {", "y, float[1,16,8,8] a_as_uint16) {"
    )
    plan = quantize(chain(text), QNN, wide_nodes=wide("b"))[0]
    assert plan.conversions["a_as_uint16_"] == Conversion("a", ("b",))


def test_a_float_node_is_not_wide_and_all_16_bits_need_no_names():
    plan = plan_of(chain(), QNN, wide_nodes=wide("b"), float_nodes=["b"])
    assert not plan.wide_nodes and not plan.conversions
    every = plan_of(chain(), QNN, wide_nodes=wide("b"), activation_bits=16)
    assert not every.wide_nodes and every == plan_of(chain(), QNN, activation_bits=16)


def test_in_mode_full_a_pair_around_a_float_node_is_wide_too():
    text = """g (float[1,4,16] x) => (float[1,4,16] y) {
        a = MatMul(x, w) g = Tanh(a) s = Softmax(g) b = MatMul(s, v) y = MatMul(b, u) }"""
    model = parse(text, HEADER_21, **{name: weight(16, 16, seed=seed) for seed, name in enumerate("wvu")})
    plan = plan_of(model, QNN, full=LOGARITHMIC, wide_nodes=wide("g", "s"))
    assert "g" in plan.paired and list(plan.wide_nodes) == ["g", "s"]
    assert plan.conversions == {"a_as_uint16": Conversion("a", ("g",)), "s_as_uint8": Conversion("s", ("b",))}
    assert not plan.log_codes and set(plan.fixed) == {"s", "s_as_uint8"}
    assert plan_of(model, QNN, full=LOGARITHMIC).log_codes, "without 16 bits it has logarithmic codes"
    feeds = feeds_of(model)
    proto = model_to_proto(insert_qdq(model, plan, minmax(model, plan, feeds)), check=True)
    assert [dtype for source, dtype, _ in pairs_of(proto) if source.startswith("g_")] == ["uint16"]
    np.testing.assert_allclose(run(proto, feeds), run(model_to_proto(model), feeds), atol=0.05)


def test_operators_between_widths_are_found_in_any_file():
    proto = quantize(chain(), QNN, wide_nodes=wide("b"))[1]
    view = {node.output[0]: node for node in proto.graph.node}
    next(node for node in proto.graph.node if node.name == "b").input[0] = "a"  # past its conversion
    breaches = check_target(proto, QNN)
    assert [breach.node for breach in breaches] == ["b"]
    assert breaches[0].problem == "Conv reads uint8 and writes uint16, qnn takes one type"
    assert not check_target(proto, load_target("generic")), "where nothing has 16-bit kernels it makes no difference"
    view["y_QuantizeLinear_Input"].input[0] = "b"
    assert [breach.problem for breach in check_target(proto, QNN)][1].startswith(
        "Add reads uint16 and uint8 and writes"
    )


def test_a_float_layer_between_widths_is_none():
    model = chain(CHAIN.replace(", i)", ")"))
    _, proto, _ = quantize(model, QNN, wide_nodes=wide("a"), float_nodes=["b"])
    types = [dtype for _, dtype, _ in pairs_of(proto)]
    assert types[:3] == ["uint16", "uint16", "uint8"] and not check_target(proto, QNN)


def test_a_relu_does_not_hide_the_width_behind_it():
    text = "g (float[1,16,8,8] x) => (float[1,16,8,8] y) { a = Conv(x, w) r = Relu(a) y = Conv(r, v) }"
    proto = quantize(chain(text), QNN, wide_nodes=wide("a"))[1]
    assert not check_target(proto, QNN)
    eight = next(tensor.name for tensor in proto.graph.initializer if tensor.name == "y_zero_point")
    for node in proto.graph.node:
        if node.name in ("x_QuantizeLinear", "x_DequantizeLinear"):
            node.input[2] = eight
    assert [breach.problem for breach in check_target(proto, QNN)] == [
        "Conv reads uint8 and writes uint16, qnn takes one type"
    ]


def test_a_cpu_target_without_names_has_none():
    plan = plan_of(chain(), ORT)
    assert not plan.wide_nodes and not plan.conversions
    assert "Identity" not in ops(quantize(chain(), ORT)[1])
