"""``auto`` keeps the weighting that leaves the outputs closer on samples that the search did not see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from qdq_graphs import parse, weight
from reconstruct_cases import DATA, graph, prepared_for

import onnx_hyvit
from onnx_hyvit.config import QuantConfig
from onnx_hyvit.errors import ConfigError
from onnx_hyvit.recipes import SCALES_ONLY, Reconstruction, find_recipe, with_weighting
from onnx_hyvit.reconstruct import BlockCache, reconstruct, run_key
from onnx_hyvit.reconstruct import engine as engine_module
from onnx_hyvit.reconstruct.layers import find_layers
from onnx_hyvit.reconstruct.weighting import Split, compare_weightings, metrics_of, split_samples
from onnx_hyvit.request import open_calibration

AUTO = Reconstruction(metric="auto", confirm=False)


@pytest.mark.parametrize(
    ("rows", "most", "expected"),
    [
        ([8] * 8, 32, Split(4, 32, 32)),
        ([8] * 4, 32, Split(3, 24, 8)),
        ([1] * 8, 32, Split(6, 6, 2)),
        ([16, 16, 4], 32, Split(1, 16, 20)),
        ([8], 32, Split(1, 8, 0)),
    ],
    ids=["more-than-searched", "a-quarter", "batches-of-one", "uneven", "one-batch"],
)
def test_the_samples_held_out_are_those_behind_the_search(rows, most, expected):
    assert split_samples(rows, most) == expected


def test_only_samples_held_out_decide():
    each = [np.array([0.0, 0.0, 0.04, 0.04]), np.array([9.0, 9.0, 0.01, 0.01])]
    found = compare_weightings(("mse", "fisher"), each, Split(1, 2, 2))
    assert found.best == "fisher" and found.root == pytest.approx({"mse": 0.2, "fisher": 0.1})
    assert found.to_dict()["samples"] == 2 and found.held_out
    everything = compare_weightings(("mse", "fisher"), each, Split(2, 4, 0))
    assert everything.best == "mse" and everything.samples == 4 and not everything.held_out


def test_the_first_wins_a_tie_and_a_search_is_needed_to_compare():
    assert compare_weightings(("mse", "fisher"), [np.ones(4)] * 2, Split(1, 2, 2)).best == "mse"
    assert metrics_of(replace(AUTO, search=False)) == ("mse",) and metrics_of(AUTO) == ("mse", "fisher")


def values_of(result):
    """All numbers of a result."""
    return {name: (found.scale.tobytes(), found.zero_point.tobytes()) for name, found in result.qparams.items()} | {
        name: value.tobytes() for name, value in result.parameters.items()
    }


def run(ready, settings, monkeypatch=None, favour=None, source=None, **how):
    """Reconstruct; ``favour`` makes the divergence of one of the two weightings least."""
    prepared, plan, qparams, own, _ = ready
    if favour is not None:
        start, *ends = np.full(16, 9.0), np.full(16, 1.0), np.full(16, 1.0)
        ends[favour] = np.full(16, 0.5)
        monkeypatch.setattr(engine_module, "_divergences", lambda *_: [start, *ends])
    return reconstruct(prepared.model, plan, qparams, prepared.shapes, source or own, settings, threads=1, **how)


@pytest.mark.parametrize("favour", [0, 1], ids=["mse", "fisher"])
def test_the_result_is_that_of_the_weighting_which_is_told(ready, monkeypatch, favour):
    found = run(ready, AUTO, monkeypatch, favour)
    name = ("mse", "fisher")[favour]
    assert found.weighting.startswith(name) and found.compared.best == name
    searched = Reconstruction(metric="mse", confirm=False, search_samples=12)  # 16 samples in batches of 4
    same = values_of(found) == values_of(run(ready, searched))
    assert same == (name == "mse")
    report = found.to_dict()
    assert report["compared"]["samples"] == 4 and report["compared"]["held_out"] and len(found.blocks) > 1


def test_samples_held_out_change_no_range(ready, monkeypatch):
    data = ready[4].copy()
    data[12:] *= 3.0
    other = open_calibration(ready[0].model, {"x": data}, QuantConfig(samples=None, batch_size=4))
    auto = replace(SCALES_ONLY, metric="auto")
    for favour in (0, 1):
        plain, changed = (run(ready, auto, monkeypatch, favour, source) for source in (None, other))
        assert values_of(plain) == values_of(changed)
    everywhere = replace(auto, metric="mse")
    assert values_of(run(ready, everywhere)) != values_of(run(ready, everywhere, source=other))


def test_the_divergence_of_the_choice_is_the_least(ready):
    found = run(ready, AUTO)
    assert found.compared.root[found.compared.best] == min(found.compared.root.values())
    assert set(found.compared.divergence) == {"mse", "fisher"} and found.weighting.startswith(found.compared.best)


def test_an_interrupted_comparison_goes_on_where_it_stopped(ready, tmp_path):
    whole, seen = run(ready, AUTO), []

    def stop(done: int, total: int, text: str) -> None:
        seen.append((done, total))
        if done == total // 2 + 1:  # the second weighting has begun
            raise KeyboardInterrupt

    cache = BlockCache(tmp_path, run_key("auto"))
    with pytest.raises(KeyboardInterrupt):
        run(ready, AUTO, cache=cache, progress=stop)
    blocks = len(whole.blocks)
    assert seen == [(done, 2 * blocks) for done in range(1, blocks + 2)]
    loaded = []
    original = cache.load
    cache.load = lambda index: loaded.append((index, original(index) is not None)) or original(index)
    resumed = run(ready, AUTO, cache=cache)
    assert loaded == [(index, index <= blocks) for index in range(2 * blocks)]
    assert values_of(resumed) == values_of(whole) and resumed.to_dict() == whole.to_dict()


def test_a_weighting_overrides_the_recipe():
    recipe = find_recipe("q-hyvit")
    assert with_weighting(recipe, None) is recipe
    assert with_weighting(recipe, "fisher").reconstruction == replace(recipe.reconstruction, metric="fisher")
    with pytest.raises(ConfigError, match=r"'minmax' reconstructs no blocks; those that do are .*q-hyvit"):
        with_weighting(find_recipe("minmax"), "mse")
    with pytest.raises(ConfigError, match="weighting"):
        QuantConfig(weighting="cosine")


def test_quantize_takes_the_weighting(tiny_model, tiny_data, rules_target):
    config = QuantConfig(bits="w4a4", samples=16, weighting="auto", target=rules_target, threads=1, verify=False)
    found = onnx_hyvit.quantize(tiny_model, None, calibration=tiny_data, config=config).report
    compared = found["reconstruction"]["compared"]
    assert compared["samples"] == 4 and compared["held_out"] and len(compared["divergence"]) == 2
    assert found["config"]["weighting"] == "auto"
    plain = onnx_hyvit.quantize(tiny_model, None, calibration=tiny_data, config=config.replace(weighting="fisher"))
    assert plain.report["reconstruction"]["weighting"].startswith("fisher")
    assert plain.report["reconstruction"]["compared"] is None


HALVES = """g (float[N,16,4,4] x) => (float[N,6] y) {
    c = Conv(x, w, b) l = Slice(c, starts, ends, axes) p = GlobalAveragePool(l) f = Flatten(p) y = Gemm(f, v, d) }"""


def test_positions_that_no_output_reads_hardly_count_where_weights_are_rounded():
    """The head reads the left half of a map, whose right half has other channels that are large."""
    rng = np.random.default_rng(3)
    large = np.ones((1, 16, 1, 4), np.float32)
    large[:, :8, :, :2], large[:, 8:, :, 2:] = 8, 8
    data = (rng.standard_normal((64, 16, 4, 4)) * large).astype(np.float32)
    halves = parse(
        HALVES,
        w=weight(24, 16, 1, 1),
        b=np.zeros(24, np.float32),
        v=8 * weight(24, 6, seed=1),
        d=np.zeros(6, np.float32),
        starts=np.array([0]),
        ends=np.array([2]),
        axes=np.array([3]),
    )
    ready = prepared_for("w2a8", halves, data, biases=0)
    rounding = Reconstruction(search=False, ridge=False, refit=False)
    fisher = replace(rounding, metric="fisher")
    plain, weighted = (run(ready, replace(fisher, weigh_positions=weigh)) for weigh in (False, True))
    assert weighted.kept and plain.kept and values_of(plain) == values_of(run(ready, rounding))
    assert weighted.divergence_after < 0.9 * plain.divergence_after


def test_weights_of_positions_are_repeated_for_every_sample():
    prepared, plan, *_ = prepared_for("w8a8", graph(), DATA)
    layers = {layer.node: layer for layer in find_layers(prepared.model, plan, prepared.shapes)}
    conv = next(layer for layer in layers.values() if layer.geometry is not None)
    positions = np.arange(64, dtype=np.float32).reshape(1, 8, 8)
    found = conv.over_positions(positions, np.zeros((3, 16, 8, 8), np.float32))
    assert found.shape == (3, 8, 8) and all(np.array_equal(sample, positions[0]) for sample in found)
    linear = next(layer for layer in layers.values() if layer.geometry is None)
    tokens = linear.over_positions(np.array([1.0, 2.0]), np.zeros((6, 32), np.float32))
    assert tokens.tolist() == [1, 2, 1, 2, 1, 2]
    assert linear.over_positions(np.ones(4), np.zeros((6, 32), np.float32)) is None
