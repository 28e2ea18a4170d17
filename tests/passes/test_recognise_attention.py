from __future__ import annotations

import math

import numpy as np
import pytest
from exactness import parse

from onnx_hyvit.graph import load_model
from onnx_hyvit.graph.recognise import (
    find_attentions,
    find_group_norms,
    find_instance_norms,
    find_l2_norms,
    find_norms,
    find_rms_norms,
)

RNG = np.random.default_rng(5)
W = {
    "w": RNG.standard_normal((16, 48)).astype(np.float32),
    "shape": np.array([2, 9, 3, 4, 4], np.int64),
    "i0": np.array(0, np.int64),
    "i1": np.array(1, np.int64),
    "i2": np.array(2, np.int64),
    "scale": np.array(0.5, np.float32),
    "root": np.array(math.sqrt(0.5), np.float32),
    "two": np.array(2.0, np.float32),
    "bias": RNG.standard_normal((1, 4, 9, 9)).astype(np.float32),
    "mix": RNG.standard_normal((4, 4, 1, 1)).astype(np.float32),
    "classes": RNG.standard_normal((4, 10)).astype(np.float32),
    "last": np.array([-1], np.int64),
    "eps": np.array(1e-6, np.float32),
    "wide": np.array([2, 4, 4, 9], np.int64),
}
QKV = """p = MatMul(x, w) r = Reshape(p, shape) t = Transpose<perm = [2, 0, 3, 1, 4]>(r)
    q = Gather<axis = 0>(t, i0) k0 = Gather<axis = 0>(t, i1) v = Gather<axis = 0>(t, i2)"""
KT = "k = Transpose<perm = [0, 1, 3, 2]>(k0)"
END = "a = Softmax<axis = -1>(l) y = MatMul(a, v)"
HEAD = "agraph (float[2, 9, 16] x) => (float[2, 4, 9, 4] y) {"

SPELLINGS = {
    "scale_on_logits": f"{QKV} {KT} m = MatMul(q, k) l = Mul(m, scale) {END}",
    "scale_divides": f"{QKV} {KT} m = MatMul(q, k) l = Div(m, two) {END}",
    "scale_on_query": f"{QKV} {KT} s = Mul(scale, q) l = MatMul(s, k) {END}",
    "scale_on_key": f"{QKV} {KT} s = Mul(k, scale) l = MatMul(q, s) {END}",
    "root_on_both": f"{QKV} {KT} s = Mul(q, root) u = Mul(k, root) l = MatMul(s, u) {END}",
    "key_scaled_before_transpose": f"{QKV} s = Mul(k0, scale) k = Transpose<perm = [0, 1, 3, 2]>(s) "
    f"l = MatMul(q, k) {END}",
    "relative_bias": f"{QKV} {KT} m = MatMul(q, k) n = Mul(m, scale) l = Add(bias, n) {END}",
    "talking_heads": f"{QKV} {KT} m = MatMul(q, k) n = Mul(m, scale) l = Conv(n, mix) "
    "b = Softmax<axis = -1>(l) a = Conv(b, mix) y = MatMul(a, v)",
    "einsum": f'{QKV} m = Einsum<equation = "bhnd,bhmd->bhnm">(q, k0) l = Mul(m, scale) a = Softmax<axis = -1>(l) '
    'y = Einsum<equation = "bhnm,bhmd->bhnd">(a, v)',
}


def attentions(body: str, head: str = HEAD, near=None):
    model = load_model(parse(f"{head} {body} }}", weights=W))
    return find_attentions(model.graph, model.opset, near)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_softmax_attention(spelling: str) -> None:
    (found,) = attentions(SPELLINGS[spelling])
    assert found.kind == "softmax"
    assert found.scale == pytest.approx(0.5, rel=1e-5)
    assert found.value == "v" and found.output == "y"
    assert found.heads == 4
    assert (found.bias == "bias") == (spelling == "relative_bias")
    assert found.talking_heads == (spelling == "talking_heads")


def test_cross_covariance_contracts_positions() -> None:
    body = f"""{QKV} qt = Transpose<perm = [0, 1, 3, 2]>(q) m = MatMul(qt, k0) a = Softmax<axis = -1>(m)
        vt = Transpose<perm = [0, 1, 3, 2]>(v) y = MatMul(a, vt)"""
    (found,) = attentions(body, "agraph (float[2, 9, 16] x) => (float[2, 4, 4, 9] y) {")
    assert found.kind == "cross_covariance"


def test_attention_operator() -> None:
    text = """agraph (float[2, 4, 9, 4] q, float[2, 4, 9, 4] k, float[2, 4, 9, 4] v) => (float[2, 4, 9, 4] y) {
        y = Attention<scale = 0.5>(q, k, v) }"""
    model = load_model(parse(text, 23))
    (found,) = find_attentions(model.graph, model.opset)
    assert (found.kind, found.heads, found.scale, found.query) == ("softmax", 4, 0.5, "q")


def test_separable_attention() -> None:
    body = """c = Softmax<axis = -1>(s) w1 = Mul(k, c) t = ReduceSum<keepdims = 1>(w1, last)
        r = Relu(v) y = Mul(r, t)"""
    head = "agraph (float[1, 1, 4, 9] s, float[1, 8, 4, 9] k, float[1, 8, 4, 9] v) => (float[1, 8, 4, 9] y) {"
    (found,) = attentions(body, head)
    assert (found.kind, found.query, found.key, found.value, found.output) == ("separable", "s", "k", "r", "y")


def test_relu_linear_attention_with_normaliser() -> None:
    body = """qr = Relu(q) kr = Relu(k) kt = Transpose<perm = [0, 1, 3, 2]>(kr) kv = MatMul(kt, v) o = MatMul(qr, kv)
        n, d = Split<axis = -1, num_outputs = 2>(o) e = Add(d, eps) y = Div(n, e)"""
    head = "agraph (float[1, 2, 9, 4] q, float[1, 2, 9, 4] k, float[1, 2, 9, 2] v) => (float[1, 2, 9, 1] y) {"
    (found,) = attentions(body, head)
    assert (found.kind, found.query, found.value, found.output) == ("relu_linear", "qr", "v", "y")


@pytest.mark.parametrize(
    "body",
    [
        "m = ReduceMean<keepdims = 0>(x, last) l = MatMul(m, c9) y = Softmax<axis = -1>(l)",
        "g = Softmax<axis = -1>(x) y = Mul(x, g)",
    ],
)
def test_classifiers_and_gates_are_none(body: str) -> None:
    head = f"agraph (float[2, 9, 16] x) => (float[2, {'10' if 'c9' in body else '9, 16'}] y) {{"
    model = load_model(parse(f"{head} {body} }}", weights={**W, "c9": np.ones((9, 10), np.float32)}))
    near: list = []
    assert find_attentions(model.graph, model.opset, near) == []
    assert near == []


def test_half_an_attention_is_a_near_miss() -> None:
    near: list = []
    body = f"{QKV} {KT} m = MatMul(q, k) l = Mul(m, scale) y = Softmax<axis = -1>(l)"
    assert attentions(body, "agraph (float[2, 9, 16] x) => (float[2, 4, 9, 9] y) {", near) == []
    assert [miss.node for miss in near] and "no product with values" in near[0].reason


NORM_HEAD = "agraph (float[2, 8, 4, 4] x) => (float[2, 8, 4, 4] y) {"
NORM_W = {
    "groups": np.array([0, 2, -1], np.int64),
    "back": np.array([2, 8, 4, 4], np.int64),
    "ones": np.ones(2, np.float32),
    "zeros": np.zeros(2, np.float32),
    "g": RNG.uniform(0.5, 2, (8, 1, 1)).astype(np.float32),
    "b": RNG.standard_normal((8, 1, 1)).astype(np.float32),
    "g8": np.ones(8, np.float32),
    "b8": np.zeros(8, np.float32),
    "last": np.array([-1], np.int64),
    "eps": np.array(1e-6, np.float32),
    "square": np.array(2.0, np.float32),
    "row": np.ones(4, np.float32),
}


def norm_graph(body: str):
    return load_model(parse(f"{NORM_HEAD} {body} }}", weights=NORM_W)).graph


def test_group_norm_spelled_by_instance_normalization() -> None:
    graph = norm_graph(
        "r = Reshape(x, groups) i = InstanceNormalization(r, ones, zeros) s = Reshape(i, back) m = Mul(s, g) "
        "y = Add(m, b)"
    )
    (found,) = find_group_norms(graph)
    assert (found.groups, found.scale, found.bias, found.input, found.output) == (2, True, True, "x", "y")
    assert len(found.nodes) == 5
    assert find_instance_norms(graph) == []


def test_plain_instance_norm_is_no_group_norm() -> None:
    graph = norm_graph("y = InstanceNormalization(x, g8, b8)")
    assert find_group_norms(graph) == []
    assert len(find_instance_norms(graph)) == 1


def test_group_norm_read_inside_is_a_near_miss() -> None:
    near: list = []
    graph = norm_graph(
        "r = Reshape(x, groups) i = InstanceNormalization(r, ones, zeros) t = Relu(i) u = Add(t, i) "
        "y = Reshape(u, back)"
    )
    assert find_group_norms(graph, near) == []
    assert "no single Reshape follows" in near[0].reason


def test_rms_and_l2_norms() -> None:
    rms = """q = Pow(x, square) m = ReduceMean<keepdims = 1>(q, last) e = Add(m, eps) s = Sqrt(e) n = Div(x, s)
        y = Mul(n, row)"""
    (found,) = find_rms_norms(norm_graph(rms))
    assert (found.axes, found.scale, found.input) == ((-1,), True, "x")
    l2 = "n = ReduceL2<keepdims = 1>(x, last) c = Clip(n, eps) y = Div(x, c)"
    (found,) = find_l2_norms(norm_graph(l2))
    assert found.axes == (-1,)
    assert [norm.kind for norm in find_norms(norm_graph(l2))] == ["l2_norm"]
