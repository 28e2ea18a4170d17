"""An Expand in front of an operator that broadcasts is dropped, and only there."""

from __future__ import annotations

import numpy as np
import pytest
from exactness import apply, count_of, ops, parse

from onnx_hyvit.passes import drop_broadcast_expand


def graph(op: str, operands: str = "x, b", shape: str = "N, 3, 4, 5", norm: str = "N, 3, 4, 1") -> str:
    return f"""agraph (float[{shape}] x, float[{norm}] e) => (float[{shape}] z) {{
        b = Expand(e, s) z = {op}({operands}) }}"""


@pytest.mark.parametrize("operands", ["x, b", "b, x"])
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Max", "Min"])
def test_the_operator_repeats_instead(op: str, operands: str) -> None:
    proto = parse(graph(op, operands), weights={"s": np.array([1, 3, 4, 5], np.int64)})
    assert ops(apply(proto, drop_broadcast_expand.PASS, batches=(1, 3))) == {op: 1}


def test_fewer_axes_and_ones_work_too() -> None:
    proto = parse(graph("Mul", norm="3, 1, 1"), weights={"s": np.array([1, 4, 5], np.int64)})
    assert ops(apply(proto, drop_broadcast_expand.PASS, batches=(2,))) == {"Mul": 1}


def test_another_reader_keeps_the_expand() -> None:
    text = """agraph (float[2, 3] x, float[2, 1] e) => (float[2, 3] z, float[2, 3] y) {
        b = Expand(e, s) z = Mul(x, b) y = Exp(b) }"""
    model = apply(parse(text, weights={"s": np.array([2, 3], np.int64)}), drop_broadcast_expand.PASS)
    assert ops(model) == {"Expand": 1, "Mul": 1, "Exp": 1}
    assert next(node for node in model.graph.nodes if node.op == "Mul").inputs[1].name == "e"


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("agraph (float[2, 1] x, float[2, 1] e) => (float[2, 3] z) { b = Expand(e, s) z = Mul(x, b) }", [2, 3]),
        ("agraph (float[3] x, float[2, 1] e) => (float[2, 3] z) { b = Expand(e, s) z = Mul(x, b) }", [2, 3]),
        ("agraph (float[2, M] x, float[2, 1] e) => (float[2, M] z) { b = Expand(e, s) z = Mul(x, b) }", [2, 3]),
        (
            "agraph (float[2, 3] x, float[2, 1] e) => (float[4, 3] z) { b = Expand(e, s) z = Concat<axis=0>(x, b) }",
            [2, 3],
        ),
        ("agraph (float[2, 1] e) => (float[2, 3] z) { b = Expand(e, s) z = Mul(b, b) }", [2, 3]),
    ],
    ids=["both repeat", "fewer axes", "free size", "no broadcasting", "both operands"],
)
def test_needed_expands_stay(text: str, shape: list[int]) -> None:
    proto = parse(text, weights={"s": np.array(shape, np.int64)})
    assert count_of(proto, drop_broadcast_expand.PASS) == 0


def test_an_axis_that_the_expand_leaves_as_it_is_asks_nothing_of_the_other_operand() -> None:
    text = "agraph (float[1, 5] x, float[4, 1] e) => (float[4, 5] z) { b = Expand(e, s) z = Add(x, b) }"
    proto = parse(text, weights={"s": np.array([4, 5], np.int64)})
    assert ops(apply(proto, drop_broadcast_expand.PASS)) == {"Add": 1}
