"""Nearest Resize of int8 maps as Gathers of whole pixels: the same codes, other kernels."""

from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np
import onnx
import pytest
from qdq_graphs import feeds_of, minmax, ops, parse, plan_of, run, shapes_of, weight

from onnx_hyvit.config import QuantConfig
from onnx_hyvit.graph import Model, model_to_proto
from onnx_hyvit.insert_qdq import insert_qdq
from onnx_hyvit.kernel_audit import audit
from onnx_hyvit.planning import decide
from onnx_hyvit.targets import load_target

COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "asymmetric", "align_corners")
ROUNDING = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
ENLARGED = np.float32([1, 1, 2, 2])


def model_of(
    attrs: str = 'mode="nearest"',
    channels: int = 16,
    side: str = "6",
    tail: str = "y = Conv(r, v)",
    **inits: np.ndarray,
) -> Model:
    text = f"""g (float[1,16,{side},5] x) => (float[N,16,H,W] y) {{
        c = Conv(x, w) r = Resize<{attrs}>(c, , {"scales" if "scales" in inits else ", sizes"}) y = Conv(r, v) }}"""
    return parse(text, w=weight(channels, 16, 1, 1), v=weight(16, channels, 1, 1, seed=1), **inits)


def both(model: Model) -> tuple[onnx.ModelProto, onnx.ModelProto, dict[str, np.ndarray]]:
    """Without and with the rewrite."""
    plan, feeds = plan_of(model), feeds_of(model)
    qparams = minmax(model, plan, feeds)
    asked = dataclasses.replace(plan, as_gather=frozenset({"r"}))
    plain, rewritten = (model_to_proto(insert_qdq(model, each, qparams), check=True) for each in (plan, asked))
    return plain, rewritten, feeds


@pytest.mark.parametrize("rounding", ROUNDING)
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_the_same_pixels_are_copied(coordinates: str, rounding: str) -> None:
    attrs = f'mode="nearest", coordinate_transformation_mode="{coordinates}", nearest_mode="{rounding}"'
    forms = [{"scales": np.float32([1, 1, *sides])} for sides in product((0.5, 1.0, 1.5, 2.0, 2.4, 3.0), repeat=2)]
    forms += [{"sizes": np.array([1, 16, *sides])} for sides in ((12, 10), (3, 7), (1, 1), (17, 4))]
    rewrites = 0
    for form in forms:
        plain, rewritten, feeds = both(model_of(attrs, **form))
        rewrites += "Gather" in ops(rewritten)
        expected = run(plain, feeds, "none")
        np.testing.assert_array_equal(run(rewritten, feeds, "none"), expected, str(form))
    assert rewrites == len(forms)


def test_whole_pixels_are_copied_between_convolutions_and_nothing_is_transposed() -> None:
    plain, rewritten, feeds = both(model_of(scales=ENLARGED))
    assert audit(plain).operators["Resize"] == 1
    found = audit(rewritten).operators
    assert found["Gather"] == 2 and "Resize" not in found and audit(rewritten).clean
    assert found.get("Transpose", 0) == audit(plain).operators.get("Transpose", 0)
    np.testing.assert_array_equal(run(rewritten, feeds), run(plain, feeds))


def test_a_free_batch_stays_free() -> None:
    text = """g (float[N,16,6,5] x) => (float[N,16,12,10] y) {
        c = Conv(x, w) r = Resize<mode="nearest">(c, , scales) y = Conv(r, v) }"""
    model = parse(text, w=weight(16, 16, 1, 1), v=weight(16, 16, 1, 1, seed=1), scales=ENLARGED)
    plain, rewritten, _ = both(model)
    assert "Gather" in ops(rewritten)
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 16, 6, 5)).astype(np.float32)}
    np.testing.assert_array_equal(run(rewritten, feeds), run(plain, feeds))


@pytest.mark.parametrize(
    "model",
    [
        model_of(channels=8, scales=ENLARGED),
        model_of('mode="linear"', scales=ENLARGED),
        model_of(side="H", scales=ENLARGED),
        model_of(scales=np.float32([1, 1, 7 / 3, 2])),  # 13 rows by shape inference, 14 in ONNX Runtime
        model_of(sizes=np.array([2, 16, 12, 10])),
    ],
    ids=["few channels", "interpolates", "free side", "rounded sides", "batch"],
)
def test_what_stays_as_it_is(model: Model) -> None:
    plain, rewritten, _ = both(model)
    assert rewritten.SerializeToString(deterministic=True) == plain.SerializeToString(deterministic=True)


@pytest.mark.parametrize(("target", "expected"), [("ort-x86", {"r"}), ("qnn", set())])
def test_it_is_asked_for_where_there_are_costs(target: str, expected: set[str]) -> None:
    model = model_of(scales=ENLARGED)
    decision = decide(model, shapes_of(model), load_target(target), QuantConfig(objective="size"))
    assert decision.plan.as_gather == expected
