"""A Resize of two axes becomes one of four, with the same result, whatever the sides."""

from __future__ import annotations

import numpy as np
import pytest
from exactness import apply, count_of, ops, parse

from onnx_hyvit import QuantConfig, quantize
from onnx_hyvit.graph import load_model, model_to_proto
from onnx_hyvit.graph.edit import constant_of
from onnx_hyvit.passes import LOWERING, resize_all_axes, run_passes
from onnx_hyvit.runtime import make_session


def resize(attributes: str, arguments: str, before: str = "N, 4, 6, 7", after: str = "N, 4, 10, 16") -> str:
    return f"""agraph (float[{before}] x) => (float[{after}] y) <float[{after}] r> {{
        r = Resize<{attributes}>(x{arguments}) y = Relu(r) }}"""


WEIGHTS = {"sizes": np.array([10, 16], np.int64), "scales": np.array([1.7, 2.3], np.float32)}


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("transform", ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"])
@pytest.mark.parametrize("arguments", [", , , sizes", ", , scales"])
def test_a_free_batch_gets_scales(mode: str, transform: str, arguments: str) -> None:
    attributes = f'mode="{mode}", coordinate_transformation_mode="{transform}", axes=[2, 3]'
    text = resize(attributes, arguments)
    if mode == "nearest" and "sizes" in arguments:
        text = text.replace("6, 7]", "8, 8]")  # ratios that float32 has
    model = apply(parse(text, weights=WEIGHTS), resize_all_axes.PASS, batches=(1, 3))
    node = next(node for node in model.graph.nodes if node.op == "Resize")
    assert "axes" not in node.attrs and constant_of(node.inputs[2]).shape == (4,)


def test_fixed_shapes_keep_sizes() -> None:
    text = resize('mode="linear", axes=[-2, -1]', ", , , sizes", "2, 4, 6, 7", "2, 4, 10, 16")
    model = apply(parse(text, weights=WEIGHTS), resize_all_axes.PASS)
    node = next(node for node in model.graph.nodes if node.op == "Resize")
    assert constant_of(node.inputs[3]).tolist() == [2, 4, 10, 16]


def test_scales_give_the_size_that_was_asked_for() -> None:
    """Rounding down must not lose a pixel, for any pair of sides."""
    for before in range(1, 300):
        for after in (*range(1, 40), 97, 224, 255, 333, 1000):
            scale = resize_all_axes._scale(before, after)
            assert scale is not None and int(np.float32(before) * scale) == after == int(before * float(scale))
            assert abs(scale * before / after - 1) < 1e-6


@pytest.mark.parametrize(
    "text",
    [
        resize('mode="linear", axes=[2, 3], coordinate_transformation_mode="half_pixel_symmetric"', ", , , sizes"),
        resize('mode="linear", axes=[2, 3]', ", , , sizes", before="N, 4, H, W"),
        resize('mode="nearest", axes=[2, 3]', ", , , sizes"),
        resize(
            'mode="nearest", axes=[2, 3], nearest_mode="floor", coordinate_transformation_mode="asymmetric"',
            ", , , sizes",
        ),
    ],
    ids=["symmetric", "free sides", "nearest of an uneven ratio", "nearest, rounded down"],
)
def test_sizes_are_computed_where_scales_would_mean_something_else(text: str) -> None:
    model = apply(parse(text, weights=WEIGHTS), resize_all_axes.PASS, batches=(1, 3))
    node = next(node for node in model.graph.nodes if node.op == "Resize")
    assert "axes" not in node.attrs and [source.op for source in node.inputs[3].inputs] == ["Concat"]


@pytest.mark.parametrize(
    "text",
    [
        resize('mode="linear"', ", , , sizes").replace(", , , sizes", ", , scale4"),
        resize('mode="linear", axes=[1, 2]', ", , scales"),
        resize('mode="linear", axes=[2, 3], keep_aspect_ratio_policy="not_larger"', ", , , sizes"),
    ],
    ids=["four already", "other axes", "ratio"],
)
def test_others_stay(text: str) -> None:
    weights = {**WEIGHTS, "scale4": np.array([1, 1, 2, 2], np.float32)}
    assert count_of(parse(text, weights=weights), resize_all_axes.PASS) == 0


@pytest.mark.parametrize(("mode", "side"), [("linear", 24), ("nearest", 20)])
def test_a_resize_between_int8_convolutions_loads(mode: str, side: int) -> None:
    """ONNX Runtime cannot load this one with ``axes``: it moves transposes through the Resize."""
    body = f"""agraph (float[N, 8, 12, 12] x) => (float[N, 16, {side}, {side}] y) {{
        a = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x, u) b = Relu(a)
        r = Resize<mode="{mode}", axes=[2, 3]>(b, , , sides)
        y = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(r, v) }}"""
    random = np.random.default_rng(0)
    weights = {
        name: (random.standard_normal((16, c, 3, 3)) / 9).astype(np.float32) for name, c in (("u", 8), ("v", 16))
    }
    proto = parse(body, weights={**weights, "sides": np.array([side, side], np.int64)})
    data = {"x": random.standard_normal((2, 8, 12, 12)).astype(np.float32)}
    config = QuantConfig(recipe="minmax", target="ort-x86", objective="size", threads=1)
    result = quantize(proto, calibration=data, config=config)
    expected, found = (make_session(model).run(data)["y"] for model in (proto, result.model))
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


def test_it_comes_last_since_shape_arithmetic_writes_axes() -> None:
    text = resize('mode="linear", axes=[2, 3]', ", , , sizes")
    model = load_model(parse(text, weights=WEIGHTS))
    run_passes(model, LOWERING)
    assert ops(model)["Resize"] == 1 and b"axes" not in model_to_proto(model).SerializeToString()
