"""Timing decides, so the clocks are made up here: what is measured when, and what follows from it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser

from onnx_hyvit import speed_check
from onnx_hyvit.errors import ConfigError
from onnx_hyvit.runtime import make_session, paired_ratio, take_turns
from onnx_hyvit.speed_check import check_speed, group_by_block

FEED = {"x": np.zeros((1, 4), np.float32)}
BLOCKS = {"stem": ["a"], "body": ["b", "c"], "head": ["d"]}


def proto() -> onnx.ModelProto:
    return parser.parse_model(
        '<ir_version: 9, opset_import: ["": 20]> g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }'
    )


def run(monkeypatch, float_ms: float, rewritten_ms: float, int8_ms: float, saved: dict[str, float]):
    """``check_speed`` with latencies that are given: blocks save ``saved`` ms when they go back to float."""
    times = {"float": float_ms, "rewritten float": rewritten_ms, "int8": int8_ms}
    built: list[set[str]] = []

    def build(float_nodes):
        built.append(set(float_nodes))
        return proto()

    def ms(session) -> float:
        if session.name in times:
            return times[session.name]
        back = built[[*BLOCKS].index(session.name)]
        return int8_ms - sum(saved[name] for name, nodes in BLOCKS.items() if back.issuperset(nodes))

    def turns(sessions, feeds, runs, seconds):
        random = np.random.default_rng(0)
        return {name: ms(session) * (1 + 0.01 * random.random(40)) for name, session in sessions.items()}

    monkeypatch.setattr(speed_check, "take_turns", turns)
    original = make_session(proto(), name="float")
    return check_speed(original, proto(), proto(), BLOCKS, build, FEED, 1)


def test_a_faster_model_is_left_alone(monkeypatch) -> None:
    check = run(monkeypatch, 10.0, 9.0, 7.0, {})
    assert check.verdict == "faster" and not check.float_nodes and not check.tried
    assert check.speedup.median == pytest.approx(10 / 7, rel=0.01)


def test_a_difference_within_noise_is_left_alone(monkeypatch) -> None:
    assert run(monkeypatch, 10.0, 9.0, 10.0, {}).verdict == "even"


def test_blocks_that_are_faster_in_float_go_back(monkeypatch) -> None:
    check = run(monkeypatch, 10.0, 9.0, 12.0, {"stem": 3.0, "body": -1.0, "head": 0.5})
    assert check.verdict == "blocks" and set(check.float_nodes) == {"a", "d"}
    assert [entry["kept"] for entry in check.tried] == [True, False, True]
    assert "block stem" in check.float_nodes["a"]


def test_the_float_model_is_taken_when_no_block_helps(monkeypatch) -> None:
    check = run(monkeypatch, 10.0, 9.0, 12.0, {"stem": 0.5, "body": 0.0, "head": 0.0})
    assert check.verdict == "float" and check.all_float and not check.float_nodes


@pytest.mark.parametrize(("rewritten", "all_float"), [(10.5, True), (11.8, False)])
def test_when_nothing_is_as_fast_the_fastest_is_taken_and_said_to_be_slower(monkeypatch, rewritten, all_float) -> None:
    check = run(monkeypatch, 10.0, rewritten, 12.0, {"stem": 1.0, "body": 0.0, "head": 0.0})
    assert check.verdict == "slower" and check.all_float is all_float
    assert set(check.float_nodes) == (set() if all_float else {"a"})


def test_nodes_of_later_rewrites_belong_to_the_block_before_them() -> None:
    blocks = {"stem": ["a", "b"], "head": ["c"]}
    assert group_by_block(["a", "b_pad", "b", "c", "c_rows"], ["b_pad", "c", "c_rows"], blocks) == {
        "stem": ["b_pad"],
        "head": ["c", "c_rows"],
    }


def test_paired_ratios_see_through_a_drift_that_hits_both() -> None:
    drift = np.linspace(1, 5, 50)
    ratio = paired_ratio(2.0 * drift, drift)
    assert ratio.low == ratio.median == ratio.high == pytest.approx(2.0)
    noisy = paired_ratio(drift * np.random.default_rng(0).uniform(0.9, 1.1, 50), drift)
    assert noisy.low < 1 < noisy.high
    with pytest.raises(ConfigError, match="equally many"):
        paired_ratio(drift, drift[:3])


def test_turns_end_when_the_time_is_up() -> None:
    sessions = {name: make_session(proto(), name=name) for name in "ab"}
    taken = take_turns(sessions, FEED, runs=1000, warmup=0, seconds=0.0)
    assert {len(values) for values in taken.values()} == {1}
