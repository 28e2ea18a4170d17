from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx
import pytest
from exactness import apply, ops, parse

from onnx_hyvit.graph import load_model
from onnx_hyvit.graph.symbolic import Monomial, infer
from onnx_hyvit.graph.symbolic.dims import add, divide, equal, maximum, modulo, multiply, parse_dim, subtract
from onnx_hyvit.passes import run_passes, simplify_shape_arithmetic

PASS = simplify_shape_arithmetic.PASS
W = {
    "zero": np.array(0, np.int64),
    "one_index": np.array(1, np.int64),
    "first": np.array([0], np.int64),
    "second": np.array([1], np.int64),
    "minus": np.array([-1], np.int64),
    "c4": np.array([4], np.int64),
    "c8": np.array([8], np.int64),
    "c64": np.array([64], np.int64),
    "four": np.array(4, np.int64),
    "two": np.array([2], np.int64),
    "far": np.array([2], np.int64),
    "none": np.array([], np.int64),
    "axis": np.array([0], np.int64),
}
N = Monomial(Fraction(1), ("N",))
M = Monomial(Fraction(1), ("M",))


def target_of(model) -> list[int]:
    reshape = next(node for node in model.graph.nodes if node.op in ("Reshape", "Expand"))
    return reshape.inputs[1].values.tolist()


def test_batch_copied_from_the_same_axis() -> None:
    text = """agraph (float[N, 8, 4, 2] x) => (float[N, 8, 8] y) {
        s = Shape(x) n = Gather(s, zero) u = Unsqueeze(n, axis) t = Concat<axis = 0>(u, c8, minus)
        y = Reshape(x, t) }"""
    model = apply(parse(text, weights=W), PASS, batches=(1, 3))
    assert ops(model) == {"Reshape": 1}
    assert target_of(model) == [0, 8, 8]


def test_product_with_the_batch_becomes_minus_one() -> None:
    text = """agraph (float[N, 8, 4, 2] x) => (float[M, 4, 4] y) {
        s = Shape(x) n = Gather(s, zero) m = Mul(n, four) u = Unsqueeze(m, axis)
        t = Concat<axis = 0>(u, c4, c4) y = Reshape(x, t) }"""
    model = apply(parse(text, weights=W), PASS, batches=(1, 3))
    assert ops(model) == {"Reshape": 1}
    assert target_of(model) == [-1, 4, 4]


def test_division_restores_the_batch_later() -> None:
    text = """agraph (float[N, 8, 4, 2] x) => (float[N, 64] y) {
        s = Shape(x) n = Gather(s, zero) m = Mul(n, four) u = Unsqueeze(m, axis)
        t = Concat<axis = 0>(u, c4, minus) r = Reshape(x, t) e = Relu(r)
        s2 = Shape(e) n2 = Gather(s2, zero) d = Div(n2, four) f = Cast<to = 1>(d) g = Floor(f) h = Cast<to = 7>(g)
        u2 = Unsqueeze(h, axis) t2 = Concat<axis = 0>(u2, c64) y = Reshape(e, t2) }"""
    model = apply(parse(text, weights=W), PASS, batches=(1, 2))
    assert ops(model) == {"Reshape": 2, "Relu": 1}


def test_scale_from_a_static_head_dimension_folds() -> None:
    text = """agraph (float[N, 5, 16] x) => (float[N, 5, 16] y) {
        s = Shape(x) d = Slice(s, minus, far_end) f = Cast<to = 1>(d) r = Sqrt(f) y = Div(x, r) }"""
    weights = {**W, "far_end": np.array([1 << 40], np.int64)}
    model = apply(parse(text, weights=weights), PASS, batches=(1, 2))
    assert ops(model) == {"Div": 1}
    assert model.graph.nodes[0].inputs[1].values.tolist() == [4.0]


def test_expand_to_the_same_free_axis() -> None:
    text = """agraph (float[N, 1, 4] x) => (float[N, 8, 4] y) {
        s = Shape(x) n = Slice(s, first, second) t = Concat<axis = 0>(n, c8, c4) e = Equal(t, minus)
        o = ConstantOfShape<value = int64[1] {1}>(three) w = Where(e, o, t) y = Expand(x, w) }"""
    model = apply(parse(text, weights={**W, "three": np.array([3], np.int64)}), PASS, batches=(1, 3))
    assert ops(model) == {"Expand": 1}
    assert target_of(model) == [1, 8, 4]


def test_expand_of_one_to_the_batch_stays_computed() -> None:
    text = """agraph (float[N, 3, 4] x, float[1, 8, 4] c) => (float[N, 8, 4] y) {
        s = Shape(x) n = Slice(s, first, second) t = Concat<axis = 0>(n, c8, c4) y = Expand(c, t) }"""
    model = apply(parse(text, weights=W), PASS, batches=(1, 2))
    assert ops(model)["Expand"] == 1 and ops(model)["Shape"] == 1


def test_two_free_axes_that_move_stay_computed_and_are_reported() -> None:
    text = """agraph (float[N, M] x) => (float[M, N] y) {
        s = Shape(x) n = Slice(s, first, second) m = Slice(s, second, far) t = Concat<axis = 0>(m, n)
        y = Reshape(x, t) }"""
    model = load_model(parse(text, weights=W))
    result = run_passes(model, [PASS])[0]
    assert ops(model)["Shape"] == 1
    assert any("several free dimensions" in miss.reason for miss in result.near_misses)


def test_a_division_that_is_not_exact_blocks() -> None:
    text = """agraph (float[N, 12] x) => (float[A, B] y) {
        s = Shape(x) n = Slice(s, first, second) h = Div(n, two) k = Mul(h, two) b = Concat<axis = 0>(k, minus)
        y = Reshape(x, b) }"""
    model = load_model(parse(text, weights=W))
    known = infer(model.graph.toposort(), model.opset)
    assert known.values["h"].tolist() == [None]
    assert known.values["b"].tolist() == [None, -1]


@pytest.mark.parametrize("opset", [13, 18])
def test_resize_sizes_keep_only_the_changed_axes(opset: int) -> None:
    text = """agraph (float[N, 3, 4, 4] x) => (float[N, 3, 8, 8] y) {
        s = Shape(x) n = Slice(s, first, two) t = Concat<axis = 0>(n, c8, c8)
        y = Resize<mode = "nearest">(x, , , t) }"""
    model = apply(parse(text, opset, W), PASS, opset=opset, batches=(1, 2))
    assert ops(model)["Shape"] == (0 if opset >= 18 else 1)


def test_free_width_is_carried_through_same_padded_convolution() -> None:
    text = """agraph (float[N, 3, 8, W] x) => (float[N, 4, M] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w) s = Shape(c) n = Slice(s, first, second)
        t = Concat<axis = 0>(n, c4, minus) y = Reshape(c, t) }"""
    weights = {**W, "w": np.ones((4, 3, 3, 3), np.float32)}
    model = apply(parse(text, weights=weights), PASS, batches=(1, 2))
    assert target_of(model)[:2] == [0, 4] and ops(model)["Shape"] == 0


def test_bodies_are_left_alone() -> None:
    text = """agraph (float[N, 8] x, bool c) => (float[A, B] y) {
        s = Shape(x)
        y = If<then_branch = t () => (float[A, B] p) { p = Reshape(x, s) },
               else_branch = e () => (float[A, B] q) { q = Relu(x) }>(c) }"""
    model = load_model(parse(text))
    run_passes(model, [PASS])
    assert ops(model) == {"Shape": 1, "If": 1}


def test_algebra_of_dimensions() -> None:
    four_n = multiply(N, 4)
    assert str(four_n) == "4*N" and parse_dim("4*N") == four_n
    assert divide(four_n, 4, whole=True) == N
    assert divide(N, 4, whole=True) is None
    assert divide(four_n, N, whole=True) == 4
    assert add(N, N) == multiply(N, 2) and add(N, 1) is None and subtract(N, N) == 0
    assert modulo(four_n, 2) == 0 and modulo(N, 2) is None
    assert equal(N, -1) is False and equal(N, 1) is None and equal(N, M) is None and equal(N, N) is True
    assert maximum(N, 1) == N and maximum(N, 2) is None and maximum(N, M) is None
    assert multiply(N, M) == multiply(M, N)
    assert (
        parse_dim("unk__3") is None
        and parse_dim(-1) is None
        and parse_dim("(H - 1)//2") == Monomial(Fraction(1), ("(H - 1)//2",))
    )


def test_integer_division_truncates_like_onnx() -> None:
    for a, b in ((7, 2), (-7, 2), (7, -2)):
        node = onnx.helper.make_node("Div", ["a", "b"], ["c"])
        evaluator = onnx.reference.ReferenceEvaluator(node)
        expected = evaluator.run(None, {"a": np.array(a), "b": np.array(b)})[0]
        assert divide(a, b, whole=True) == int(expected)
