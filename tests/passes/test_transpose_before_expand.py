"""What is repeated is transposed before, and where a sum reads it, repeated by the sum."""

from __future__ import annotations

import numpy as np
import pytest
from exactness import apply, assert_same, count_of, ops, parse

from onnx_hyvit.graph import load_model, model_to_proto
from onnx_hyvit.passes import drop_broadcast_expand, run_passes
from onnx_hyvit.passes.layout import LAYOUT, transpose_before_expand

# relative positions as torch writes them: along the width, and along the height
POSITIONS = """agraph (float[N, 3, 1, 5, 5] w, float[N, 5, 1, 3, 3] h) => (float[N, 3, 5, 3, 5] z) {
    we = Expand(w, ws) he = Expand(h, hs)
    wt = Transpose<perm = [0, 1, 3, 2, 4]>(we) ht = Transpose<perm = [0, 3, 1, 4, 2]>(he) z = Add(ht, wt) }"""
SHAPES = {"ws": np.array([1, 1, 3, 1, 1]), "hs": np.array([1, 1, 5, 1, 1])}


def one(perm: str = "<perm = [2, 0, 1]>", shape: str = "s", more: str = "") -> str:
    outputs = "float[5, 2, 3] z" + (", float[2, 3, 5] y" if more else "")
    return f"""agraph (float[2, 1, 5] x, int64[3] given) => ({outputs}) {{
        e = Expand(x, {shape}) z = Transpose{perm}(e) {more} }}"""


@pytest.mark.parametrize(
    ("perm", "output"), [("<perm = [2, 0, 1]>", "5, 2, 3"), ("", "5, 3, 2"), ("<perm = [1, 0, 2]>", "3, 2, 5")]
)
def test_the_transpose_goes_first(perm: str, output: str) -> None:
    proto = parse(one(perm).replace("5, 2, 3", output), weights={"s": np.array([2, 3, 5])})
    model = apply(proto, transpose_before_expand.PASS)
    assert [node.op for node in model.graph.nodes] == ["Transpose", "Expand"]


def test_relative_positions_are_repeated_by_their_sum() -> None:
    proto = parse(POSITIONS, weights=SHAPES)
    model = load_model(proto)
    run_passes(model, [transpose_before_expand.PASS, drop_broadcast_expand.PASS])
    assert ops(model) == {"Transpose": 2, "Add": 1}
    assert_same(proto, model_to_proto(model), batches=(1, 2))


def test_it_is_one_of_the_rewrites_of_layouts() -> None:
    assert transpose_before_expand.PASS in LAYOUT


@pytest.mark.parametrize(
    "text",
    [
        one(shape="given"),
        one(more="y = Exp(e)"),
        "agraph (float[3, 1] x) => (float[5, 2, 3] z) { e = Expand(x, s) z = Transpose<perm = [2, 0, 1]>(e) }",
        "agraph (float[2, 1, 5] x) => (float[2, 3, 5] z) { e = Expand(x, s) z = Exp(e) }",
    ],
    ids=["free shape", "another reader", "more axes", "no transpose"],
)
def test_what_stays(text: str) -> None:
    assert count_of(parse(text, weights={"s": np.array([2, 3, 5])}), transpose_before_expand.PASS) == 0
