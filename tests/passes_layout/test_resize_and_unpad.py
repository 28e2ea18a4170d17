"""Interpolation as a matrix product, and stems that are float after all."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from exactness import apply, count_of, ops, parse

from onnx_hyvit.graph import load_model
from onnx_hyvit.passes.layout import cubic_resize_to_matmul, pad_stem, resize_to_matmul, unpad_stem

SCALES = np.array([1, 1, 2, 2], np.float32)


def resize(attributes: str, arguments: str = ", , s", size: int = 7, out: int = 14, batch: str = "1") -> str:
    shape = f"{batch}, 8, {out}, {out}"
    return f"""agraph (float[{batch}, 8, {size}, {size}] x) => (float[{shape}] y)
        <float[{shape}] r> {{ r = Resize<{attributes}>(x{arguments}) y = Relu(r) }}"""


@pytest.mark.parametrize("transform", ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_interpolation_is_one_matrix_product(mode: str, transform: str) -> None:
    attributes = f'mode="{mode}", coordinate_transformation_mode="{transform}"'
    model = apply(parse(resize(attributes), weights={"s": SCALES}), resize_to_matmul.PASS)
    assert ops(model) == {"Reshape": 2, "MatMul": 1, "Relu": 1}


@pytest.mark.parametrize("arguments", [", , s", ", , , t"], ids=["scales", "sizes"])
@pytest.mark.parametrize("axes", ["[2, 3]", "[-2, -1]"])
@pytest.mark.parametrize("rewrite", [resize_to_matmul, cubic_resize_to_matmul])
def test_exporters_that_name_the_two_sides_are_understood(rewrite, axes: str, arguments: str) -> None:
    """torch's exporter writes ``axes`` and two numbers."""
    text = resize(f'mode="cubic", axes={axes}', arguments, batch="N")
    weights = {"s": SCALES[2:], "t": np.array([14, 14], np.int64)}
    assert ops(apply(parse(text, weights=weights), rewrite.PASS, batches=(1, 3)))["MatMul"] in (1, 2)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_a_filter_that_widens_is_a_matrix_product_too(mode: str) -> None:
    text = resize(f'mode="{mode}", antialias=1', size=8, out=3)
    scales = np.array([1, 1, 0.375, 0.375], np.float32)
    assert ops(apply(parse(text, weights={"s": scales}), resize_to_matmul.PASS))["MatMul"] == 1


def test_sizes_and_uneven_factors_work_too() -> None:
    text = """agraph (float[1, 8, 4, 6] x) => (float[1, 8, 9, 7] y) <float[1, 8, 9, 7] r> {
        r = Resize<mode="linear">(x, , , s) y = Relu(r) }"""
    model = apply(parse(text, weights={"s": np.array([1, 8, 9, 7], np.int64)}), resize_to_matmul.PASS)
    assert ops(model)["MatMul"] == 1


def test_a_free_batch_stays_free() -> None:
    proto = parse(resize('mode="linear"', batch="N"), weights={"s": SCALES})
    model = apply(proto, resize_to_matmul.PASS, batches=(1, 3))
    assert ops(model)["MatMul"] == 1


def test_an_interpolated_output_keeps_its_name() -> None:
    text = """agraph (float[1, 8, 4, 4] x) => (float[1, 8, 8, 8] y) { y = Resize<mode="linear">(x, , s) }"""
    assert ops(apply(parse(text, weights={"s": SCALES}), resize_to_matmul.PASS)) == {"Reshape": 2, "MatMul": 1}


@pytest.mark.parametrize(
    "text",
    [
        resize('mode="nearest"'),
        resize('mode="linear"', size=9, out=18),
        resize('mode="linear", axes=[1, 2]', ", , t"),
    ],
    ids=["nearest", "large", "axes"],
)
def test_other_resizes_stay(text: str) -> None:
    weights = {"s": SCALES, "t": SCALES[2:]}
    assert count_of(parse(text, weights=weights), resize_to_matmul.PASS) == 0


def test_a_resize_of_channels_stays() -> None:
    text = """agraph (float[1, 8, 4, 4] x) => (float[1, 16, 8, 8] y) <float[1, 16, 8, 8] r> {
        r = Resize<mode="linear">(x, , s) y = Relu(r) }"""
    weights = {"s": np.array([1, 2, 2, 2], np.float32)}
    assert count_of(parse(text, weights=weights), resize_to_matmul.PASS) == 0


def cubic(attributes: str = "", before: str = "1, 3, 20, 24", after: str = "1, 3, 18, 30", arguments: str = ", , , s"):
    return f"""agraph (float[{before}] x) => (float[{after}] y) <float[{after}] r> {{
        r = Resize<mode="cubic"{attributes}>(x{arguments}) y = Relu(r) }}"""


UP, DOWN = np.array([1, 3, 18, 30], np.int64), np.array([1, 1, 0.9, 1.25], np.float32)


@pytest.mark.parametrize(
    "attributes",
    [
        "",
        ', coordinate_transformation_mode="align_corners"',
        ', coordinate_transformation_mode="asymmetric"',
        ', coordinate_transformation_mode="pytorch_half_pixel"',
        ", cubic_coeff_a=-0.5",
        ", exclude_outside=1",
        ", antialias=1",
    ],
)
@pytest.mark.parametrize("arguments", [", , , s", ", , t"], ids=["sizes", "scales"])
def test_cubic_interpolation_is_one_product_per_axis(attributes: str, arguments: str) -> None:
    """Down along one axis, up along the other; ONNX Runtime's own kernel is what it must equal."""
    proto = parse(cubic(attributes, arguments=arguments), weights={"s": UP, "t": DOWN}, opset=18)
    model = apply(proto, cubic_resize_to_matmul.PASS)
    assert ops(model) == {"MatMul": 2, "Relu": 1}


def test_cubic_interpolation_leaves_a_free_batch_free() -> None:
    text = cubic(before="N, 3, 20, 24", after="N, 3, 40, 48", arguments=", , s")
    model = apply(parse(text, weights={"s": SCALES}), cubic_resize_to_matmul.PASS, batches=(1, 3))
    assert ops(model) == {"MatMul": 2, "Relu": 1}


@pytest.mark.parametrize(
    ("text", "scales"),
    [
        (cubic().replace("cubic", "linear"), UP),
        (cubic(", axes=[1, 2]", arguments=", , s"), DOWN[2:]),
        (cubic(before="1, 1, 600, 600", after="1, 1, 700, 700"), np.array([1, 1, 700, 700], np.int64)),
        (cubic(before="1, 3, 10, 10", after="1, 6, 20, 20", arguments=", , s"), np.array([1, 2, 2, 2], np.float32)),
        (cubic(', keep_aspect_ratio_policy="not_larger"', after="1, 3, 18, 22"), UP),
    ],
    ids=["linear", "axes", "too large", "channels", "ratio"],
)
def test_other_cubic_resizes_stay(text: str, scales: np.ndarray) -> None:
    assert count_of(parse(text, weights={"s": scales}, opset=18), cubic_resize_to_matmul.PASS) == 0


STEM = """agraph (float[1, 3, 8, 8] x) => (float[1, 4, 6, 6] y) <float[1, 4, 8, 8] p> {
    p = Pad(x, pads) y = Conv(p, w) }"""
PADDED = {
    "w": np.pad(np.random.default_rng(0).normal(size=(4, 3, 3, 3)), ((0, 0), (0, 1), (0, 0), (0, 0))).astype(
        np.float32
    ),
    "pads": np.array([0, 0, 0, 0, 0, 1, 0, 0]),
}


def convolutions(proto: onnx.ModelProto) -> set[str]:
    """Names that loading gives to the convolutions."""
    return {node.name for node in load_model(proto).graph.nodes if node.op == "Conv"}


def test_a_padded_stem_that_stays_float_loses_its_padding() -> None:
    proto = parse(STEM, weights=PADDED)
    model = apply(proto, unpad_stem(convolutions(proto)))
    assert ops(model) == {"Conv": 1}
    assert next(node for node in model.graph.nodes).inputs[1].shape == (4, 3, 3, 3)


def test_padding_and_taking_it_back_is_the_same_graph() -> None:
    text = "agraph (float[1, 3, 8, 8] x) => (float[1, 4, 6, 6] y) { y = Conv(x, w) }"
    proto = parse(text, weights={"w": PADDED["w"][:, :3]})
    assert ops(apply(proto, pad_stem.PASS)) == {"Pad": 1, "Conv": 1}
    assert ops(apply(proto, pad_stem.PASS, unpad_stem(convolutions(proto)))) == {"Conv": 1}


@pytest.mark.parametrize(
    ("text", "pads", "is_float"),
    [
        (STEM, [0, 0, 0, 0, 0, 1, 0, 0], False),
        (STEM, [0, 1, 0, 0, 0, 0, 0, 0], True),
        (STEM.replace("Pad(x, pads)", "Pad(x, pads, one)"), [0, 0, 0, 0, 0, 1, 0, 0], True),
        (STEM.replace("p = Pad(x", "r = Relu(x) p = Pad(r"), [0, 0, 0, 0, 0, 1, 0, 0], True),
        (
            STEM.replace("6] y)", "6] y, float[1, 4, 8, 8] z)").replace(" }", " z = Relu(p) }"),
            [0, 0, 0, 0, 0, 1, 0, 0],
            True,
        ),
    ],
    ids=["int8", "in front", "ones", "inside", "another reader"],
)
def test_other_padding_stays(text: str, pads: list[int], is_float: bool) -> None:
    proto = parse(text, weights={**PADDED, "pads": np.array(pads), "one": np.float32(1)})
    assert count_of(proto, unpad_stem(convolutions(proto) if is_float else ())) == 0
