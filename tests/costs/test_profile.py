"""Profiles: the one that ships, and files that are none."""

from __future__ import annotations

import copy
import json

import pytest

from onnx_hyvit.costs import Work, find_profile, load_profile
from onnx_hyvit.errors import ConfigError
from onnx_hyvit.targets import load_target, target_names

SHIPPED = find_profile("ort-x86-avx2")


def test_every_profile_that_a_target_names_ships_and_is_for_it() -> None:
    named = {load_target(name).profile for name in target_names()} - {None}
    assert named == {"ort-x86", "ort-x86-avx2"}
    assert all(find_profile(name).target == name for name in named)
    assert find_profile("ort-x86").machine["vnni"] and not find_profile("ort-x86-avx2").machine["vnni"]


def test_targets_that_nothing_was_measured_on_have_no_profile() -> None:
    assert load_target("ort-web").profile is None and load_target("ort-arm").profile is None
    assert find_profile(None) is None


def test_shipped_costs_grow_with_work_and_int8_products_are_cheaper() -> None:
    small, large = Work(10**5, 10**4, 10**4, 10**3), Work(10**8, 10**5, 10**5, 10**5)
    for kind in ("Conv.pointwise", "Conv.dense", "Gemm"):
        assert SHIPPED.us(f"float.{kind}", small) < SHIPPED.us(f"float.{kind}", large)
        assert SHIPPED.us(f"int8.{kind}", large) < SHIPPED.us(f"float.{kind}", large)


def test_unknown_kernels_have_no_cost_and_ragged_ones_that_of_whole_blocks() -> None:
    assert SHIPPED.us("int8.Softmax", Work(0, 10, 10)) is None
    kernels = {name: kernel for name, kernel in SHIPPED.kernels.items() if not name.endswith("_ragged")}
    bare = type(SHIPPED)(SHIPPED.target, SHIPPED.machine, SHIPPED.offset_us, kernels)
    work = Work(10**6, 10**4, 10**4, 10**3)
    assert bare.us("float.Conv.pointwise_ragged", work) == bare.us("float.Conv.pointwise", work)


def test_a_written_profile_reads_back_the_same(tmp_path) -> None:
    path = tmp_path / "a.profile.json"
    path.write_text(json.dumps(SHIPPED.to_dict()))
    assert load_profile(path) == SHIPPED
    assert find_profile("ort-x86-avx2", path) == SHIPPED


BROKEN = {
    "not a JSON file": lambda values: "{",
    "expected the keys": lambda values: {"kernels": {}},
    "format 2": lambda values: {**values, "format": 2},
    "machine must hold": lambda values: {**values, "machine": {}},
    "offset_us must be": lambda values: {**values, "offset_us": "fast"},
    "at least one entry": lambda values: {**values, "kernels": {}},
    "kernel 'a'": lambda values: {**values, "kernels": {"a": {"fixed_us": -1.0}}},
    "kernel 'b'": lambda values: {**values, "kernels": {"b": {"speed": 1.0}}},
    "kernel 'c'": lambda values: {**values, "kernels": {"c": 3}},
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_is_no_profile_is_refused_in_one_line(tmp_path, message) -> None:
    values = BROKEN[message](copy.deepcopy(SHIPPED.to_dict()))
    path = tmp_path / "bad.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    with pytest.raises(ConfigError, match=r"bad\.json") as error:
        load_profile(path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_profile_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read"):
        load_profile(tmp_path / "none.json")
