from __future__ import annotations

import numpy as np
import onnx
import pytest
from exactness import apply, ops, parse, run

from onnx_hyvit.graph import load_model, model_to_proto
from onnx_hyvit.passes import eliminate_noops, fold_constants, run_passes

W = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scalar": np.array(3.0, np.float32),
    "ones": np.ones((3,), np.float32),
    "one": np.array(1.0, np.float32),
    "one_3d": np.ones((1, 1, 1), np.float32),
    "zeros": np.zeros((2, 3), np.float32),
    "big": np.array([2048, 2048], np.int64),
    "same": np.array([2, 3], np.int64),
    "keep": np.array([0, -1], np.int64),
    "swap": np.array([3, 2], np.int64),
    "unit": np.array([1, 1], np.int64),
    "start": np.array([0, 0], np.int64),
    "end": np.array([2, 1 << 40], np.int64),
    "cut": np.array([2, 2], np.int64),
    "axes": np.array([0, 1], np.int64),
    "pads": np.zeros(4, np.int64),
    "false": np.array(False),
    "ratio": np.array(0.5, np.float32),
}
HEAD = "agraph (float[2, 3] x) => (float[2, 3] y) {"


def test_chain_of_constants_folds_and_keeps_scalars_scalar() -> None:
    body = "t = Transpose<perm = [1, 0]>(a) u = Transpose(t) s = Mul(scalar, scalar) v = Mul(u, s) y = Add(x, v)"
    model = apply(parse(f"{HEAD} {body} }}", weights=W), fold_constants.PASS)
    assert ops(model) == {"Add": 1}
    model = apply(parse(f"{HEAD} s = Mul(scalar, scalar) y = Mul(x, s) }}", weights=W), fold_constants.PASS)
    assert model.graph.nodes[0].inputs[1].shape == ()


def test_constant_nodes_of_every_kind() -> None:
    body = (
        "f = Constant<value_float = 2.0>() g = Constant<value = float[3] {1, 2, 3}>() "
        "h = Constant<value_floats = [1.0]>() i = Mul(f, g) j = Add(i, h) y = Mul(x, j)"
    )
    assert ops(apply(parse(f"{HEAD} {body} }}"), fold_constants.PASS)) == {"Mul": 1}


def test_static_shape_folds_and_large_results_do_not() -> None:
    head = "agraph (float[2, 3] x) => (float[2048, 2048] y) {"
    body = """s = Shape(x) c = ConstantOfShape(big) d = Cast<to = 1>(s) e = ReduceSum<keepdims = 0>(d) f = Add(c, e)
        r = ReduceMean(x) y = Mul(f, r)"""
    model = apply(parse(f"{head} {body} }}", weights=W), fold_constants.PASS)
    assert ops(model) == {"ConstantOfShape": 1, "Add": 1, "ReduceMean": 1, "Mul": 1}


def test_random_and_graph_outputs_are_not_folded() -> None:
    head = "agraph (float[2, 3] x) => (float[2, 3] y, float[2, 3] z) {"
    model = apply(parse(f"{head} z = Mul(a, scalar) y = Add(x, z) }}", weights=W), fold_constants.PASS)
    assert ops(model) == {"Mul": 1, "Add": 1}
    proto = parse(f"{HEAD} n = RandomNormal<shape = [2, 3]>() y = Add(x, n) }}")
    model = load_model(proto)
    assert run_passes(model, [fold_constants.PASS])[0].count == 0


NEUTRAL = [
    "i = Identity(x) y = Relu(i)",
    "d = Dropout(x) y = Relu(d)",
    "d = Dropout(x, ratio, false) y = Relu(d)",
    "c = Cast<to = 1>(x) y = Relu(c)",
    "r = Reshape(x, same) y = Relu(r)",
    "r = Reshape(x, keep) y = Relu(r)",
    "t = Transpose<perm = [0, 1]>(x) y = Relu(t)",
    "t = Transpose<perm = [1, 0]>(x) u = Transpose<perm = [1, 0]>(t) y = Relu(u)",
    "r = Reshape(x, swap) s = Reshape(r, same) y = Relu(s)",
    "e = Expand(x, unit) y = Relu(e)",
    "e = Tile(x, unit) y = Relu(e)",
    "s = Slice(x, start, end) y = Relu(s)",
    "s = Slice(x, start, end, axes) y = Relu(s)",
    "p = Pad(x, pads) y = Relu(p)",
    "c = Concat<axis = 0>(x) y = Relu(c)",
    "m = Mul(one, x) y = Relu(m)",
    "m = Mul(x, ones) y = Relu(m)",
    "m = Div(x, one) y = Relu(m)",
    "m = Add(zeros, x) y = Relu(m)",
    "m = Sub(x, zeros) y = Relu(m)",
    "f = Flatten(x) y = Relu(f)",
    "r = Relu(x) y = Identity(r)",
]


@pytest.mark.parametrize("body", NEUTRAL)
def test_node_that_changes_nothing_disappears(body: str) -> None:
    assert ops(apply(parse(f"{HEAD} {body} }}", weights=W), eliminate_noops.PASS)) == {"Relu": 1}


USEFUL = {
    "s = Slice(x, start, cut) y = Relu(s)": "float[2, 2]",
    "r = Reshape(x, swap) y = Relu(r)": "float[3, 2]",
    "t = Transpose<perm = [1, 0]>(x) y = Relu(t)": "float[3, 2]",
    "m = Mul(x, one_3d) y = Relu(m)": "float[1, 2, 3]",
    "m = Div(one, x) y = Relu(m)": "float[2, 3]",
    "m = Sub(zeros, x) y = Relu(m)": "float[2, 3]",
    "f = Flatten<axis = 0>(x) y = Relu(f)": "float[1, 6]",
}


@pytest.mark.parametrize("body", USEFUL)
def test_node_that_changes_something_stays(body: str) -> None:
    proto = parse(f"agraph (float[2, 3] x) => ({USEFUL[body]} y) {{ {body} }}", weights=W)
    assert sum(ops(apply(proto, eliminate_noops.PASS)).values()) == 2


def test_identity_between_input_and_output_stays() -> None:
    assert ops(apply(parse(f"{HEAD} y = Identity(x) }}"), eliminate_noops.PASS)) == {"Identity": 1}


def test_zero_of_an_outer_reshape_is_resolved() -> None:
    weights = {"s": np.array([0, 2, 2, 6], np.int64), "t": np.array([0, 0, 12], np.int64)}
    text = "agraph (float[N, 4, 6] x) => (float[N, 2, 12] y) { r = Reshape(x, s) y = Reshape(r, t) }"
    model = apply(parse(text, weights=weights), eliminate_noops.PASS, batches=(1, 3))
    assert ops(model) == {"Reshape": 1}


def test_allowzero_without_zeros_does_not_hinder() -> None:
    weights = {"s": np.array([-1, 24], np.int64), "t": np.array([-1, 2, 12], np.int64)}
    text = """agraph (float[N, 4, 6] x) => (float[N, 2, 12] y) {
        r = Reshape<allowzero = 1>(x, s) y = Reshape<allowzero = 1>(r, t) }"""
    model = apply(parse(text, weights=weights), eliminate_noops.PASS, batches=(1, 3))
    assert ops(model) == {"Reshape": 1}


def test_a_zero_that_means_zero_is_kept() -> None:
    weights = {"s": np.array([0, 3], np.int64), "t": np.array([0, 5], np.int64)}
    text = """agraph (float[0, 3] x) => (float[0, 5] y) {
        r = Reshape<allowzero = 1>(x, s) y = Reshape<allowzero = 1>(r, t) }"""
    model = load_model(parse(text, weights=weights))
    run_passes(model, [eliminate_noops.PASS])
    assert all(node.attrs.get("allowzero") == 1 for node in model.graph.nodes) and ops(model)["Reshape"] >= 1


def test_inner_reshape_with_another_reader_stays() -> None:
    weights = {"s": np.array([4, 3], np.int64), "t": np.array([2, 6], np.int64)}
    text = "agraph (float[12] x) => (float[2, 6] y, float[4, 3] z) { r = Reshape(x, s) z = Relu(r) y = Reshape(r, t) }"
    model = apply(parse(text, weights=weights), eliminate_noops.PASS)
    reshape = next(node for node in model.graph.nodes if node.outputs[0].name == "y")
    assert reshape.inputs[0].name == "r"


def test_bodies_keep_the_outer_tensors_that_they_read() -> None:
    text = """agraph (float[2, 3] x, bool c) => (float[2, 3] y) {
        k = Mul(a, scalar)
        i = Identity(x)
        d = Relu(i)
        z = If<then_branch = t () => (float[2, 3] p) { p = Mul(d, k) },
               else_branch = e () => (float[2, 3] q) { q = Sub(i, k) }>(c)
        y = Add(z, d)
    }"""
    proto = parse(text, weights=W)
    for condition in (True, False):
        model = load_model(proto)
        run_passes(model, [fold_constants.PASS, eliminate_noops.PASS])
        after = model_to_proto(model, check=True)
        feeds = {"x": np.ones((2, 3), np.float32) * 2, "c": np.array(condition)}
        expected = onnx.reference.ReferenceEvaluator(proto).run(None, feeds)
        np.testing.assert_allclose(run(after, feeds)[0], expected[0], rtol=1e-6)
