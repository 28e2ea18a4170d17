from __future__ import annotations

import numpy as np
import pytest
from exactness import apply, ops, parse

from onnx_hyvit.passes import fold_channel_scale

RNG = np.random.default_rng(2)
PASS = fold_channel_scale.PASS
W = {
    "w": RNG.standard_normal((8, 4, 3, 3)).astype(np.float32),
    "dw": RNG.standard_normal((4, 1, 3, 3)).astype(np.float32),
    "gw": RNG.standard_normal((8, 2, 1, 1)).astype(np.float32),
    "m": RNG.standard_normal((4, 8)).astype(np.float32),
    "k": RNG.standard_normal(8).astype(np.float32),
    "s": RNG.uniform(0.5, 2, (8, 1, 1)).astype(np.float32),
    "s4": RNG.uniform(0.5, 2, (1, 4, 1, 1)).astype(np.float32),
    "v": RNG.uniform(0.5, 2, 8).astype(np.float32),
    "v4": RNG.uniform(0.5, 2, 4).astype(np.float32),
    "half": np.array(0.5, np.float32),
    "row": RNG.uniform(0.5, 2, (8, 1, 6)).astype(np.float32),
    "perm": RNG.uniform(0.5, 2, (6, 1)).astype(np.float32),
}
CONV = "agraph (float[N, 4, 6, 6] x) => (float[N, 8, 6, 6] y) {"
LIN = "agraph (float[N, 5, 4] x) => (float[N, 5, 8] y) {"


@pytest.mark.parametrize(
    "op", ["Mul(c, s)", "Mul(s, c)", "Div(c, s)", "Add(c, s)", "Add(s, c)", "Sub(c, s)", "Mul(c, half)"]
)
@pytest.mark.parametrize("bias", ["", ", k"])
def test_after_conv(op: str, bias: str) -> None:
    model = apply(parse(f"{CONV} c = Conv<pads=[1,1,1,1]>(x, w{bias}) y = {op} }}", weights=W), PASS, batches=(1, 2))
    assert ops(model) == {"Conv": 1}


def test_division_of_a_constant_is_left_alone() -> None:
    model = apply(parse(f"{CONV} c = Conv<pads=[1,1,1,1]>(x, w) z = Exp(c) y = Div(s, z) }}", weights=W), PASS)
    assert ops(model)["Div"] == 1


def test_variation_along_pixels_is_left_alone() -> None:
    model = apply(parse(f"{CONV} c = Conv<pads=[1,1,1,1]>(x, w) y = Mul(c, row) }}", weights=W), PASS)
    assert ops(model) == {"Conv": 1, "Mul": 1}


def test_layer_scale_and_bias_after_matmul_become_one_add() -> None:
    model = apply(parse(f"{LIN} c = MatMul(x, m) a = Add(k, c) y = Mul(a, v) }}", weights=W), PASS, batches=(1, 2))
    assert ops(model) == {"MatMul": 1, "Add": 1}


def test_two_biases_after_matmul_merge() -> None:
    model = apply(parse(f"{LIN} c = MatMul(x, m) a = Add(k, c) y = Sub(a, v) }}", weights=W), PASS)
    assert ops(model) == {"MatMul": 1, "Add": 1}


def test_scale_before_conv_and_matmul() -> None:
    model = apply(parse(f"{CONV} c = Mul(x, s4) y = Conv<pads=[1,1,1,1]>(c, w) }}", weights=W), PASS)
    assert ops(model) == {"Conv": 1}
    model = apply(parse(f"{LIN} c = Mul(x, v4) y = MatMul(c, m) }}", weights=W), PASS)
    assert ops(model) == {"MatMul": 1}


def test_scale_before_depthwise_and_grouped_conv() -> None:
    text = "agraph (float[1, 4, 6, 6] x) => (float[1, 4, 4, 4] y) { c = Mul(x, s4) y = Conv<group=4>(c, dw) }"
    assert ops(apply(parse(text, weights=W), PASS)) == {"Conv": 1}
    body = "c = Mul(x, s4) d = Add(c, s4) y = Conv<group=2>(d, gw)"
    text = f"agraph (float[1, 4, 6, 6] x) => (float[1, 8, 6, 6] y) {{ {body} }}"
    assert ops(apply(parse(text, weights=W), PASS)) == {"Conv": 1}


def test_shift_before_a_padded_conv_is_left_alone() -> None:
    model = apply(parse(f"{CONV} c = Add(x, s4) y = Conv<pads=[1,1,1,1]>(c, w) }}", weights=W), PASS)
    assert ops(model) == {"Conv": 1, "Add": 1}


def test_scaled_tensor_with_another_reader_is_left_alone() -> None:
    head = "agraph (float[1, 4, 6, 6] x) => (float[1, 8, 4, 4] y, float[1, 4, 6, 6] r) {"
    text = f"{head} c = Mul(x, s4) r = Relu(c) y = Conv(c, w) }}"
    assert ops(apply(parse(text, weights=W), PASS))["Mul"] == 1


def test_name_of_a_graph_output_survives() -> None:
    model = apply(parse(f"{CONV} c = Conv<pads=[1,1,1,1]>(x, w) y = Mul(c, s) }}", weights=W), PASS)
    assert [tensor.name for tensor in model.graph.outputs] == ["y"]
    assert model.graph.nodes[0].outputs[0].name == "y"


def test_inner_output_is_left_alone() -> None:
    head = "agraph (float[N, 4, 6, 6] x) => (float[N, 8, 6, 6] y, float[N, 8, 6, 6] c) {"
    model = apply(parse(f"{head} c = Conv<pads=[1,1,1,1]>(x, w) y = Mul(c, s) }}", weights=W), PASS)
    assert ops(model) == {"Conv": 1, "Mul": 1}
