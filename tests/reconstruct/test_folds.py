"""Gains and shifts per channel through moves and attentions: where they are exact, that they are, and that they pay."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from qdq_graphs import ORT, feeds_of, minmax, parse, plan_of, run, values_of, weight

from onnx_hyvit.calibration import inputs_of, open_source
from onnx_hyvit.errors import ConfigError
from onnx_hyvit.graph import Model, model_to_proto
from onnx_hyvit.graph.channel_spread import along_axis, axis_labels, spread_channels
from onnx_hyvit.insert_qdq import insert_qdq
from onnx_hyvit.recipes import ALL_FOLDS, Recipe
from onnx_hyvit.reconstruct.channel_stats import ChannelMoments, ChannelObserver
from onnx_hyvit.reconstruct.fold_sites import FoldSite, find_fold_sites
from onnx_hyvit.reconstruct.folds import (
    ChannelFold,
    RoundedValues,
    apply_fold,
    choose_fold,
)
from onnx_hyvit.reconstruct.granularity import choose_granularity
from onnx_hyvit.reconstruct.logit_folds import apply_logit_fold, choose_logit_fold
from onnx_hyvit.reconstruct.logit_sites import find_logit_sites
from onnx_hyvit.targets import load_target

GENERIC = load_target("generic")
RNG = np.random.default_rng(7)
SPREAD = np.geomspace(0.05, 5, 16).astype(np.float32)
SHAPES = {
    "heads": np.array([2, 6, 4, 4], np.int64),
    "flat": np.array([12, 16], np.int64),
    "other": np.array([12, 2, 8], np.int64),
    "row": np.array([-1, 16], np.int64),
}

PROJECT = "q = Gemm(x, wq, bq) k = Gemm(x, wk, bk) v = Gemm(x, wv, bv)"
HEADS = """qr = Reshape(q, heads) qt = Transpose<perm=[0,2,1,3]>(qr)
    kr = Reshape(k, heads) kt = Transpose<perm=[0,2,3,1]>(kr)
    vr = Reshape(v, heads) vt = Transpose<perm=[0,2,1,3]>(vr)"""
SCORES = "s = MatMul(qt, kt) m = Mul(s, half) a = Add(m, bias) p = Softmax<axis=-1>(a)"
CONTEXT = "o = MatMul(p, vt) ot = Transpose<perm=[0,2,1,3]>(o) of = Reshape(ot, flat) y = Gemm(of, wo, bo)"


def attention(
    project: str = PROJECT, heads: str = HEADS, scores: str = SCORES, context: str = CONTEXT, **more
) -> Model:
    """Attention of 4 heads of 4 channels over 2 x 6 tokens, with channels of very different ranges and means."""
    values = {f"w{name}": weight(16, 16, seed=index) * SPREAD for index, name in enumerate("qkv")}
    values |= {f"b{name}": 3 * SPREAD * weight(16, seed=index) * 4 for index, name in enumerate("qkv")}
    values |= {"wo": weight(16, 16, seed=4), "bo": weight(16, seed=5), "half": np.float32(0.5)}
    values |= {"bias": weight(1, 4, 6, 6, seed=6), **SHAPES, **more}
    text = f"g (float[12,16] x) => (float[12,16] y) {{ {project} {heads} {scores} {context} }}"
    return parse(text, **{name: value for name, value in values.items() if name in text.replace(",", " ")})


def moments_of(model: Model, tensor: str, axis: int) -> ChannelMoments:
    observer = ChannelObserver(axis)
    observer.update(values_of(model_to_proto(model), [tensor], feeds_of(model))[tensor])
    return observer.moments()


def any_fold(site: FoldSite) -> ChannelFold:
    """Gains and shifts of a size that no wrong rewrite survives."""
    shift = RNG.uniform(-2, 2, site.groups) if site.shift else np.zeros(site.groups)
    return ChannelFold(RNG.uniform(0.2, 5, site.groups), shift)


def folded_is_equal(model: Model, site: FoldSite, fold: ChannelFold) -> np.ndarray:
    """Writes the fold; the output must stay, and what is rounded must be the mapped channels, which are returned."""
    feeds = feeds_of(model)
    before = model_to_proto(model)
    output, values = run(before, feeds), values_of(before, [site.tensor], feeds)[site.tensor]
    apply_fold(model, site, fold)
    after = model_to_proto(model, check=True)
    np.testing.assert_allclose(run(after, feeds), output, rtol=1e-4, atol=1e-4 * np.abs(output).max())
    folded = values_of(after, [site.tensor], feeds)[site.tensor]
    groups = np.array(site.layers[0][1])
    view = [1] * folded.ndim
    view[site.axis] = -1
    wanted = (values - fold.shift[groups].reshape(view)) / fold.gain[groups].reshape(view)
    np.testing.assert_allclose(folded, wanted, rtol=1e-3, atol=1e-3)
    return folded


def sites_of(model: Model, target=ORT, folds=ALL_FOLDS) -> list[FoldSite]:
    return find_fold_sites(model, plan_of(model, target), folds)


# Attention: values


def test_values_of_an_attention_take_gains_and_shifts() -> None:
    model = attention()
    (site,) = sites_of(model)
    assert (site.kind, site.maker, site.shift, site.groups) == ("values", "v", True, 16)
    folded_is_equal(model, site, any_fold(site))


def joined_projections() -> Model:
    """Attention whose queries, keys and values are rows of one Gemm."""
    project = "z = Gemm(x, wz, bz)"
    heads = """zr = Reshape(z, three) zt = Transpose<perm=[2,0,3,1,4]>(zr) qt, kq, vt = Split<axis=0,num_outputs=3>(zt)
        q3 = Squeeze(qt, zero) k3 = Squeeze(kq, zero) v3 = Squeeze(vt, zero) kt = Transpose<perm=[0,1,3,2]>(k3)"""
    return attention(
        project,
        heads,
        SCORES.replace("qt", "q3"),
        CONTEXT.replace("vt", "v3"),
        wz=weight(16, 48),
        bz=weight(48),
        three=np.array([2, 6, 3, 4, 4], np.int64),
        zero=np.array([0], np.int64),
    )


def test_one_projection_of_all_three_is_folded_in_its_rows_of_values_only() -> None:
    model = joined_projections()
    (site,) = sites_of(model)
    assert site.rows == (-1,) * 32 + tuple(range(16)) and site.shift
    folded_is_equal(model, site, any_fold(site))


def test_channels_that_cross_covariance_mixes_share_one_gain() -> None:
    heads = """qr = Reshape(q, heads) qt = Transpose<perm=[0,2,3,1]>(qr) kr = Reshape(k, heads)
        kt = Transpose<perm=[0,2,1,3]>(kr) vr = Reshape(v, heads) vt = Transpose<perm=[0,2,3,1]>(vr)"""
    context = CONTEXT.replace("[0,2,1,3]>(o)", "[0,3,1,2]>(o)")
    model = attention(heads=heads, scores=SCORES, context=context, bias=weight(1, 4, 4, 4))
    (site,) = sites_of(model)
    assert site.groups == 4 and site.rows == tuple(np.repeat(np.arange(4), 4)) and site.shift
    folded_is_equal(model, site, any_fold(site))
    assert find_logit_sites(model, plan_of(model, GENERIC)) == []


@pytest.mark.parametrize(
    ("change", "sites", "shift"),
    [
        ({"scores": SCORES.replace("p = Softmax<axis=-1>(a)", "c = Softmax<axis=-1>(a) p = Mul(c, half)")}, 1, False),
        ({"scores": SCORES.replace("axis=-1", "axis=2")}, 1, False),
        ({"scores": SCORES.replace("p = S", "c = S") + " p = Conv(c, mix)", "mix": weight(4, 4, 1, 1)}, 1, False),
        ({"context": CONTEXT.replace("y = G", "g = G") + " y = Add(g, v)"}, 0, None),
        ({"context": CONTEXT.replace("y = G", "g = G") + " y = Add(g, of)"}, 0, None),
        ({"heads": HEADS.replace("vr = R", "r = Tanh(v) vr = R").replace("(v, h", "(r, h")}, 0, None),
        ({"context": CONTEXT.replace("of = R", "og = Elu(ot) of = R").replace("(ot, f", "(og, f")}, 0, None),
    ],
)
def test_what_else_touches_the_values_refuses_the_fold_or_the_shift(
    change: dict, sites: int, shift: bool | None
) -> None:
    model = attention(**change)
    found = sites_of(model)
    assert len(found) == sites and [site.shift for site in found] == [shift] * sites
    for site in found:
        folded_is_equal(model, site, any_fold(site))


def test_values_that_are_an_output_too_are_left_alone() -> None:
    model = attention()
    model.graph.outputs.append(model.graph.tensors()["v"])
    assert sites_of(model) == []


# Attention: queries against keys


def logits_folded(model: Model, target=GENERIC) -> tuple[np.ndarray, np.ndarray]:
    """Writes gains and a shift; output and logits must stay (to the row's constant), queries and keys must not."""
    plan, feeds = plan_of(model, target), feeds_of(model)
    (site,) = find_logit_sites(model, plan)
    before = model_to_proto(model)
    output = run(before, feeds)
    gain, rows = RNG.uniform(0.2, 5, site.groups), np.array(site.key.rows)
    shift = np.where(rows >= 0, RNG.uniform(-2, 2, len(rows)), 0.0) if site.shift else np.zeros(len(rows))
    names = [site.query.tensor, site.key.tensor]
    old = values_of(before, names, feeds)
    apply_logit_fold(model, site, gain, shift)
    after = model_to_proto(model, check=True)
    np.testing.assert_allclose(run(after, feeds), output, rtol=1e-4, atol=1e-4 * np.abs(output).max())
    new = values_of(after, names, feeds)
    np.testing.assert_allclose(new[names[0]] * gain[np.array(site.query.rows)], old[names[0]], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(new[names[1]] / gain[rows] + shift, old[names[1]], rtol=1e-3, atol=1e-3)
    return gain, shift


def test_queries_and_keys_take_opposite_gains_and_keys_a_shift() -> None:
    _, shift = logits_folded(attention())
    assert shift.all()


def test_heads_that_share_keys_share_their_gains() -> None:
    heads = HEADS.replace("kr = Reshape(k, heads)", "kr = Reshape(k, one)").replace("vr = R", "vr = R")
    model = attention(heads=heads, wk=weight(16, 4), bk=weight(4), one=np.array([2, 6, 1, 4], np.int64))
    gain, _ = logits_folded(model)
    assert len(gain) == 4


def test_factors_of_one_number_on_the_way_are_passed() -> None:
    heads = HEADS.replace("qr = R", "qs = Mul(half, q) qr = R").replace("(q, h", "(qs, h")
    logits_folded(attention(heads=heads))


@pytest.mark.parametrize(
    "scores",
    [
        SCORES.replace("m = Mul(s, half)", "m = Mul(s, bias)"),
        SCORES.replace("m = Mul(s, half)", "m = Clip(s, low, high)"),
        SCORES.replace("axis=-1", "axis=1"),
    ],
)
def test_keys_are_not_shifted_where_softmax_would_see_it(scores: str) -> None:
    model = attention(scores=scores, low=np.float32(-1), high=np.float32(1))
    _, shift = logits_folded(model)
    assert not shift.any()


def test_a_convolution_over_heads_keeps_the_shift_of_keys() -> None:
    scores = SCORES.replace("p = Softmax<axis=-1>(a)", "c = Conv(a, mix) p = Softmax<axis=-1>(c)")
    _, shift = logits_folded(attention(scores=scores, mix=weight(4, 4, 1, 1)))
    assert shift.all()


@pytest.mark.parametrize(
    "change",
    [
        {"context": CONTEXT.replace("y = G", "g = G") + " y = Add(g, k)"},
        {"heads": HEADS.replace("kr = R", "l = Tanh(k) kr = R").replace("(k, h", "(l, h")},
        {"heads": HEADS.replace("qr = R", "l = LayerNormalization(q, bo) qr = R").replace("(q, h", "(l, h")},
        {"heads": HEADS.replace("Reshape(v, heads)", "Reshape(k, heads)")},
    ],
)
def test_other_readers_and_norms_refuse_the_fold_of_logits(change: dict) -> None:
    model = attention(**change)
    assert find_logit_sites(model, plan_of(model, GENERIC)) == []


def test_queries_and_keys_that_nothing_rounds_are_left_alone() -> None:
    model = attention()
    assert "q" not in plan_of(model).activations and find_logit_sites(model, plan_of(model)) == []


def test_one_weight_scale_per_tensor_refuses_factors_per_row() -> None:
    coarse = dataclasses.replace(GENERIC, weight=dataclasses.replace(GENERIC.weight, granularity="per_tensor"))
    model = attention()
    assert find_logit_sites(model, plan_of(model, coarse)) == [] and sites_of(model, coarse) == []


# LayerNormalization and layers in front of moves

NORM = "n = LayerNormalization<axis=-1>(x, gamma, beta)"


def normed(tail: str, **more: np.ndarray) -> Model:
    values = {"gamma": SPREAD, "beta": np.linspace(-6, 9, 16, dtype=np.float32), "w": weight(16, 16), "b": weight(16)}
    text = f"g (float[12,16] x) => (float[A,B] y) {{ {NORM} {tail} }}"
    return parse(text, **{name: value for name, value in {**values, **SHAPES, **more}.items() if name in text})


@pytest.mark.parametrize(
    "tail",
    [
        "y = Gemm(n, w, b)",
        "m = Reshape(n, three) t = Transpose<perm=[1,0,2]>(m) f = Reshape(t, row) y = Gemm<transB=1>(f, w)",
        "a, c = Split<axis=0>(n, halves) r = Concat<axis=0>(c, a) y = Gemm(r, w, b)",
        "m = Reshape(n, flat) c = Gemm(m, w, b) d = Gemm(n, w, b) y = Concat<axis=0>(c, d)",
    ],
)
def test_norms_take_gains_and_shifts_through_moves(tail: str) -> None:
    more = {"three": np.array([3, 4, 16], np.int64), "halves": np.array([4, 8], np.int64)}
    model = normed(tail, **more)
    (site,) = sites_of(model)
    assert (site.kind, site.groups, site.shift) == ("norm", 16, True)
    folded_is_equal(model, site, any_fold(site))


@pytest.mark.parametrize(
    "tail",
    [
        "m = Gemm(n, w, b) y = Add(m, n)",
        "m = Reshape(n, other) k = MatMul(m, v) y = Reshape(k, flat)",
        "m = Concat<axis=0>(n, x) y = Gemm(m, w, b)",
        "t = Transpose(n) y = Gemm(t, u)",
        "m = Gemm(n, w, b) s = Softmax(n) y = Mul(m, s)",
    ],
)
def test_norms_with_other_readers_or_mixed_channels_are_left_alone(tail: str) -> None:
    assert sites_of(normed(tail, v=weight(8, 8), u=weight(12, 16))) == []


def test_a_product_without_bias_takes_no_shift() -> None:
    model = normed("y = MatMul(n, w)")
    (site,) = sites_of(model)
    assert not site.shift
    folded_is_equal(model, site, any_fold(site))


CONVS = "g (float[1,3,9,9] x) => (float[1,E,H,W] y) { c = Conv(x, a, b) MIDDLE y = Conv<MORE>(IN, w) }"


def convs(more: str, shape: tuple[int, ...], middle: str = "", last: str = "c") -> Model:
    text = CONVS.replace("MIDDLE", middle).replace("MORE", more).replace("IN", last)
    scaled = weight(16, 3, 3, 3) * SPREAD.reshape(-1, 1, 1, 1)
    return parse(text, a=scaled, b=weight(16), w=weight(*shape, seed=5))


@pytest.mark.parametrize(
    ("more", "shape", "middle", "shift"),
    [
        ("group=1", (8, 16, 1, 1), "", True),
        ("group=1", (8, 16, 3, 3), "", True),
        ("group=16", (16, 1, 3, 3), "", True),
        ("group=4", (8, 4, 1, 1), "", True),
        ("pads=[1,1,1,1]", (8, 16, 3, 3), "", False),
        ('auto_pad="SAME_UPPER"', (8, 16, 3, 3), "", False),
        ("group=1", (8, 16, 1, 1), "r = Relu(c)", False),
    ],
)
def test_layers_take_gains_and_without_padding_shifts(
    more: str, shape: tuple[int, ...], middle: str, shift: bool
) -> None:
    model = convs(more, shape, middle, "r" if middle else "c")
    (site,) = sites_of(model)
    assert (site.kind, site.groups, site.shift) == ("rows", 16, shift)
    folded_is_equal(model, site, any_fold(site))


@pytest.mark.parametrize(
    "middle", ["r = Sigmoid(c)", "r = Clip(c, a0, a6)", "r = GlobalAveragePool(c)", "r = Pad(c, p)"]
)
def test_layers_behind_other_functions_are_left_alone(middle: str) -> None:
    text = CONVS.replace("MIDDLE", middle).replace("MORE", "group=1").replace("IN", "r")
    values = {"a0": np.float32(0), "a6": np.float32(6), "p": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)}
    model = parse(text, a=weight(16, 3, 3, 3), b=weight(16), w=weight(8, 16, 1, 1), **values)
    assert sites_of(model) == []


def test_only_the_folds_that_are_asked_for_are_found() -> None:
    model = attention(project=f"{NORM} {PROJECT.replace('(x', '(n')}", gamma=SPREAD, beta=weight(16))
    assert {site.kind for site in sites_of(model)} == {"norm", "values"}
    assert sites_of(model, folds=frozenset()) == []
    assert [site.shift for site in sites_of(model, folds=frozenset({"values"}))] == [False]


# Labels


def test_labels_follow_every_move_and_stop_at_what_computes() -> None:
    model = normed("m = Reshape(n, other) t = Transpose<perm=[2,0,1]>(m) s = Softmax(t) y = Reshape(s, flat)")
    tensor = model.graph.tensors()["n"]
    labels = axis_labels(tensor, -1)
    assert labels is not None
    spread = spread_channels(model.graph, tensor, labels, model.opset)
    assert spread is not None
    (reader,) = spread.readers
    oracle = np.broadcast_to(np.arange(16), (12, 16)).reshape(12, 2, 8).transpose(2, 0, 1)
    assert reader.node.op == "Softmax" and np.array_equal(reader.labels, oracle)
    assert along_axis(labels, -1).tolist() == list(range(16)) and along_axis(reader.labels, 0) is None
    assert spread_channels(model.graph, tensor, labels, model.opset, outer={"m"}) is None


# The choice


def rounding_error(model: Model, feeds: dict[str, np.ndarray], output: np.ndarray, bits: int, target=ORT) -> float:
    plan = plan_of(model, target, activation_bits=bits)
    quantized = model_to_proto(insert_qdq(model, plan, minmax(model, plan, feeds)), check=True)
    return float(np.square(run(quantized, feeds, "none") - output).mean())


@pytest.mark.parametrize("build", [attention, lambda: normed("m = Reshape(n, flat) y = Gemm(m, w, b)")])
@pytest.mark.parametrize("target", [ORT, GENERIC])
def test_the_chosen_folds_lower_the_error_of_the_rounded_model(build, target) -> None:
    model = build()
    feeds = feeds_of(model)
    output = run(model_to_proto(model), feeds)
    plain = rounding_error(model, feeds, output, 4, target)
    source = open_source({"x": feeds["x"]}, inputs_of(model_to_proto(model)))
    chosen = choose_granularity(model, plan_of(model, target, activation_bits=4), source, folds=ALL_FOLDS, threads=1)
    assert chosen.chosen and chosen.added == ()
    np.testing.assert_allclose(run(model_to_proto(model), feeds), output, rtol=1e-4, atol=1e-4 * np.abs(output).max())
    assert rounding_error(model, feeds, output, 4, target) < 0.9 * plain


def test_without_a_spread_nothing_is_chosen() -> None:
    model = normed("y = Gemm(n, w, b)", w=np.ones((16, 16), np.float32))
    (site,) = sites_of(model)
    even = ChannelMoments(-np.ones(16), np.ones(16), np.zeros(16), np.ones(16) / 3)
    assert choose_fold(model, site, even, 15, 7) is None
    logits = attention()
    (pair,) = find_logit_sites(logits, plan_of(logits, GENERIC))
    assert choose_logit_fold(pair, even, even) is None


def test_channels_of_one_range_off_zero_are_shifted() -> None:
    model = normed("y = Gemm(n, w, b)")
    (site,) = sites_of(model)
    middle = np.linspace(-8, 8, 16)
    fold = choose_fold(model, site, ChannelMoments(middle - 1, middle + 1, middle, middle**2 + 1 / 3), 15, 7)
    assert fold is not None and np.allclose(fold.shift, middle)


def test_values_fill_the_range_that_they_share() -> None:
    moments = ChannelMoments(-SPREAD.astype(float), SPREAD.astype(float), np.zeros(16), SPREAD.astype(float) ** 2 / 3)
    values = RoundedValues(moments, rest=40.0, kept=0.5)
    none, ones = np.zeros(16), np.ones(16)
    assert values.width(values.filled(ones, none), none) == pytest.approx(40)
    assert values.error(values.filled(ones, none), none, ones, 255) < values.error(ones, none, ones, 255)


def test_keys_far_off_zero_are_moved_there() -> None:
    model = attention()
    (pair,) = find_logit_sites(model, plan_of(model, GENERIC))
    even = ChannelMoments(-np.ones(16), np.ones(16), np.zeros(16), np.ones(16) / 3)
    middle = np.linspace(4, 8, 16)
    found = choose_logit_fold(pair, even, ChannelMoments(middle - 1, middle + 1, middle, middle**2 + 1 / 3))
    assert found is not None and np.allclose(found[1], middle)


def test_moments_of_mapped_channels_are_those_of_their_values() -> None:
    values = RNG.standard_normal((50, 16)) * SPREAD + np.linspace(-3, 3, 16)
    scale, shift = RNG.uniform(0.5, 2, 16), RNG.standard_normal(16)

    def measured(array: np.ndarray) -> ChannelMoments:
        observer = ChannelObserver(-1)
        observer.update(array)
        return observer.moments()

    mapped, oracle = measured(values).mapped(scale, shift), measured((values - shift) * scale)
    for name in ("low", "high", "mean", "power"):
        np.testing.assert_allclose(getattr(mapped, name), getattr(oracle, name), rtol=1e-9, atol=1e-9)


def test_expected_extremes_are_limited_by_the_deviation_and_by_what_was_seen() -> None:
    seen = ChannelMoments(np.array([-1.0, -9.0]), np.array([1.5, 9.0]), np.array([0.5, 0.0]), np.array([0.5, 1.0]))
    expected = seen.expected(4)
    assert expected.low.tolist() == [-1.5, -4] and expected.high.tolist() == [2, 4]
    assert expected.mean is seen.mean and expected.power is seen.power


def test_a_recipe_with_an_unknown_fold_is_refused() -> None:
    with pytest.raises(ConfigError, match="no fold 'columns'"):
        Recipe("mine", "a test", folds=frozenset({"columns"}))
