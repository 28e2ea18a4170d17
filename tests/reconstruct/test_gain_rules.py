"""Gains by RepQ-ViT's and HyQ's rules: exact in float, and of the size that the papers' formulas give."""

from __future__ import annotations

import numpy as np
import pytest
from qdq_graphs import feeds_of, parse, plan_of, run, values_of, weight

from onnx_hyvit.graph import Model, model_to_proto
from onnx_hyvit.reconstruct.channel_stats import ChannelMoments, ChannelObserver, ChannelStats
from onnx_hyvit.reconstruct.gain_sites import GainSite
from onnx_hyvit.reconstruct.gains import apply_gains, choose_gains
from onnx_hyvit.reconstruct.norm_sites import find_norm_sites, norm_gain, shift_norms
from onnx_hyvit.reconstruct.smooth_sites import find_smooth_sites, smooth_gain

GAMMA = np.geomspace(0.05, 4, 16).astype(np.float32)
BETA = np.linspace(-2, 3, 16).astype(np.float32)
NORM = "n = LayerNormalization<axis=-1>(x, gamma, beta)"


def normed(tail: str, **more: np.ndarray) -> Model:
    text = f"g (float[6,16] x) => (float[6,16] y) {{ {NORM} {tail} }}"
    return parse(text, gamma=GAMMA, beta=BETA, **more)


def reparametrised(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """The output of the LayerNormalization before and after, which the model's own output must not tell apart."""
    feeds = feeds_of(model)
    proto = model_to_proto(model)
    before, output = values_of(proto, ["n"], feeds)["n"], run(proto, feeds)
    sites = find_norm_sites(model, plan_of(model))
    assert [site.tensor for site in sites] == ["n"]
    observer = ChannelObserver(-1)
    observer.update(before)
    gain, shift = norm_gain(observer.moments(), 255)
    shift_norms(model, sites, {"n": shift})
    assert apply_gains(model, sites, {"n": gain}) == ()
    after = model_to_proto(model)
    np.testing.assert_allclose(run(after, feeds), output, rtol=1e-4, atol=1e-4)
    return before, values_of(after, ["n"], feeds)["n"]


def scales_and_zeros(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Asymmetric uint8 scale and zero point of each channel, from the extremes."""
    low, high = values.min(0), values.max(0)
    scale = (high - low) / 255
    return scale, np.rint(-low / scale)


@pytest.mark.parametrize(
    "tail",
    ["y = Gemm(n, w, b)", "y = Gemm<transB=1>(n, w)", "m = Reshape(n, shape) y = Gemm(m, w, b)"],
)
def test_channels_behind_a_norm_get_one_range(tail: str) -> None:
    model = normed(tail, w=weight(16, 16), b=weight(16), shape=np.array([-1, 16], np.int64))
    before, after = reparametrised(model)
    scale, zero = scales_and_zeros(before)
    wanted_scale, wanted_zero = scale.mean(), np.rint(zero.mean())
    # equation 8: the codes of x / s + z are those of x' / s~ + z~
    np.testing.assert_allclose(after / wanted_scale + wanted_zero, before / scale + zero, atol=1e-3)
    assert scale.max() / scale.min() > 10


def test_a_product_without_bias_gets_the_gain_alone() -> None:
    before, after = reparametrised(normed("y = MatMul(n, w)", w=weight(16, 16)))
    ratio = scales_and_zeros(before)[0]
    np.testing.assert_allclose(after, before / (ratio / ratio.mean()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "tail",
    [
        "m = Gemm(n, w, b) y = Add(m, n)",
        "m = Reshape(n, other) k = Gemm(m, v) y = Reshape(k, shape)",
        "m = Gemm(n, w, b) s = Softmax(n) y = Mul(m, s)",
    ],
)
def test_norms_with_other_readers_are_left_alone(tail: str) -> None:
    shapes = {"shape": np.array([-1, 16], np.int64), "other": np.array([-1, 8], np.int64)}
    model = normed(tail, w=weight(16, 16), b=weight(16), v=weight(8, 8), **shapes)
    assert find_norm_sites(model, plan_of(model)) == []


def test_channels_on_one_side_of_zero_are_moved_to_the_common_range() -> None:
    low, high = np.array([2.0, -1.0]), np.array([3.0, 1.0])
    gain, shift = norm_gain(ChannelMoments(low, high, (low + high) / 2, high**2), 15)
    np.testing.assert_allclose(gain, [2 / 3, 4 / 3])  # of the spans 1 and 2, not of ranges that reach to 0
    ends = np.array([low, high]) / gain + shift / gain
    np.testing.assert_allclose(ends[:, 0], ends[:, 1], atol=0.1)  # up to the rounding of zero points


def test_dead_channels_stay_finite() -> None:
    low, high = np.array([0.0, -1.0, -0.5]), np.array([0.0, 1.0, 0.5])
    gain, shift = norm_gain(ChannelMoments(low, high, (low + high) / 2, high**2), 255)
    assert np.isfinite(gain).all() and np.isfinite(shift).all() and (gain > 0).all()


CONV = """g (float[1,16,8,8] x) => (float[1,16,H,W] y) {
    c = Conv(x, a)  s = Sigmoid(c)  m = Mul(c, s)  y = Conv<MORE>(m, w) }"""


def convs(more: str = "group=1", shape: tuple[int, ...] = (16, 16, 1, 1)) -> Model:
    scaled = weight(16, 16, 1, 1) * np.geomspace(0.1, 30, 16, dtype=np.float32).reshape(-1, 1, 1, 1)
    return parse(CONV.replace("MORE", more), a=scaled, w=weight(*shape, seed=5))


@pytest.mark.parametrize(("more", "shape"), [("group=1", (16, 16, 1, 1)), ("group=16", (16, 1, 3, 3))])
def test_convolutions_behind_an_activation_take_a_gain_exactly(more: str, shape: tuple[int, ...]) -> None:
    model = convs(more, shape)
    feeds, sites = feeds_of(model), find_smooth_sites(model, plan_of(model))
    assert [site.tensor for site in sites] == ["m"]
    output = run(model_to_proto(model), feeds)
    added = apply_gains(model, sites, {"m": np.geomspace(0.01, 1, 16)})
    assert len(added) == 1
    np.testing.assert_allclose(run(model_to_proto(model), feeds), output, rtol=1e-4, atol=1e-4 * np.abs(output).max())


def test_other_convolutions_are_no_sites() -> None:
    model = convs("pads=[1,1,1,1]", (16, 16, 3, 3))
    assert find_smooth_sites(model, plan_of(model)) == []


def test_smooth_gain_is_on_the_closed_form_and_lowers_the_error() -> None:
    model = convs()
    observer = ChannelObserver(1)
    observer.update(values_of(model_to_proto(model), ["m"], feeds_of(model))["m"])
    stats, conv = observer.stats(), next(node for node in model.graph.nodes if node.name == "y")
    gain = smooth_gain([conv], stats, 15, 7)
    assert gain is not None
    reach = np.maximum(stats.high, -stats.low)
    largest = np.abs(conv.inputs[1].values).max((0, 2, 3))
    forms = [reach**t / largest ** (1 - t) for t in np.linspace(0, 1, 11)]
    assert any(np.allclose(gain, np.clip(form / form.max(), 1e-3, 1)) for form in forms)
    assert smooth_gain([conv], ChannelStats(-np.ones(16), np.ones(16), np.ones(16)), 15, 10**6) is None


@pytest.mark.parametrize("rule", ["search", "smooth"])
def test_channels_that_nothing_reads_have_no_say_in_the_gains(rule: str) -> None:
    """They repeat others, as padded ones do."""
    model = convs()
    observer = ChannelObserver(1)
    observer.update(values_of(model_to_proto(model), ["m"], feeds_of(model))["m"])
    stats, conv = observer.stats(), next(node for node in model.graph.nodes if node.name == "y")
    gains = []
    for added in (0, 8):
        channels = np.arange(16 + added) % 16
        wide = ChannelStats(*(values[channels] for values in (stats.low, stats.high, stats.power)))
        conv.inputs[1].values = np.pad(weight(16, 16, 1, 1, seed=5), ((0, 0), (0, added), (0, 0), (0, 0)))
        if rule == "smooth":
            found = smooth_gain([conv], wide, 15, 7)
        else:
            site = GainSite("m", "consumer", 1, 16 + added, ("y",), "affine")
            found = choose_gains(model, [site], {"m": wide}, 15, 7)["m"]
        assert found is not None
        gains.append(found[:16] / found[:16].max())
    assert gains[0].min() < 0.5
    np.testing.assert_allclose(gains[1], gains[0], rtol=1e-6)
