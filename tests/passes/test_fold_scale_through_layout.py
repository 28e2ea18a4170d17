from __future__ import annotations

import numpy as np
import pytest
from exactness import apply, ops, parse

from onnx_hyvit.passes import eliminate_noops, fold_scale_through_layout, simplify_shape_arithmetic

RNG = np.random.default_rng(6)
PASS = fold_scale_through_layout.PASS
W = {
    "w": RNG.standard_normal((16, 48)).astype(np.float32),
    "b": RNG.standard_normal(48).astype(np.float32),
    "cw": RNG.standard_normal((16, 8, 1, 1)).astype(np.float32),
    "cb": RNG.standard_normal(16).astype(np.float32),
    "shape": np.array([-1, 9, 3, 4, 4], np.int64),
    "heads": np.array([0, 9, 12, 4], np.int64),
    "split": np.array([4, 4, 4], np.int64),
    "i0": np.array(0, np.int64),
    "i1": np.array(1, np.int64),
    "i2": np.array(2, np.int64),
    "scale": np.array(0.5, np.float32),
    "per_head": RNG.uniform(0.5, 2, (4, 1, 1)).astype(np.float32),
    "per_channel": RNG.uniform(0.5, 2, (1, 4, 1, 4)).astype(np.float32),
    "per_token": RNG.uniform(0.5, 2, (9, 1)).astype(np.float32),
    "per_head_channel": RNG.uniform(0.5, 2, (12, 4)).astype(np.float32),
}
QKV = """p0 = MatMul(x, w) p = Add(p0, b) r = Reshape(p, shape) t = Transpose<perm = [2, 0, 3, 1, 4]>(r)
    q = Gather<axis = 0>(t, i0) k0 = Gather<axis = 0>(t, i1) v = Gather<axis = 0>(t, i2)
    k = Transpose<perm = [0, 1, 3, 2]>(k0)"""
END = "a = Softmax<axis = -1>(l) y = MatMul(a, v)"
HEAD = "agraph (float[N, 9, 16] x) => (float[N, 4, 9, 4] y) {"


@pytest.mark.parametrize(
    "body",
    [
        "s = Mul(q, scale) l = MatMul(s, k)",
        "s = Div(q, scale) l = MatMul(s, k)",
        "s = Mul(k, scale) l = MatMul(q, s)",
        "s = Mul(q, scale) u = Mul(scale, k) l = MatMul(s, u)",
        "m = MatMul(q, k) l = Mul(m, scale)",
        "m = MatMul(q, k) l = Div(m, scale)",
        "s = Mul(q, per_head) l = MatMul(s, k)",
        "s = Mul(per_channel, q) l = MatMul(s, k)",
        "s = Add(q, per_head) u = Sub(k, scale) l = MatMul(s, u)",
        "s = Mul(q, per_head) u = Add(s, per_channel) l = MatMul(u, k)",
    ],
)
def test_folds_into_the_projection_of_queries_keys_and_values(body: str) -> None:
    model = apply(parse(f"{HEAD} {QKV} {body} {END} }}", weights=W), PASS, batches=(1, 3))
    found = ops(model)
    assert found["Mul"] == found["Div"] == found["Sub"] == 0 and found["Add"] == 1


@pytest.mark.parametrize(
    "body",
    [
        "s = Mul(q, per_token) l = MatMul(s, k)",
        "s = Mul(q, scale) o = Softmax(q) u = Mul(s, o) l = MatMul(u, k)",
        "s = Mul(q, scale) m = MatMul(s, k) z = Relu(t) g = Gather<axis = 0>(z, i0) h = ReduceMax(g) l = Add(m, h)",
    ],
)
def test_what_is_not_per_channel_or_not_closed_stays(body: str) -> None:
    model = apply(parse(f"{HEAD} {QKV} {body} {END} }}", weights=W), PASS, batches=(1, 2))
    assert ops(model)["Mul"] >= 1


def test_split_of_channels_by_convolution() -> None:
    text = """agraph (float[N, 8, 3, 3] x) => (float[N, 12, 3, 3] y) {
        c = Conv(x, cw, cb) q, k, v, u = Split<axis = 1, num_outputs = 4>(c) s = Mul(q, scale)
        y = Concat<axis = 1>(s, k, v) }"""
    model = apply(parse(text, weights=W), PASS, batches=(1, 2))
    assert ops(model) == {"Conv": 1, "Split": 1, "Concat": 1}


def test_overlapping_selections_stay() -> None:
    weights = {**W, "from": np.array([0], np.int64), "to": np.array([6], np.int64), "mid": np.array([4], np.int64)}
    weights |= {"end": np.array([10], np.int64), "ax": np.array([1], np.int64)}
    text = """agraph (float[N, 8, 3, 3] x) => (float[N, 12, 3, 3] y) {
        c = Conv(x, cw, cb) q = Slice(c, from, to, ax) k = Slice(c, mid, end, ax) s = Mul(q, scale)
        y = Concat<axis = 1>(s, k) }"""
    model = apply(parse(text, weights=weights), PASS, batches=(1, 2))
    assert ops(model)["Mul"] == 1
    weights["mid"], weights["end"] = np.array([6], np.int64), np.array([12], np.int64)
    model = apply(parse(text, weights=weights), PASS, batches=(1, 2))
    assert ops(model)["Mul"] == 0


def test_bias_of_heads_behind_a_reshape() -> None:
    text = """agraph (float[N, 9, 16] x) => (float[N, 9, 12, 4] y) {
        p = MatMul(x, w) r = Reshape(p, heads) y = Add(r, per_head_channel) }"""
    model = apply(parse(text, weights=W), PASS, batches=(1, 2))
    assert [node.op for node in model.graph.nodes] == ["MatMul", "Add", "Reshape"]


def test_a_graph_output_on_the_way_blocks() -> None:
    head = "agraph (float[N, 9, 16] x) => (float[N, 9, 12, 4] y, float[N, 9, 12, 4] r) {"
    text = f"{head} p = MatMul(x, w) r = Reshape(p, heads) y = Mul(r, scale) }}"
    assert ops(apply(parse(text, weights=W), PASS, batches=(1, 2)))["Mul"] == 1


def test_shape_reader_on_the_way_blocks_until_shapes_are_simplified() -> None:
    text = """agraph (float[N, 9, 16] x) => (float[N, 9, 12, 4] y) {
        p = MatMul(x, w) s = Shape(p) n = Gather(s, i0) m = Mul(n, i1) z = Unsqueeze(m, ax)
        g = Concat<axis = 0>(z, rest) r = Reshape(p, g) y = Mul(r, scale) }"""
    weights = {**W, "ax": np.array([0], np.int64), "rest": np.array([9, 12, 4], np.int64)}
    model = apply(
        parse(text, weights=weights), simplify_shape_arithmetic.PASS, eliminate_noops.PASS, PASS, batches=(1, 2)
    )
    assert ops(model) == {"MatMul": 1, "Reshape": 1}
