"""Granularity by measured error: the error is that of the quantized file, and what is chosen is the best of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from qdq_graphs import ORT, feeds_of, parse, plan_of, run, shapes_of, weight
from test_folds import SPREAD, attention, joined_projections, normed

from onnx_hyvit.activation_scales import activation_qparams, weight_scales
from onnx_hyvit.calibration import inputs_of, open_source
from onnx_hyvit.graph import Model, model_to_proto
from onnx_hyvit.insert_qdq import insert_qdq
from onnx_hyvit.recipes import FOLDS, SCALES_ONLY, Recipe, find_recipe
from onnx_hyvit.reconstruct import Codes, Granularity, Measure, choose_granularity
from onnx_hyvit.reconstruct.channel_stats import ChannelMoments
from onnx_hyvit.reconstruct.fold_sites import find_fold_sites
from onnx_hyvit.reconstruct.option_values import OptionRegion, OptionValues, written
from onnx_hyvit.reconstruct.options import fold_candidate
from onnx_hyvit.targets import load_target

MSE = find_recipe("mse")
CODES = Codes(MSE.ranges, MSE.weights)
BITS = 4


def chosen_for(
    model: Model, target=ORT, metric="mse", folds=FOLDS, feeds=None
) -> tuple[Granularity, dict[str, np.ndarray]]:
    """Measured choices for 4-bit activations, written into ``model``, and the data."""
    feeds = feeds or feeds_of(model)
    source = open_source(feeds, inputs_of(model_to_proto(model)))
    measure = Measure(shapes_of(model), CODES, dataclasses.replace(SCALES_ONLY, metric=metric))
    plan = plan_of(model, target, activation_bits=BITS)
    return choose_granularity(model, plan, source, folds=folds, measure=measure, threads=1), feeds


def error_of_file(model: Model, feeds: dict[str, np.ndarray], exact: np.ndarray, target=ORT) -> float:
    """Squared error of the quantized file's output relative to its size: what the search should have measured."""
    plan = dataclasses.replace(plan_of(model, target, activation_bits=BITS), biases={})  # the search leaves them float
    source = open_source(feeds, inputs_of(model_to_proto(model)))
    scales = activation_qparams(model_to_proto(model), plan, source, MSE) | weight_scales(model, plan, MSE)
    found = run(model_to_proto(insert_qdq(model, plan, scales), check=True), feeds, "none")
    return float(np.square(found - exact).sum() / np.square(exact).sum())


TAILS = ("m = Reshape(n, flat) y = Gemm(m, w, b)", "c = Gemm(n, w, b) y = Gemm(c, v, b)")


@pytest.mark.parametrize("target", [ORT, load_target("generic")], ids=["ort-x86", "generic"])
@pytest.mark.parametrize(
    "build", [attention, *(lambda tail=tail: normed(tail, v=weight(16, 16, seed=3)) for tail in TAILS)]
)
def test_errors_are_those_of_the_quantized_file(build, target) -> None:
    model = build()
    feeds = feeds_of(model)
    exact = run(model_to_proto(model), feeds)
    plain = error_of_file(model, feeds, exact, target)
    found, _ = chosen_for(model, target)
    (choice,) = [choice for choice in found.chosen if choice.error_before is not None]
    np.testing.assert_allclose(run(model_to_proto(model), feeds), exact, rtol=1e-4, atol=1e-4 * np.abs(exact).max())
    assert choice.error_before == pytest.approx(plain, rel=1e-3)
    assert choice.error_after == pytest.approx(error_of_file(model, feeds, exact, target), rel=1e-3)
    assert choice.error_after < 0.9 * choice.error_before


def test_channels_of_one_range_around_zero_keep_one_scale() -> None:
    """Each sample has every value of a grid in every channel, whatever a gain or a shift would be fitted to."""
    model = normed("y = Gemm(n, w, b)", gamma=np.ones(16, np.float32), beta=np.zeros(16, np.float32))
    rows = np.array([np.roll(np.linspace(-1, 1, 16, dtype=np.float32), step) for step in range(12)])
    found, _ = chosen_for(model, feeds={"x": rows})
    assert found.sites == 1 and not found.chosen


def test_a_scale_for_each_head_is_an_option() -> None:
    """Channels of a head are alike, and the values of one head are 50 times those of another."""
    heads = np.repeat([0.1, 5.0, 0.1, 1.0], 4).astype(np.float32)
    model = attention(wv=weight(16, 16, seed=2) * heads, bv=np.zeros(16, np.float32))
    (site,) = find_fold_sites(model, plan_of(model), FOLDS)
    assert site.heads == tuple(np.repeat(range(4), 4))
    found, _ = chosen_for(model, folds=frozenset({"values"}))
    (choice,) = found.chosen
    assert choice.granularity in ("head", "channel") and choice.error_after < 0.9 * choice.error_before


def test_the_groups_of_heads_survive_a_tensor_of_all_three() -> None:
    model = joined_projections()
    (site,) = find_fold_sites(model, plan_of(model), FOLDS)
    assert site.heads == tuple(np.repeat(range(4), 4)) and len(site.heads) == site.groups


def test_one_head_is_no_granularity_of_its_own() -> None:
    one = np.array([2, 6, 1, 16], np.int64)
    model = attention(heads=HEADS_OF_ONE, one=one, bias=weight(1, 1, 6, 6))
    (site,) = find_fold_sites(model, plan_of(model), FOLDS)
    assert site.heads == ()


HEADS_OF_ONE = """qr = Reshape(q, one) qt = Transpose<perm=[0,2,1,3]>(qr)
    kr = Reshape(k, one) kt = Transpose<perm=[0,2,3,1]>(kr)
    vr = Reshape(v, one) vt = Transpose<perm=[0,2,1,3]>(vr)"""


@pytest.mark.parametrize("metric", ["mse", "fisher", "cosine"])
def test_every_metric_finds_a_spread_of_ranges(metric) -> None:
    model = normed("m = Reshape(n, flat) y = Gemm(m, w, b)")
    found, _ = chosen_for(model, metric=metric)
    (choice,) = found.chosen
    assert (choice.granularity, choice.fold) == ("channel", "affine") and choice.error_after < choice.error_before


def test_the_same_data_give_the_same_choices_and_values() -> None:
    first, second = attention(), attention()
    assert chosen_for(first)[0] == chosen_for(second)[0]
    serialized = [model_to_proto(model).SerializeToString(deterministic=True) for model in (first, second)]
    assert serialized[0] == serialized[1]


def test_a_layer_whose_weight_another_node_reads_is_left_to_the_closed_form() -> None:
    """The options would change what the other node reads, too: no constant of the candidate's own."""
    model = parse(
        """g (float[12,16] x) => (float[12,16] y, float[12,16] z) {
        n = LayerNormalization<axis=-1>(x, gamma, beta) y = Gemm(n, w, b) z = Gemm(x, w, b) }""",
        gamma=SPREAD,
        beta=np.zeros(16, np.float32),
        w=weight(16, 16),
        b=weight(16),
    )
    found, _ = chosen_for(model)
    assert all(choice.error_before is None for choice in found.chosen)


@pytest.mark.parametrize(
    ("maker", "reader", "shape"),
    [
        ("m = Mul(x, g) n = Add(m, c)", "y = MatMul(n, w)", (16,)),
        ("m = Mul(x, g) n = Add(m, c)", "p = MatMul(n, w) q = MatMul(n, v) y = Add(p, q)", (16,)),
        ("m = Mul(x, one) n = Add(m, c)", "y = MatMul(n, w)", (16,)),
        ("t = Transpose<perm=[0,2,1]>(x) m = Mul(t, g) n = Add(m, c)", "y = Conv(n, k)", (16, 1)),
    ],
    ids=["matmul", "two-readers", "one-number", "conv-1d"],
)
def test_an_affine_of_fewer_axes_than_its_tensor_takes_a_gain(maker: str, reader: str, shape: tuple[int, ...]) -> None:
    values = {"g": SPREAD.reshape(shape), "c": np.linspace(0, 1, 16, dtype=np.float32).reshape(shape)}
    values |= {"w": weight(16, 16), "v": weight(16, 16, seed=3), "k": weight(16, 16, 1), "one": np.full(1, 0.3)}
    text = f"g (float[4,6,16] x) => (float[A,B,C] y) {{ {maker} {reader} }}"
    used = {name: np.asarray(value, np.float32) for name, value in values.items() if f"{name})" in text}
    data = np.random.default_rng(0).standard_normal((4, 6, 16)).astype(np.float32)
    model = parse(text, **used)
    feeds = {"x": data * SPREAD}
    exact = run(model_to_proto(model), feeds)
    found, _ = chosen_for(model, feeds=feeds)
    (choice,) = found.chosen
    assert choice.tensor == "n" and choice.error_after < choice.error_before
    np.testing.assert_allclose(run(model_to_proto(model), feeds), exact, rtol=1e-4, atol=1e-4 * np.abs(exact).max())
    assert choice.error_after == pytest.approx(error_of_file(model, feeds, exact), rel=1e-3)


def test_ranges_are_those_of_each_option_whatever_was_tried_before() -> None:
    """After an option that moves nothing, too."""
    model = normed("y = Gemm(n, w, b)")
    plan, feeds = plan_of(model, activation_bits=BITS), feeds_of(model)
    values = OptionValues(model, plan, {("n", 1): "gamma", ("n", 2): "beta", ("y", 1): "w"}, CODES)
    gain = SPREAD / SPREAD.mean()
    folded = {"gamma": values.floats["gamma"] / gain, "beta": values.floats["beta"] / gain}
    folded["w"] = values.floats["w"] * gain[:, None]

    def outputs(*tried: dict[str, np.ndarray]) -> np.ndarray:
        region = OptionRegion(values, ["x"], ["y"], [feeds], 1)
        return [next(region.run(changed))[1]["y"] for changed in tried][-1]

    plain = outputs({})
    assert np.array_equal(outputs({"gamma": values.floats["gamma"]}, folded), outputs(folded))
    assert not np.array_equal(outputs(folded), plain)


def test_options_change_something() -> None:
    model = normed("y = Gemm(n, w, b)")
    (site,) = find_fold_sites(model, plan_of(model), frozenset({"norm"}))
    even = ChannelMoments(-np.ones(16), np.ones(16), np.zeros(16), np.ones(16) / 3)
    first, *others = fold_candidate(model, site, even, 15, 7).options()
    assert first.write is None and first.granularity == "layer"
    before = {node.name: [tensor.name for tensor in node.inputs] for node in model.graph.nodes}
    for option in others:
        changed = written(model.graph, option.write)
        gain = changed["y", 1] / weight(16, 16)
        assert np.abs(gain - 1).max() > 1e-6
    assert {node.name: [tensor.name for tensor in node.inputs] for node in model.graph.nodes} == before


def test_trying_a_change_leaves_the_graph_as_it_was() -> None:
    model = normed("y = Gemm(n, w, b)")
    before = model_to_proto(model)
    node = model.graph.nodes[0]

    def write() -> None:
        node.inputs[1] = type(node.inputs[1])("other", 2 * SPREAD)

    changed = written(model.graph, write)
    assert list(changed) == [("n", 1)] and np.array_equal(changed["n", 1], 2 * SPREAD)
    assert model_to_proto(model) == before
    written(model.graph, write, keep=True)
    assert any(
        np.array_equal(onnx.numpy_helper.to_array(t), 2 * SPREAD) for t in model_to_proto(model).graph.initializer
    )


def test_channels_that_cross_from_block_to_block_are_measured_over_both() -> None:
    """Two transformer layers in a row, then a head: each norm is read in the block that it is in, or in the next."""
    layer = """n{i} = LayerNormalization<axis=-1>({x}, gamma, beta) h{i} = Gemm(n{i}, w{i}a, b) e{i} = Gelu(h{i})
        o{i} = Gemm(e{i}, w{i}b, b) r{i} = Add({x}, o{i})"""
    text = " ".join(layer.format(i=i, x="x" if i == 0 else f"r{i - 1}") for i in range(3))
    weights = {f"w{i}{side}": weight(16, 16, seed=i) for i in range(3) for side in "ab"}
    model = parse(
        f"g (float[12,16] x) => (float[12,16] y) {{ {text} n = LayerNormalization<axis=-1>(r2, gamma, beta) "
        "y = Gemm(n, wy, b) }",
        gamma=SPREAD,
        beta=np.zeros(16, np.float32),
        b=weight(16),
        wy=weight(16, 16, seed=9),
        **weights,
    )
    feeds = feeds_of(model)
    exact = run(model_to_proto(model), feeds)
    plain = error_of_file(model, feeds, exact)
    found, _ = chosen_for(model)
    measured = [choice for choice in found.chosen if choice.error_before is not None]
    assert {choice.tensor for choice in measured} == {"n0", "n1", "n2", "n"}
    np.testing.assert_allclose(run(model_to_proto(model), feeds), exact, rtol=1e-3, atol=1e-4 * np.abs(exact).max())
    assert error_of_file(model, feeds, exact) < 0.9 * plain


def test_the_recipe_of_the_paper_measures_what_it_chooses() -> None:
    assert find_recipe("q-hyvit-paper").measure_gains
    with pytest.raises(Exception, match="measure_gains"):
        Recipe("x", "measures without a metric", gains=True, measure_gains=True)
