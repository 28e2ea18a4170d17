"""Each layout pass on tiny graphs: what must match, what must not, with equal outputs either way."""

from __future__ import annotations

import numpy as np
import pytest
from exactness import apply, count_of, ops, parse, random_inputs, run

from onnx_hyvit.graph import load_model, model_to_proto
from onnx_hyvit.passes import LOWERING, run_passes, simplify_shape_arithmetic
from onnx_hyvit.passes.layout import (
    channels_last_region,
    compose_movement,
    gelu_to_sigmoid,
    join_rows,
    merge_equal_nodes,
    pad_stem,
    split_linear,
    unpack_heads,
)

RNG = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


MOVES = {"a": ints(-1, 2, 4, 2), "b": ints(-1, 8, 16, 4), "c": ints(-1, 16, 8)}
UNFOLD = """r = Reshape(x, a) t = Transpose<perm=[0, 2, 1, 3]>(r) u = Reshape(t, b)
            v = Transpose<perm=[0, 3, 2, 1]>(u) y = Reshape(v, c)"""


def test_unfold_is_two_fast_transposes() -> None:
    text = f"agraph (float[1, 8, 8, 8] x) => (float[4, 16, 8] y) {{ {UNFOLD} }}"
    model = apply(parse(text, weights=MOVES), compose_movement.PASS)
    assert [node.attrs["perm"] for node in model.graph.nodes if node.op == "Transpose"] == [
        [0, 2, 3, 1],
        [1, 3, 0, 2, 4],
    ]


@pytest.mark.parametrize(
    "tap",
    ["z = Relu(u)", "z = Relu(t)"],
)
def test_a_tapped_tensor_keeps_its_value(tap: str) -> None:
    text = f"agraph (float[1, 8, 8, 8] x) => (float[4, 16, 8] y, float[P, Q, R, S] z) {{ {UNFOLD} {tap} }}"
    apply(parse(text, weights=MOVES), compose_movement.PASS)


def test_cheap_chain_stays() -> None:
    text = """agraph (float[1, 8, 8, 8] x) => (float[1, 64, 8] y) {
        t = Transpose<perm=[0, 2, 3, 1]>(x) y = Reshape(t, s) }"""
    assert count_of(parse(text, weights={"s": ints(1, 64, 8)}), compose_movement.PASS) == 0


REGION = {
    "w1": normal(17, 8, 1, 1), "b1": normal(17), "w2": normal(8, 8, 1, 1), "b2": normal(8), "w3": normal(8, 1, 3, 3),
    "one": np.ones(1, np.float32), "zero": np.zeros(1, np.float32), "gain": normal(8, 1, 1), "pixels": normal(4, 16),
    "into": ints(-1, 8, 4, 16), "flat": ints(0, 1, -1), "shape": ints(-1, 8, 4, 16), "parts": ints(1, 8, 8),
    "last": ints(-1), "wide": ints(1, 8, 4, 16), "out": ints(-1, 8, 64),
}  # fmt: skip
MIXER = """
    r = Reshape(x, into)
    f = Reshape(r, flat) n = InstanceNormalization(f, one, zero) m = Reshape(n, shape)
    qkv = Conv(m, w1, b1) q, k, v = Split<axis=1>(qkv, parts)
    s = Softmax<axis=-1>(q) ks = Mul(k, s) sum = ReduceSum<keepdims=1>(ks, last) ctx = Expand(sum, wide)
    act = Relu(v) mix = Mul(act, ctx) proj = Conv(mix, w2, b2) res = Add(r, proj)
"""
TAIL = "g = Mul(res, gain) y = Reshape(g, out)"


PREPARE = (simplify_shape_arithmetic.PASS, split_linear.PASS)


def mixer(tail: str = TAIL, body: str = MIXER) -> str:
    return f"agraph (float[N, 8, 8, 8] x) => (float[N, 8, 64] y) {{ {body} {tail} }}"


@pytest.mark.parametrize("swap", [False, True])
def test_separable_attention_has_no_convolution_left(swap: bool) -> None:
    body = MIXER.replace("Mul(k, s)", "Mul(s, k)").replace("Mul(act, ctx)", "Mul(ctx, act)") if swap else MIXER
    model = apply(parse(mixer(body=body), weights=REGION), *PREPARE, channels_last_region.PASS, batches=(1, 3))
    found = ops(model)
    assert found["Conv"] == found["Expand"] == found["ReduceSum"] == found["Split"] == 0
    assert found["MatMul"] == 5  # query, key, value, projection, and the sum over pixels


def test_every_element_wise_function_works_with_the_channels_last() -> None:
    body = MIXER.replace("act = Relu(v)", "e = Elu(v) h = Neg(e) act = Exp(h)")
    assert ops(apply(parse(mixer(body=body), weights=REGION), *PREPARE, channels_last_region.PASS))["Conv"] == 0


@pytest.mark.parametrize(
    ("tail", "why"),
    [
        ("d = Conv<group=8, pads=[1, 1, 1, 1]>(res, w3) y = Reshape(d, out)", "depthwise convolution"),
        ("g = Mul(res, pixels) y = Reshape(g, out)", "constant over pixels"),
        ("g = GlobalAveragePool(res) e = Add(res, g) y = Reshape(e, out)", "pooling"),
    ],
)
def test_open_region_stays(tail: str, why: str) -> None:
    assert ops(apply(parse(mixer(tail), weights=REGION), channels_last_region.PASS))["Conv"] >= 2, why


def test_tensor_that_enters_and_leaves() -> None:
    body = MIXER + "o = Reshape(r, out)"
    tail = "g = Reshape(res, out) y = Add(g, o)"
    model = apply(parse(mixer(tail, body), weights=REGION), *PREPARE, channels_last_region.PASS, batches=(1, 2))
    assert ops(model)["Conv"] == 0


def test_unknown_shape_of_a_norm_leaves_two_regions_borders() -> None:
    """Without shape simplification the norm is a border like any other movement, which is still exact."""
    apply(parse(mixer(), weights=REGION), split_linear.PASS, channels_last_region.PASS, batches=(1, 2))


def test_region_that_is_a_graph_output_stays() -> None:
    text = f"agraph (float[N, 8, 8, 8] x) => (float[N, 8, 64] y, float[N, 8, 4, 16] res) {{ {MIXER} {TAIL} }}"
    assert count_of(parse(text, weights=REGION), channels_last_region.PASS) == 0


LINEAR = {
    "w": normal(12, 8, 1, 1), "b": normal(12), "m": normal(8, 12), "mt": normal(12, 8),
    "parts": ints(3, 4, 5), "rows": normal(5, 1),
}  # fmt: skip
OUTS = "(float[N, 3, 4, 4] p, float[N, 4, 4, 4] q, float[N, 5, 4, 4] r)"


@pytest.mark.parametrize("conv", ["Conv(x, w, b)", "Conv(x, w)"])
def test_conv_is_split(conv: str) -> None:
    text = f"agraph (float[N, 8, 4, 4] x) => {OUTS} {{ c = {conv} p, q, r = Split<axis=1>(c, parts) }}"
    assert ops(apply(parse(text, weights=LINEAR), split_linear.PASS, batches=(1, 2))) == {"Conv": 3}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("c = Gemm(x, m, b) p, q, r = Split<axis=-1>(c, parts)", {"Gemm": 3}),
        ("c = Gemm<transB=1>(x, mt, b) p, q, r = Split<axis=1>(c, parts)", {"Gemm": 3}),
        ("d = MatMul(x, m) c = Add(b, d) p, q, r = Split<axis=1>(c, parts)", {"MatMul": 3, "Add": 3}),
        ("c = MatMul(x, m) p, q, r = Split<axis=-1>(c, parts)", {"MatMul": 3}),
    ],
)
def test_linear_layers_are_split(body: str, expected: dict[str, int]) -> None:
    text = f"agraph (float[N, 8] x) => (float[N, 3] p, float[N, 4] q, float[N, 5] r) {{ {body} }}"
    assert ops(apply(parse(text, weights=LINEAR), split_linear.PASS, batches=(1, 2))) == expected


def test_split_of_pixels_stays() -> None:
    text = """agraph (float[N, 8, 12, 4] x) => (float[N, 12, 3, 4] p, float[N, 12, 4, 4] q, float[N, 12, 5, 4] r) {
        c = Conv(x, w, b) p, q, r = Split<axis=2>(c, parts) }"""
    assert count_of(parse(text, weights=LINEAR), split_linear.PASS) == 0


def test_linear_read_twice_stays() -> None:
    outputs = OUTS[:-1] + ", float[N, 12, 4, 4] z)"
    text = (
        f"agraph (float[N, 8, 4, 4] x) => {outputs} {{ c = Conv(x, w) p, q, r = Split<axis=1>(c, parts) z = Relu(c) }}"
    )
    assert count_of(parse(text, weights=LINEAR), split_linear.PASS) == 0


STEM = {"w": normal(8, 3, 3, 3), "w1": normal(8, 3, 1, 1), "w4": normal(8, 4, 3, 3), "g": normal(3, 1, 3, 3)}


@pytest.mark.parametrize(
    ("channels", "conv", "pads"),
    [(3, "Conv<strides=[2, 2]>(x, w)", 1), (3, "Conv(x, w1)", 0), (4, "Conv(x, w4)", 0), (3, "Conv<group=3>(x, g)", 0)],
)
def test_stem_gets_a_fourth_channel(channels: int, conv: str, pads: int) -> None:
    text = f"agraph (float[N, {channels}, 9, 9] x) => (float[N, C, H, W] y) {{ y = {conv} }}"
    assert ops(apply(parse(text, weights=STEM), pad_stem.PASS, batches=(1, 2)))["Pad"] == pads


def test_two_stems_share_the_padding() -> None:
    text = """agraph (float[1, 3, 9, 9] x) => (float[1, 8, 7, 7] y) {
        a = Conv(x, w) r = Relu(a) b = Conv(x, w) y = Add(r, b) }"""
    assert ops(apply(parse(text, weights=STEM), pad_stem.PASS))["Pad"] == 1


def test_gelu_is_close_to_its_sigmoid_form() -> None:
    proto = parse("agraph (float[N, 4096] x) => (float[N, 4096] y) { y = Gelu(x) }")
    model = load_model(proto)
    assert run_passes(model, [gelu_to_sigmoid()])[0].count == 1
    feeds = {name: 3 * value for name, value in random_inputs(proto).items()}
    (exact,), (close,) = run(proto, feeds), run(model_to_proto(model, check=True), feeds)
    error = np.abs(exact - close).max()
    assert 0.015 < error < 0.0204


HEADS = {
    "w": normal(8, 48), "b": normal(48), "five": ints(-1, 6, 3, 4, 4), "ones": ints(1, 1, 1), "zero": ints(0),
    "i0": np.array(0, np.int64), "i1": np.array(1, np.int64), "i2": np.array(2, np.int64),
}  # fmt: skip
QKV = "m = MatMul(x, w) p = Add(m, b) r = Reshape(p, five) "
UNBIND = """t = Transpose<perm=[2, 0, 3, 1, 4]>(r) a, c, d = Split<axis=0>(t, ones)
            q = Squeeze(a, zero) k = Squeeze(c, zero) v = Squeeze(d, zero)"""
GATHERS = """t = Transpose<perm=[2, 0, 3, 1, 4]>(r)
             q = Gather<axis=0>(t, i0) v = Gather<axis=0>(t, i2) k = Gather<axis=0>(t, i1)"""
ATTEND = "kt = Transpose<perm=[0, 1, 3, 2]>(k) l = MatMul(q, kt) s = Softmax<axis=-1>(l) y = MatMul(s, v)"


def heads(body: str, tail: str = ATTEND) -> str:
    return f"agraph (float[N, 6, 8] x) => (float[N, 4, 6, 4] y) {{ {body} {tail} }}"


@pytest.mark.parametrize("taken", [UNBIND, GATHERS], ids=["unbind", "gathers"])
def test_heads_are_moved_after_the_split(taken: str) -> None:
    passes = (simplify_shape_arithmetic.PASS, unpack_heads.PASS, split_linear.PASS)
    found = ops(apply(parse(heads(QKV + taken), weights=HEADS), *passes, batches=(1, 2)))
    assert found["Split"] == found["Gather"] == found["Squeeze"] == 0
    assert found["MatMul"] == 5 and found["Transpose"] == 4


def test_channel_attention_needs_no_further_transpose() -> None:
    taken = UNBIND.replace("[2, 0, 3, 1, 4]", "[2, 0, 3, 4, 1]")
    tail = "l = MatMul(q, k) y = MatMul(l, v)"
    text = f"agraph (float[N, 4, 8] x) => (float[N, 4, 4, 4] y) {{ {QKV} {taken} {tail} }}"
    weights = {**HEADS, "five": ints(-1, 4, 3, 4, 4)}
    passes = (simplify_shape_arithmetic.PASS, unpack_heads.PASS)
    model = apply(parse(text, weights=weights), *passes, batches=(1, 2))
    assert [node.attrs["perm"] for node in model.graph.nodes if node.op == "Transpose"] == [[0, 2, 3, 1]] * 3


@pytest.mark.parametrize(
    ("body", "tail"),
    [
        ("p = Softmax(x) e = Concat<axis=-1>(p, p, p, p, p, p) r = Reshape(e, five) " + UNBIND, ATTEND),
        (QKV + GATHERS.replace("i2", "i1"), ATTEND),
        (QKV + UNBIND, ATTEND.replace("y =", "z =") + " u = ReduceMean<keepdims=0>(t, zero) y = Add(z, u)"),
    ],
    ids=["no linear operator", "a part taken twice", "packed tensor read elsewhere"],
)
def test_packed_heads_that_stay(body: str, tail: str) -> None:
    assert count_of(parse(heads(body, tail), weights=HEADS), unpack_heads.PASS) == 0


STREAM = {
    "w": normal(8, 8), "v": normal(8, 8), "b": normal(8), "gain": normal(8), "rows": ints(-1, 8),
    "again": ints(-1, 8), "other": ints(-1, 4), "back": ints(-1, 5, 8),
}  # fmt: skip
BLOCK = """r = Reshape(x, rows) g = Gemm(r, w, b) s = Reshape(g, back) y1 = Add(x, s)
           n = LayerNormalization(y1, gain, b) r2 = Reshape(n, rows) g2 = Gemm(r2, v, b) s2 = Reshape(g2, back) """


def stream(tail: str) -> str:
    return f"agraph (float[N, 5, 8] x) => (float[N, 5, 8] y) {{ {BLOCK} {tail} }}"


@pytest.mark.parametrize("order", ["Add(y1, s2)", "Add(s2, y1)"])
def test_residual_stream_stays_in_rows(order: str) -> None:
    passes = (simplify_shape_arithmetic.PASS, *LOWERING)
    model = apply(
        parse(stream(f"a = {order} y = LayerNormalization(a, gain, b)"), weights=STREAM), *passes, batches=(1, 2)
    )
    assert ops(model)["Reshape"] <= 2


def test_sum_that_nobody_reads_in_rows_stays() -> None:
    assert (
        count_of(
            parse(stream("y = Softmax(s2)").replace("y1 = Add(x, s)", "y1 = Tanh(s)"), weights=STREAM), join_rows.PASS
        )
        == 0
    )


def test_equal_movements_are_merged() -> None:
    text = """agraph (float[N, 8] x) => (float[M, 8] y, float[P, 4] z) {
        a = Reshape(x, rows) c = Reshape(x, again) d = Reshape(x, other) e = Relu(a) f = Tanh(c)
        y = Add(e, f) z = Relu(d) }"""
    assert ops(apply(parse(text, weights=STREAM), merge_equal_nodes.PASS, batches=(1, 2)))["Reshape"] == 2


def test_equal_outputs_of_the_graph_stay() -> None:
    text = """agraph (float[4, 8] x) => (float[8, 4] y, float[8, 4] z) {
        y = Transpose<perm=[1, 0]>(x) z = Transpose<perm=[1, 0]>(x) }"""
    assert count_of(parse(text), merge_equal_nodes.PASS) == 0
