from __future__ import annotations

import numpy as np
import pytest
from exactness import apply, ops, parse

from onnx_hyvit.graph import load_model
from onnx_hyvit.graph.recognise import find_layer_norms, find_layer_norms_2d
from onnx_hyvit.passes import eliminate_noops, fold_constants, fuse_layer_norm, run_passes

PASSES = (fold_constants.PASS, eliminate_noops.PASS, fuse_layer_norm.PASS)
RNG = np.random.default_rng(0)
WEIGHTS = {
    "g": RNG.uniform(0.5, 1.5, 8).astype(np.float32),
    "b": RNG.standard_normal(8).astype(np.float32),
    "eps": np.array(1e-3, np.float32),
    "one": np.array(1, np.float32),
    "two": np.array([2], np.float32),
    "half": np.array(0.5, np.float32),
    "minus_half": np.array(-0.5, np.float32),
    "zero": np.array(0, np.float32),
    "last": np.array([-1], np.int64),
    "third": np.array([2], np.int64),
}
HEAD = "agraph (float[2, 5, 8] x) => (float[2, 5, 8] y) {"
CENTRE = "m = ReduceMean<keepdims=1>(x, last) d = Sub(x, m)"
SPREAD = "q = Pow(d, two) v = ReduceMean<keepdims=1>(q, last) w = Add(v, eps)"

SPELLINGS = {
    "pow_div": f"{CENTRE} {SPREAD} s = Sqrt(w) n = Div(d, s) t = Mul(n, g) y = Add(t, b)",
    "operands_swapped": f"{CENTRE} q = Mul(d, d) v = ReduceMean<keepdims=1>(q, last) w = Add(eps, v) s = Sqrt(w) "
    "n = Div(d, s) t = Mul(g, n) y = Add(b, t)",
    "reciprocal": f"{CENTRE} {SPREAD} s = Sqrt(w) r = Reciprocal(s) n = Mul(r, d) t = Mul(n, g) y = Add(t, b)",
    "one_over": f"{CENTRE} {SPREAD} s = Sqrt(w) r = Div(one, s) n = Mul(d, r) t = Mul(n, g) y = Add(t, b)",
    "pow_minus_half": f"{CENTRE} {SPREAD} r = Pow(w, minus_half) n = Mul(d, r) t = Mul(n, g) y = Add(t, b)",
    "pow_half": f"{CENTRE} {SPREAD} s = Pow(w, half) n = Div(d, s) t = Mul(n, g) y = Add(t, b)",
    "second_mean_and_sub": f"{CENTRE} m2 = ReduceMean<keepdims=1>(x, third) d2 = Sub(x, m2) q = Mul(d2, d2) "
    "v = ReduceMean<keepdims=1>(q, third) w = Add(v, eps) s = Sqrt(w) n = Div(d, s) t = Mul(n, g) y = Add(t, b)",
    "no_bias": f"{CENTRE} {SPREAD} s = Sqrt(w) n = Div(d, s) y = Mul(n, g)",
    "no_scale": f"{CENTRE} {SPREAD} s = Sqrt(w) n = Div(d, s) y = Add(n, b)",
    "no_affine": f"{CENTRE} {SPREAD} s = Sqrt(w) y = Div(d, s)",
    "constant_nodes": "ax = Constant<value = int64[1] {-1}>() e = Constant<value = float {0.001}>() "
    "p = Constant<value_float = 2.0>() m = ReduceMean<keepdims=1>(x, ax) d = Sub(x, m) q = Pow(d, p) "
    "v = ReduceMean<keepdims=1>(q, ax) w = Add(v, e) s = Sqrt(w) n = Div(d, s) t = Mul(n, g) y = Add(t, b)",
    "identities": f"{CENTRE} i = Identity(d) q = Mul(d, i) v = ReduceMean<keepdims=1>(q, last) w = Add(v, eps) "
    "s = Sqrt(w) n = Div(d, s) gi = Identity(g) t = Mul(n, gi) y = Add(t, b)",
    "scale_in_inverse": f"{CENTRE} {SPREAD} s = Sqrt(w) r = Reciprocal(s) k = Mul(r, g) t = Mul(d, k) y = Add(t, b)",
    "keras_batchnorm_like": f"{CENTRE} {SPREAD} s = Sqrt(w) r = Reciprocal(s) k = Mul(r, g) t = Mul(x, k) "
    "o = Mul(m, k) c = Sub(b, o) y = Add(t, c)",
    "keras_negated_mean": f"{CENTRE} {SPREAD} s = Sqrt(w) r = Reciprocal(s) k = Mul(r, g) t = Mul(x, k) "
    "i = Neg(m) o = Mul(i, k) c = Add(o, b) y = Add(t, c)",
    "flax_fast_variance": "m = ReduceMean<keepdims=1>(x, last) d = Sub(x, m) xx = Mul(x, x) "
    "q = ReduceMean<keepdims=1>(xx, last) mm = Mul(m, m) z = Sub(q, mm) v = Max(zero, z) w = Add(v, eps) s = Sqrt(w) "
    "r = Reciprocal(s) k = Mul(r, g) t = Mul(d, k) y = Add(t, b)",
}


def graph(body: str, opset: int = 20, head: str = HEAD):
    return parse(f"{head} {body} }}", opset, WEIGHTS)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_becomes_one_node(spelling: str) -> None:
    model = apply(graph(SPELLINGS[spelling]), *PASSES)
    assert ops(model) == {"LayerNormalization": 1}


def test_axes_as_attribute_of_older_opsets() -> None:
    body = SPELLINGS["pow_div"].replace("keepdims=1>(x, last)", "keepdims=1, axes=[-1]>(x)")
    body = body.replace("keepdims=1>(q, last)", "keepdims=1, axes=[2]>(q)")
    for opset, expected in ((13, 1), (17, 1)):
        model = apply(graph(body, opset), *PASSES, opset=17)
        assert ops(model)["LayerNormalization"] == expected


def test_opset_16_is_left_alone_with_a_reason() -> None:
    body = SPELLINGS["pow_div"].replace("keepdims=1>(x, last)", "keepdims=1, axes=[-1]>(x)")
    proto = graph(body.replace("keepdims=1>(q, last)", "keepdims=1, axes=[-1]>(q)"), 16)
    model = load_model(proto, 16)
    result = run_passes(model, [fuse_layer_norm.PASS])[0]
    assert result.count == 0
    assert any("opset 17" in miss.reason for miss in result.near_misses)


def test_tapped_mean_is_kept_for_its_reader() -> None:
    head = "agraph (float[2, 5, 8] x) => (float[2, 5, 8] y, float[2, 5, 1] m) {"
    model = apply(graph(SPELLINGS["pow_div"], head=head), *PASSES)
    assert ops(model) == {"LayerNormalization": 1, "ReduceMean": 1}


@pytest.mark.parametrize("inner", ["d", "v", "s"])
def test_tapped_inner_tensor_is_refused(inner: str) -> None:
    shape = "8" if inner == "d" else "1"
    head = f"agraph (float[2, 5, 8] x) => (float[2, 5, 8] y, float[2, 5, {shape}] {inner}) {{"
    model = apply(graph(SPELLINGS["pow_div"], head=head), *PASSES)
    assert ops(model)["LayerNormalization"] == 0


def test_tapped_normalized_value_leaves_scale_and_bias_outside() -> None:
    head = "agraph (float[2, 5, 8] x) => (float[2, 5, 8] y, float[2, 5, 8] n) {"
    model = apply(graph(SPELLINGS["pow_div"], head=head), *PASSES)
    assert ops(model) == {"LayerNormalization": 1, "Mul": 1, "Add": 1}


@pytest.mark.parametrize(
    "change",
    [
        ("v = ReduceMean<keepdims=1>(q, last)", "v = ReduceMean<keepdims=1>(q, second)"),
        ("q = Pow(d, two)", "q = Pow(d, three)"),
        ("v = ReduceMean<keepdims=1>(q, last)", "v = ReduceSum<keepdims=1>(q, last)"),
        ("n = Div(d, s)", "n = Div(x, s)"),
    ],
)
def test_look_alikes_do_not_match(change: tuple[str, str]) -> None:
    body = SPELLINGS["pow_div"].replace(*change)
    weights = {**WEIGHTS, "second": np.array([1], np.int64), "three": np.array([4], np.float32)}
    model = apply(parse(f"{HEAD} {body} }}", weights=weights), *PASSES)
    assert ops(model)["LayerNormalization"] == 0


def test_scale_along_another_axis_stays_outside() -> None:
    weights = {**WEIGHTS, "g": RNG.uniform(0.5, 1.5, (5, 1)).astype(np.float32)}
    body = SPELLINGS["no_bias"]
    model = apply(parse(f"{HEAD} {body} }}", weights=weights), *PASSES)
    assert ops(model) == {"LayerNormalization": 1, "Mul": 1}


def test_two_trailing_axes() -> None:
    weights = {**WEIGHTS, "last": np.array([1, 2], np.int64), "g": RNG.uniform(0.5, 1.5, (5, 8)).astype(np.float32)}
    body = SPELLINGS["pow_div"]
    model = apply(parse(f"{HEAD} {body} }}", weights=weights), *PASSES)
    assert ops(model) == {"LayerNormalization": 1}
    assert find_layer_norms(model.graph)[0].axes == (-2, -1)


def test_channels_first_becomes_transposed() -> None:
    shaped = {"g": WEIGHTS["g"].reshape(8, 1, 1), "b": WEIGHTS["b"].reshape(1, 8, 1, 1)}
    weights = {**WEIGHTS, "last": np.array([1], np.int64), **shaped}
    body = SPELLINGS["pow_div"]
    head = "agraph (float[N, 8, 4, 3] x) => (float[N, 8, 4, 3] y) {"
    model = apply(parse(f"{head} {body} }}", weights=weights), *PASSES, batches=(1, 3))
    assert ops(model) == {"LayerNormalization": 1, "Transpose": 2}
    assert len(find_layer_norms_2d(model.graph)) == 1


def test_recogniser_agrees_before_and_after() -> None:
    model = load_model(graph(SPELLINGS["keras_batchnorm_like"]))
    before = find_layer_norms(model.graph)
    run_passes(model, PASSES)
    after = find_layer_norms(model.graph)
    assert len(before) == len(after) == 1
    assert before[0].axes == after[0].axes == (-1,)
    assert before[0].eps == pytest.approx(after[0].eps or 0.0)
    assert (before[0].input, before[0].output) == (after[0].input, after[0].output) == ("x", "y")
