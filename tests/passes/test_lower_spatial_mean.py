"""A mean over both sides of a map becomes a GlobalAveragePool, any other mean stays."""

from __future__ import annotations

import numpy as np
import pytest
from exactness import apply, count_of, ops, parse

from onnx_hyvit.passes import lower_spatial_mean


def graph(axes: str, keepdims: int, result: str, shape: str = "N, 3, 4, 5") -> str:
    return f"""agraph (float[{shape}] x) => (float[{result}] z) {{
        m = ReduceMean<keepdims={keepdims}>(x, {axes}) z = Exp(m) }}"""


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [3, -2]])
def test_the_mean_is_a_pooling(axes: list[int]) -> None:
    weights = {"a": np.array(axes, np.int64)}
    kept = apply(parse(graph("a", 1, "N, 3, 1, 1"), weights=weights), lower_spatial_mean.PASS, batches=(1, 3))
    assert ops(kept) == {"GlobalAveragePool": 1, "Exp": 1}
    flat = apply(parse(graph("a", 0, "N, 3"), weights=weights), lower_spatial_mean.PASS, batches=(1, 3))
    assert ops(flat) == {"GlobalAveragePool": 1, "Flatten": 1, "Exp": 1}


def test_axes_as_an_attribute_and_the_usual_keepdims() -> None:
    text = "agraph (float[N, 3, 4, 5] x) => (float[N, 3, 1, 1] z) { z = ReduceMean<axes=[2, 3]>(x) }"
    assert ops(apply(parse(text, opset=13), lower_spatial_mean.PASS, batches=(2,))) == {"GlobalAveragePool": 1}


@pytest.mark.parametrize(
    ("axes", "result", "shape"),
    [
        ([1, 2], "N, 5", "N, 3, 4, 5"),
        ([2], "N, 3, 5", "N, 3, 4, 5"),
        ([1, 2, 3], "N", "N, 3, 4, 5"),
        ([1, 2], "N", "N, 4, 5"),
    ],
    ids=["channels last", "one side", "channels too", "no channels"],
)
def test_other_means_stay(axes: list[int], result: str, shape: str) -> None:
    proto = parse(graph("a", 0, result, shape), weights={"a": np.array(axes, np.int64)})
    assert count_of(proto, lower_spatial_mean.PASS) == 0


def test_axes_that_are_computed_and_maximums_stay() -> None:
    text = """agraph (float[2, 3, 4, 5] x, int64[2] a) => (float[?, ?, ?, ?] z, float[2, 3, 1, 1] y) {
        z = ReduceMean(x, a) y = ReduceMax(x, b) }"""
    assert count_of(parse(text, weights={"b": np.array([2, 3], np.int64)}), lower_spatial_mean.PASS) == 0
