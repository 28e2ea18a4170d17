from __future__ import annotations

import numpy as np
import pytest
from exactness import apply, ops, parse

from onnx_hyvit.passes import LOWERING, lower_matmul_to_gemm, sink_reshapes

RNG = np.random.default_rng(4)
W = {
    "w": RNG.standard_normal((8, 16)).astype(np.float32),
    "w2": RNG.standard_normal((16, 8)).astype(np.float32),
    "b": RNG.standard_normal(16).astype(np.float32),
    "b1": RNG.standard_normal((1, 1, 16)).astype(np.float32),
    "b2": RNG.standard_normal(8).astype(np.float32),
    "rows": RNG.standard_normal((5, 1)).astype(np.float32),
    "gain": RNG.uniform(0.5, 1.5, 16).astype(np.float32),
    "half": np.array(0.5, np.float32),
}
PASS = lower_matmul_to_gemm.PASS


@pytest.mark.parametrize("add", ["Add(c, b)", "Add(b, c)", "Add(c, b1)"])
def test_rank_three_with_free_batch(add: str) -> None:
    text = f"agraph (float[N, 5, 8] x) => (float[N, 5, 16] y) {{ c = MatMul(x, w) y = {add} }}"
    model = apply(parse(text, weights=W), PASS, batches=(1, 3))
    assert ops(model) == {"Reshape": 2, "Gemm": 1}


def test_rank_two_needs_no_reshape() -> None:
    text = "agraph (float[N, 8] x) => (float[N, 16] y) { c = MatMul(x, w) y = Add(c, b) }"
    assert ops(apply(parse(text, weights=W), PASS, batches=(1, 3))) == {"Gemm": 1}


def test_several_free_axes_read_the_shape_at_run_time() -> None:
    text = "agraph (float[N, T, 8] x) => (float[N, T, 16] y) { c = MatMul(x, w) y = Add(c, b) }"
    model = apply(parse(text, weights=W), PASS, batches=(1, 3))
    assert ops(model) == {"Reshape": 2, "Gemm": 1, "Shape": 1, "Concat": 1}


@pytest.mark.parametrize(
    "body",
    [
        "c = MatMul(x, w) y = Add(c, rows)",
        "c = MatMul(x, w) y = Add(c, c)",
        "c = MatMul(x, w) r = Relu(c) d = Add(c, b) y = Add(d, r)",
        "c = MatMul(x, w) y = Sub(c, b)",
    ],
)
def test_what_is_not_lowered(body: str) -> None:
    text = f"agraph (float[N, 5, 8] x) => (float[N, 5, 16] y) {{ {body} }}"
    assert ops(apply(parse(text, weights=W), PASS))["Gemm"] == 0


def test_weight_shared_by_two_products() -> None:
    text = """agraph (float[N, 5, 8] x) => (float[N, 5, 16] y) {
        c = MatMul(x, w) d = Add(c, b) r = Relu(x) e = MatMul(r, w) f = Add(e, b) y = Sub(d, f) }"""
    assert ops(apply(parse(text, weights=W), PASS, batches=(1, 2)))["Gemm"] == 2


@pytest.mark.parametrize(
    "activation",
    [
        "h = Gelu(a)",
        "g = Sigmoid(a) h = Mul(a, g)",
        "h = HardSwish(a)",
        "n = Neg(a) e = Selu(n) h = Exp(e)",
        "l = LayerNormalization(a, gain) h = Mul(l, half)",
    ],
)
@pytest.mark.parametrize("tokens", ["5", "T"])
def test_no_reshape_remains_between_the_two_layers_of_an_mlp(activation: str, tokens: str) -> None:
    text = f"""agraph (float[N, {tokens}, 8] x) => (float[N, {tokens}, 8] y) {{
        c = MatMul(x, w) a = Add(c, b) {activation} d = MatMul(h, w2) y = Add(d, b2) }}"""
    model = apply(parse(text, weights=W), *LOWERING, batches=(1, 3))
    assert ops(model)["Gemm"] == 2
    assert ops(model)["Reshape"] == 2
    assert ops(model)["Shape"] == (0 if tokens == "5" else 1)


def test_a_reshape_that_splits_the_last_axis_is_not_passed() -> None:
    weights = {**W, "heads": np.array([-1, 5, 4, 4], np.int64)}
    text = "agraph (float[N, 16] x) => (float[M, 5, 4, 4] y) { r = Reshape(x, heads) s = Relu(r) y = Sigmoid(s) }"
    model = apply(parse(text, weights=weights), sink_reshapes.PASS, batches=(5, 10))
    assert next(node.op for node in model.graph.nodes) == "Reshape"


def test_different_targets_do_not_meet() -> None:
    weights = {"s": np.array([-1, 2, 8], np.int64), "t": np.array([2, -1, 8], np.int64)}
    text = """agraph (float[N, 8] x, float[N, 8] z) => (float[A, B, 8] y) {
        r = Reshape(x, s) q = Reshape(z, t) a = Add(r, q) y = Relu(a) }"""
    model = apply(parse(text, weights=weights), sink_reshapes.PASS, batches=(4,))
    assert ops(model)["Reshape"] == 2


@pytest.mark.parametrize(("other", "reshapes"), [("N", 3), ("1", 6), ("M", 6)])
def test_rows_of_one_sample_do_not_meet_those_of_many(other: str, reshapes: int) -> None:
    text = f"""agraph (float[N, 5, 8] x, float[{other}, 5, 8] z) => (float[A, 5, 8] y) {{
        h0 = MatMul(x, w) h = Add(h0, b) k0 = MatMul(z, w) k = Add(k0, b)
        s = Add(h, k) d = MatMul(s, w2) y = Add(d, b2) }}"""
    model = apply(parse(text, weights=W), *LOWERING, batches=(1, 2))
    assert ops(model) == {"Reshape": reshapes, "Gemm": 3, "Add": 1}
