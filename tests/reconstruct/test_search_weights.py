"""The search of weight scales by the error at a block's outputs, and its turns with the search of ranges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnx_hyvit import ConfigError
from onnx_hyvit.graph import load_model, model_to_proto
from onnx_hyvit.numerics import QuantSpec, fake_quantize, weight_qparams
from onnx_hyvit.recipes import SCALES_ONLY, TAKE_TURNS, Reconstruction
from onnx_hyvit.reconstruct import reconstruct
from onnx_hyvit.reconstruct.search_weights import search_weight

WEIGHT = np.random.default_rng(0).standard_normal((8, 512)).astype(np.float32)


def squared_error(values: np.ndarray) -> float:
    return float(np.square(values - WEIGHT).mean())


@pytest.mark.parametrize("axis", [None, 0])
def test_the_error_falls_to_that_of_a_dense_grid(axis: int | None) -> None:
    start = weight_qparams(WEIGHT, QuantSpec(4, signed=True, symmetric=True, axis=axis), "minmax")
    before = squared_error(fake_quantize(WEIGHT, start))
    found, values, after = search_weight(WEIGHT, start, before, squared_error)
    np.testing.assert_array_equal(values, fake_quantize(WEIGHT, found))
    assert after == pytest.approx(squared_error(values)) and after < before
    ratio = np.asarray(found.scale) / np.asarray(start.scale)
    np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-6)  # one factor for all channels
    dense = min(
        squared_error(fake_quantize(WEIGHT, replace(start, scale=start.scale * np.float32(factor))))
        for factor in np.linspace(0.3, 1.3, 101)
    )
    assert after < 1.05 * dense


def test_a_scale_that_is_best_already_stays() -> None:
    start = weight_qparams(WEIGHT, QuantSpec(8, signed=True, symmetric=True, axis=0), "minmax")
    found, values, error = search_weight(WEIGHT, start, 1.0, lambda values: 1.0)
    assert found is start and error == 1.0
    np.testing.assert_array_equal(values, fake_quantize(WEIGHT, start))


def test_turns_of_weights_and_ranges_beat_ranges_alone(ready) -> None:
    prepared, plan, qparams, source, _ = ready
    proto = model_to_proto(prepared.model)

    def run(settings: Reconstruction):
        return reconstruct(load_model(proto), plan, qparams, prepared.shapes, source, settings, threads=1)

    ranges, once, turns = (
        run(settings) for settings in (SCALES_ONLY, replace(TAKE_TURNS, rounds=1), TAKE_TURNS)
    )  # fmt: skip
    first = [result.blocks[0].error_after for result in (ranges, once, turns)]  # its inputs are the same in all
    assert first[1] < first[0] and first[2] <= first[1]
    weights = [name for name in plan.weights if name in turns.qparams]
    moved = [name for name in weights if turns.qparams[name] is not qparams[name]]
    assert moved and all(turns.qparams[name] is qparams[name] for name in set(weights) - set(moved))
    for block in turns.blocks:
        assert block.error_after <= block.error_before
        assert len({choice.tensor for choice in block.ranges}) == len(block.ranges)
        if block.ranges:
            assert block.ranges[0].error_before <= block.error_before  # of the first round, after its weights


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"search_weights": True}, "search_weights"), ({"rounds": 0}, "rounds")],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Reconstruction(**settings)
