"""``--bits auto``: the choice by bytes and divergence, the limit kept, the widths told and really in the file."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import numpy_helper
from qdq_graphs import parse
from test_mixed_precision import DATA, GRAPH, kl, weights

import onnx_hyvit
from onnx_hyvit import keep_fast
from onnx_hyvit.config import QuantConfig
from onnx_hyvit.graph import model_to_proto
from onnx_hyvit.graph.int4 import is_int4
from onnx_hyvit.precision import Effects, Rounding, choose_widths
from onnx_hyvit.runtime import Ratio, make_session
from onnx_hyvit.speed_check import SpeedCheck

SIZES = {"a": 100, "b": 100, "c": 1000, "d": 10, "unknown": 50}
COSTS = {"a": 1.0, "b": 2.0, "c": 5.0, "d": 0.5}


def effects() -> Effects:
    """One draw whose squared half is the cost of each weight, and an activation that must not count."""
    roundings = (*(Rounding(name, f"layer {name}", True) for name in COSTS), Rounding("x", "layer a"))
    return Effects(roundings, np.array([[*(np.sqrt(2 * cost) for cost in COSTS.values()), 100.0]]))


@pytest.mark.parametrize("limit", [0.0, 0.6, 1.0, 6.0, 6.4, 7.0, 8.5, 100.0])
def test_weights_get_4_bits_by_bytes_for_divergence_within_the_limit(limit):
    spent, wanted = 0.0, set()
    for name in ("c", "a", "b", "d"):  # 200, 100, 50 and 20 codes for a unit of divergence
        if spent + COSTS[name] <= limit:
            spent, wanted = spent + COSTS[name], wanted | {name}
    found = choose_widths(effects(), SIZES, 0.0, limit + 1e-9)
    assert {width.weight for width in found if width.bits == 4} == wanted
    assert [width.weight for width in found] == list(SIZES)


def test_what_other_roundings_take_is_spent_already():
    found = choose_widths(effects(), SIZES, 3.0, 8.0)
    assert {width.weight for width in found if width.bits == 4} == {"c"}


def test_each_width_says_why():
    by_name = {width.weight: width for width in choose_widths(effects(), SIZES, 0.0, 5.6)}
    assert by_name["c"].reason.startswith("4 bits save 500 bytes for a predicted divergence of 5")
    assert "more than the budget has left" in by_name["b"].reason and by_name["b"].bits == 8
    assert by_name["unknown"].reason == "no gradient reaches it" and by_name["unknown"].bits == 8
    assert by_name["a"].nodes == ("layer a",) and by_name["a"].divergence == pytest.approx(1.0)


@pytest.fixture(scope="module")
def proto():
    return model_to_proto(parse(GRAPH, **weights()))


def quantized(proto, labels=None, **settings):
    wanted = {"samples": None, "verify": False, "cache": False, "threads": 1, "recipe": "minmax", "bits": "auto"}
    config = QuantConfig(**{**wanted, **settings})
    return onnx_hyvit.quantize(proto, calibration={"x": DATA}, config=config, labels=labels)


def widths(result) -> dict[str, int]:
    return {entry["weight"]: entry["bits"] for entry in result.report["precision"]["widths"]["weights"]}


@pytest.fixture(scope="module")
def both(proto) -> tuple[float, float]:
    """Divergence with all weights at 8 and at 4 bits."""
    return kl(proto, quantized(proto, bits="w8a8").model), kl(proto, quantized(proto, bits="w4a8").model)


@pytest.mark.parametrize("recipe", ["minmax", "q-hyvit"])
def test_a_limit_between_both_gives_both_widths_and_is_kept(proto, both, recipe):
    limit = 0.3 * both[1] if recipe == "minmax" else 0.1 * both[1]
    result = quantized(proto, recipe=recipe, max_drop=limit, pack_int4=True)
    assert set(widths(result).values()) == {4, 8}
    told = result.report["precision"]
    assert told["widths"]["reached"] == told["reached"] <= limit
    assert kl(proto, result.model) == pytest.approx(told["reached"], rel=0.05, abs=1e-9)


def test_codes_and_bytes_are_what_the_report_says(proto, both):
    result = quantized(proto, max_drop=0.3 * both[1], pack_int4=True)
    stored = {tensor.name: tensor for tensor in result.model.graph.initializer}
    packed = {name for name, tensor in stored.items() if is_int4(tensor) and tensor.dims and len(tensor.dims) > 1}
    assert packed == {f"{name}_quantized" for name, bits in widths(result).items() if bits == 4}
    saved = sum(weights()[name].size // 2 for name, bits in widths(result).items() if bits == 4)
    assert result.report["precision"]["widths"]["saved_bytes"] == result.report["size"]["int4_saved_bytes"] == saved
    wide = [numpy_helper.to_array(stored[f"{name}_quantized"]) for name, bits in widths(result).items() if bits == 8]
    assert all(np.abs(codes).max() > 7 for codes in wide)


def test_a_large_limit_gives_4_bits_to_all_and_a_small_one_to_none(proto, both):
    assert set(widths(quantized(proto, max_drop=100.0)).values()) == {4}
    small = quantized(proto, max_drop=both[0] / 20)
    assert set(widths(small).values()) == {8}
    assert small.report["precision"]["reached"] <= both[0] / 20, "nodes went back to float instead"
    assert small.report["precision"]["steps"]


def test_harder_limits_never_save_more(proto, both):
    saved = [
        quantized(proto, max_drop=share * both[1]).report["precision"]["widths"]["saved_bytes"]
        for share in (2.0, 0.5, 0.2, 0.01)
    ]
    assert all(before >= after for before, after in itertools.pairwise(saved)) and saved[0] > saved[-1]


def test_a_loss_of_top1_can_be_the_limit(proto):
    labels = make_session(proto).run({"x": DATA})["y"].argmax(1)
    result = quantized(proto, labels, max_drop="20%")
    assert result.report["precision"]["reached"] <= 0.2 and 4 in widths(result).values()


def test_without_packing_the_report_says_that_nothing_is_gained(proto):
    notes = quantized(proto).report["findings"]
    assert any(note.startswith("weight-widths") and "pack_int4" in note for note in notes)
    assert not any(note.startswith("weight-widths") for note in quantized(proto, pack_int4=True).report["findings"])


def test_widths_stay_when_blocks_go_back_to_float_for_speed(proto, both, monkeypatch):
    def first_is_slow(session, rewritten, int8, blocks, build, *_):
        slow = next(name for names in blocks.values() for name in names)
        return SpeedCheck("blocks", Ratio(1.0, 1.0, 1.0), Ratio(1.0, 1.0, 1.0), {slow: "slow"})

    monkeypatch.setattr(keep_fast, "check_speed", first_is_slow)
    result = quantized(proto, max_drop=100.0, pack_int4=True, verify_speed=True)
    codes = [tensor for tensor in result.model.graph.initializer if tensor.name.endswith("_quantized")]
    layers = [tensor for tensor in codes if len(tensor.dims) > 1]
    assert 0 < len(layers) < 4 and all(map(is_int4, layers))


def test_the_same_input_gives_the_same_bytes(proto, both):
    first, second = (quantized(proto, max_drop=0.3 * both[1], pack_int4=True).model for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
