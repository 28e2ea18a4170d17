"""Regions of channels: which are found, and what padding them does."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from exactness import assert_same, parse

from onnx_hyvit.graph import Model, load_model, model_to_proto
from onnx_hyvit.graph.channel_regions import ChannelRegion, find_channel_regions
from onnx_hyvit.passes import run_passes
from onnx_hyvit.passes.layout import pad_channels, padded_sizes, resize_channels
from onnx_hyvit.runtime import observe

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "v": normal(24, 8, 1, 1),
    "b": normal(24),
    "k": normal(24, 1, 3, 3),
    "g": normal(24, 2, 3, 3),
    "w": normal(8, 24, 1, 1),
    "s1": normal(4, 24, 1, 1),
    "s2": normal(24, 4, 1, 1),
    "r": normal(24, 24, 1, 1),
    "one": normal(1, 8, 1, 1),
    "c": normal(1, 24, 1, 1),
    "half": np.array(0.5, np.float32),
    "low": np.array(0, np.float32),
    "gamma": np.abs(normal(24)),
    "beta": normal(24),
    "up": np.array([1, 1, 2, 2], np.float32),
    "sizes": np.array([1, 24, 12, 12]),
    "around": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "behind": np.array([0, 0, 0, 0, 0, 8, 0, 0]),
    "space": np.array([2, 3]),
    "channel": np.array([1]),
    "flat": np.array([1, 24, 36]),
    "image": np.array([1, 24, 6, 6]),
}
DEPTHWISE = "Conv<group=24, pads=[1,1,1,1]>"


def model(body: str, outputs: str = "", batch: str = "1") -> onnx.ModelProto:
    """``v`` makes 24 channels ``a`` of 8, ``body`` makes ``z`` of them, ``w`` reads that."""
    return parse(
        f"""agraph (float[{batch}, 8, 6, 6] x) => (float[{batch}, 8, h, u] y{outputs}) {{
            a = Conv(x, v, b) {body} y = Conv(z, w) }}""",
        weights=WEIGHTS,
    )


def regions_of(proto: onnx.ModelProto) -> tuple[Model, list[ChannelRegion]]:
    """The loaded model and its regions whose convolutions have no whole blocks."""
    loaded = load_model(proto)
    found = find_channel_regions(loaded.graph, observe(model_to_proto(loaded)).shapes)
    return loaded, [region for region in found if padded_sizes(region)]


def padded(proto: onnx.ModelProto, batches: tuple[int, ...] = (1,)) -> Model:
    """The model with its one region padded; outputs are compared."""
    loaded, (region,) = regions_of(proto)
    run_passes(loaded, [pad_channels({region: max(padded_sizes(region))})])
    assert_same(proto, model_to_proto(loaded, check=True), batches)
    return loaded


def weights(loaded: Model) -> Mapping[str, np.ndarray]:
    """Weights by what reads them."""
    return {node.outputs[0].name: node.inputs[1].values for node in loaded.graph.nodes if node.op == "Conv"}


EXCITED = f"""m = {DEPTHWISE}(a, k, b) n = HardSwish(m) p = GlobalAveragePool(n) q = Conv(p, s1)
    t = Relu(q) e = Conv(t, s2, b) o = Sigmoid(e) z = Mul(n, o)"""
MATCHES = {
    "depthwise": f"z = {DEPTHWISE}(a, k)",
    "activations": f"m = Relu(a) n = {DEPTHWISE}(m, k) o = Clip(n, low) z = HardSwish(o)",
    "silu": f"m = {DEPTHWISE}(a, k, b) s = Sigmoid(m) z = Mul(m, s)",
    "excitation": EXCITED,
    "mean": EXCITED.replace("GlobalAveragePool(n)", "ReduceMean(n, space)"),
    "residual": f"m = {DEPTHWISE}(a, k) n = Conv(m, r, b) z = Add(a, n)",
    "star": f"m = {DEPTHWISE}(a, k) n = Conv(m, r) o = Conv(m, r, b) p = Relu(n) q = Mul(p, o) z = Add(a, q)",
    "constants": f"m = {DEPTHWISE}(a, k) n = Mul(c, m) o = Add(n, half) z = Div(o, c)",
    "norm": f"m = {DEPTHWISE}(a, k) z = BatchNormalization(m, gamma, beta, beta, gamma)",
    "pooling": f"m = {DEPTHWISE}(a, k) n = Pad(m, around) z = MaxPool<kernel_shape=[2,2]>(n)",
    "resize": f'm = {DEPTHWISE}(a, k) z = Resize<mode="linear">(m, , up)',
    "sizes": f'm = {DEPTHWISE}(a, k) z = Resize<mode="linear">(m, , , sizes)',
    "spatial gate": f"m = {DEPTHWISE}(a, k) n = Conv(x, one) o = Sigmoid(n) z = Mul(m, o)",
}
OTHERS = {
    "whole blocks": "z = Relu(a)",
    "groups": "z = Conv<group=12, pads=[1,1,1,1]>(a, g)",
    "softmax": f"m = {DEPTHWISE}(a, k) z = Softmax<axis=1>(m)",
    "mean of channels": f"m = {DEPTHWISE}(a, k) n = ReduceMean(m, channel) z = Mul(m, n)",
    "reshape": f"m = {DEPTHWISE}(a, k) n = Reshape(m, flat) z = Reshape(n, image)",
    "transpose": f"m = {DEPTHWISE}(a, k) n = Transpose<perm=[0,2,3,1]>(m) z = Transpose<perm=[0,3,1,2]>(n)",
    "slice": f"m = {DEPTHWISE}(a, k) n, o = Split<axis=1, num_outputs=2>(m) z = Concat<axis=1>(n, o)",
    "norm over channels": f"m = {DEPTHWISE}(a, k) z = LpNormalization<axis=1>(m)",
    "computed weights": f"i = Abs(k) z = {DEPTHWISE}(a, i)",
}


@pytest.mark.parametrize("body", MATCHES.values(), ids=MATCHES)
def test_a_region_is_found_and_padded(body: str) -> None:
    loaded = padded(model(body))
    depthwise = [node for node in loaded.graph.nodes if node.attrs.get("group", 1) > 1]
    assert [node.attrs["group"] for node in depthwise] == [32]
    assert [node.inputs[1].shape for node in depthwise] == [(32, 1, 3, 3)]


@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS)
def test_other_channels_are_left_alone(body: str) -> None:
    assert regions_of(model(body))[1] == []


def test_what_the_user_reads_is_left_alone() -> None:
    assert regions_of(model(f"m = {DEPTHWISE}(a, k) z = Relu(m)", outputs=", float[1, 24, 6, 6] m"))[1] == []


def test_channels_of_the_input_are_left_alone() -> None:
    text = f"agraph (float[1, 24, 6, 6] x) => (float[1, 8, 6, 6] y) {{ m = {DEPTHWISE}(x, k) y = Conv(m, w) }}"
    assert regions_of(parse(text, weights=WEIGHTS))[1] == []


def test_a_free_batch_stays_free() -> None:
    padded(model(EXCITED, batch="N"), batches=(1, 3))


def test_new_channels_repeat_the_first_ones_and_nothing_reads_them() -> None:
    loaded = padded(model(f"m = {DEPTHWISE}(a, k) z = Sigmoid(m)"))
    made, each, read = weights(loaded).values()
    np.testing.assert_array_equal(made, np.concatenate([WEIGHTS["v"], WEIGHTS["v"][:8]]))
    np.testing.assert_array_equal(each, np.concatenate([WEIGHTS["k"], WEIGHTS["k"][:8]]))
    np.testing.assert_array_equal(read, np.pad(WEIGHTS["w"], ((0, 0), (0, 8), (0, 0), (0, 0))))


def test_maps_with_more_channels_have_other_names_and_shapes() -> None:
    loaded = padded(model(f"m = {DEPTHWISE}(a, k) z = Sigmoid(m)"))
    shapes = observe(model_to_proto(loaded)).shapes
    assert {name for name, shape in shapes.items() if shape == (1, 32, 6, 6)} == {"a_padded", "m_padded", "z_padded"}


@pytest.mark.parametrize("body", MATCHES.values(), ids=MATCHES)
def test_padding_can_be_taken_back(body: str) -> None:
    proto = model(body)
    loaded, (region,) = regions_of(proto)
    before = {name: values.copy() for name, values in weights(loaded).items()}
    resize_channels(resize_channels(region, 32), 24)
    assert_same(proto, model_to_proto(loaded, check=True))
    for name, values in weights(loaded).items():
        np.testing.assert_array_equal(values, before[name])


def test_a_pointwise_convolution_needs_fewer_channels() -> None:
    text = "agraph (float[1, 8, 6, 6] x) => (float[1, 8, 6, 6] y) { a = Conv(x, v) z = Relu(a) y = Conv(z, w) }"
    proto = parse(text, weights={"v": normal(18, 8, 1, 1), "w": normal(8, 18, 1, 1)})
    assert [node.inputs[1].shape[:2] for node in padded(proto).graph.nodes if node.op == "Conv"] == [(20, 8), (8, 20)]


def test_neighbouring_regions_are_padded_at_both_ends_of_a_convolution() -> None:
    text = """agraph (float[1, 8, 6, 6] x) => (float[1, 8, 6, 6] y) {
        a = Conv(x, v) c = Relu(a) d = Conv(c, m) e = Relu(d) y = Conv(e, w) }"""
    given = {"v": normal(18, 8, 1, 1), "m": normal(10, 18, 1, 1), "w": normal(8, 10, 1, 1)}
    proto = parse(text, weights=given)
    loaded, regions = regions_of(proto)
    run_passes(loaded, [pad_channels({region: max(padded_sizes(region)) for region in regions})])
    assert_same(proto, model_to_proto(loaded, check=True))
    assert [node.inputs[1].shape[:2] for node in loaded.graph.nodes if node.op == "Conv"] == [
        (20, 8),
        (12, 20),
        (8, 12),
    ]


def test_few_channels_are_repeated_as_often_as_needed() -> None:
    text = f"""agraph (float[1, 8, 6, 6] x) => (float[1, 8, 6, 6] y) {{
        a = Conv(x, v) z = {DEPTHWISE.replace("24", "6")}(a, k) y = Conv(z, w) }}"""
    given = {"v": normal(6, 8, 1, 1), "k": normal(6, 1, 3, 3), "w": normal(8, 6, 1, 1)}
    loaded = padded(parse(text, weights=given))
    assert weights(loaded)["a_padded"].shape == (16, 8, 1, 1)
