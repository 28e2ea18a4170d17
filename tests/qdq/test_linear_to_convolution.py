"""Linear layers as 1x1 convolutions on channels last: the same numbers, other kernels."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from qdq_graphs import feeds_of, minmax, ops, parse, plan_of, run, weight

from onnx_hyvit.graph import Model, model_to_proto
from onnx_hyvit.insert_qdq import insert_qdq
from onnx_hyvit.kernel_audit import audit
from onnx_hyvit.numerics import QParams
from onnx_hyvit.numerics.weights import weight_qparams
from onnx_hyvit.placement import Plan
from onnx_hyvit.validate import find_patterns

BIAS = np.linspace(-1, 1, 24, dtype=np.float32)
K, N = weight(16, 24), weight(24, 16)  # [inner, outer] and, for transB, [outer, inner]
GATE = "s = Sigmoid(g) y = Mul(g, s)"


def linear(attrs: str = "", tail: str = GATE, rows: str = "10", **inits: np.ndarray) -> Model:
    text = f"g (float[{rows},16] x) => (float[{rows},24] y) {{ g = Gemm{attrs}(x, w, b) {tail} }}"
    return parse(text, **{"w": N if "transB=1" in attrs else K, "b": BIAS, **inits})


def both(
    model: Model, names: set[str] | None = None, ranges: dict[str, QParams] | None = None, **options: int
) -> tuple[onnx.ModelProto, onnx.ModelProto, dict[str, np.ndarray], Plan]:
    """Without and with the rewrite of the layers ``names``."""
    plan, feeds = plan_of(model, **options), feeds_of(model)
    qparams = {**minmax(model, plan, feeds), **(ranges or {})}
    asked = dataclasses.replace(plan, as_convolution=frozenset({"g"} if names is None else names))
    plain, rewritten = (model_to_proto(insert_qdq(model, each, qparams), check=True) for each in (plan, asked))
    return plain, rewritten, feeds, plan


def assert_same(plain: onnx.ModelProto, rewritten: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    assert "Conv" in ops(rewritten)
    for optimize in ("none", "all"):
        expected = run(plain, feeds, optimize)
        assert expected.std() > 0.1
        np.testing.assert_array_equal(run(rewritten, feeds, optimize), expected)
    assert [str(finding) for finding in find_patterns(rewritten)] == []
    assert audit(rewritten).clean


@pytest.mark.parametrize("attrs", ["", "<transB=1>"])
def test_the_numbers_are_the_same(attrs: str) -> None:
    plain, rewritten, feeds, _ = both(linear(attrs))
    assert_same(plain, rewritten, feeds)
    assert "Gemm" not in ops(rewritten) and "Gemm" in ops(plain)


def test_the_kernel_is_a_convolution_and_no_codes_are_transposed() -> None:
    plain, rewritten, _, _ = both(linear())
    assert audit(plain).operators["QGemm"] == 1
    found = audit(rewritten).operators
    assert found["QLinearConv"] == 1 and found["Reshape"] == 2
    assert not {"QGemm", "Transpose"} & set(found)
    assert [kernel.node for kernel in audit(rewritten).int8] == ["g"], "the layer keeps its name"


def test_the_interface_and_the_names_of_tensors_stay() -> None:
    plain, rewritten, _, _ = both(linear())
    assert [value.name for value in rewritten.graph.output] == ["y"]
    made = [{name for node in proto.graph.node for name in node.output} for proto in (plain, rewritten)]
    assert {"g", "s", "y"} <= made[0] & made[1]


def test_a_free_number_of_rows_stays_free() -> None:
    plain, rewritten, _, _ = both(linear(rows="R"))
    for rows in (1, 7, 40):
        feeds = {"x": np.random.default_rng(rows).standard_normal((rows, 16)).astype(np.float32)}
        np.testing.assert_array_equal(run(rewritten, feeds), run(plain, feeds))


@pytest.mark.parametrize("zero_point", [0, 90])
def test_what_the_layer_absorbed_stays_with_it(zero_point: int) -> None:
    model = linear(tail="r = Relu(g) y = Gemm(r, v)", v=weight(24, 24, seed=2))
    spec = plan_of(model).activations["r"]
    wide = {"r": QParams(np.float32(0.02), np.uint8(zero_point), spec)}
    plain, rewritten, feeds, plan = both(model, {"g", "y"}, wide)
    assert plan.absorbed == {"r": "g"}
    assert_same(plain, rewritten, feeds)
    assert audit(rewritten).operators["QLinearConv"] == 1, "the output of the model has no codes: its layer stays"


def test_narrow_codes_and_scales_that_are_given() -> None:
    model = linear("<transB=1>")
    spec = plan_of(model, weight_bits=4).weights["w"]
    given = {"w": weight_qparams(N, spec)}
    plain, rewritten, feeds, _ = both(model, ranges=given, weight_bits=4, activation_bits=6)
    assert_same(plain, rewritten, feeds)


def test_layers_in_a_row_share_no_codes_by_mistake() -> None:
    tail = "s = Sigmoid(g) m = Mul(g, s) h = Gemm(m, v, b) t = Sigmoid(h) y = Mul(h, t)"
    plain, rewritten, feeds, _ = both(linear(tail=tail, v=weight(24, 24, seed=2)), {"g", "h"})
    assert_same(plain, rewritten, feeds)
    assert ops(rewritten).count("Conv") == 2


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (linear(), set()),
        (linear("<alpha=0.5>"), None),
        (linear(tail="y = Softmax(g)"), None),
        (linear(b=BIAS[None]), None),
        (linear(tail="h = Gemm(x, w, b) j = Add(g, h) s = Sigmoid(j) y = Mul(j, s)"), None),
        (parse("g (float[1,16,4,4] x) => (float[1,24,4,4] y) { g = Conv(x, w) s = Sigmoid(g) y = Mul(g, s) }",
               w=weight(24, 16, 1, 1)), None),
    ],
    ids=["not asked for", "alpha", "float output", "bias of two axes", "shared weight", "a convolution"],
)  # fmt: skip
def test_what_stays_as_it_is(model: Model, names: set[str] | None) -> None:
    plain, rewritten, _, _ = both(model, names)
    assert rewritten.SerializeToString(deterministic=True) == plain.SerializeToString(deterministic=True)
