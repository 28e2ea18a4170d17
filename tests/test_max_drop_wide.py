"""``max_drop`` on a target with 16-bit kernels: activations get 16 bits before layers go back to float."""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from qdq_graphs import parse, plan_of
from test_full_mode import INPUT, MODEL, fashion
from test_mixed_precision import DATA, GRAPH, weights

import onnx_hyvit
from onnx_hyvit import display_many, display_quantized, keep_fast
from onnx_hyvit.config import QuantConfig
from onnx_hyvit.fit_model import _block_cache
from onnx_hyvit.graph import model_to_proto
from onnx_hyvit.recipes import find_recipe
from onnx_hyvit.report import render_report
from onnx_hyvit.request import Request, open_calibration
from onnx_hyvit.runtime import Ratio
from onnx_hyvit.speed_check import SpeedCheck
from onnx_hyvit.storage import load_for, may_widen
from onnx_hyvit.targets import load_target

WIDE_REASON = "16 bits here takes away"
QNN = load_target("qnn")


def codes_of(model: onnx.ModelProto) -> Counter[str]:
    """How many QuantizeLinear write codes of each type."""
    types = {tensor.name: TensorProto.DataType.Name(tensor.data_type) for tensor in model.graph.initializer}
    return Counter(types[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear")


def coded_weights() -> dict[str, np.ndarray]:
    """Weights of the small model that 8-bit codes hold exactly: only activations are rounded."""
    found = weights()
    for name in ("w1", "w2", "w3", "w4"):
        axes = tuple(range(found[name].ndim)) if name == "w4" else tuple(range(1, found[name].ndim))
        scale = np.abs(found[name]).max(axis=axes, keepdims=True) / 127
        found[name] = (np.round(found[name] / scale) * scale).astype(np.float32)
    return found


@pytest.fixture(scope="module")
def proto():
    return model_to_proto(parse(GRAPH.replace("[N,", "[1,"), **coded_weights()))


def quantized(proto, **settings):
    wanted = {"samples": None, "verify": False, "cache": False, "threads": 1, "target": "qnn", **settings}
    return onnx_hyvit.quantize(proto, calibration={"x": DATA}, config=QuantConfig(**wanted))


@functools.cache
def shipped(target: str, limit: float, verify: bool = False):
    """The shipped model for a target and a limit."""
    calibration, folder = fashion("calib", 6)
    fixed = onnx.load(folder / MODEL)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del fixed.graph.value_info[:]
    config = QuantConfig(recipe="minmax", target=target, samples=None, threads=2, max_drop=limit, verify=verify)
    return onnx_hyvit.quantize(fixed, calibration={INPUT: calibration}, config=config)


@functools.cache
def tight_limit() -> float:
    """A fifth of the divergence that 8 bits leave in the shipped model."""
    return shipped("qnn", 10.0).report["precision"]["reached"] / 5


def test_the_shipped_model_keeps_a_limit_that_8_bits_do_not():
    assert codes_of(shipped("qnn", 10.0).model).keys() == {"UINT8"}
    held = shipped("qnn", tight_limit(), verify=True)
    report, codes = held.report, codes_of(held.model)
    assert report["precision"]["reached"] <= tight_limit()
    assert codes["UINT16"] > 0 and codes["UINT8"] > 0 and held.model.opset_import[0].version == 21
    assert any(step["to"] == "16 bits" for step in report["precision"]["steps"])
    plan = report["plan"]
    assert any(reason.startswith(WIDE_REASON) for reason in plan["wide_nodes"].values())
    assert not plan["wide_nodes"].keys() & plan["float_nodes"].keys() and plan["converted_tensors"] > 0
    assert onnx_hyvit.check(held.model, "qnn")["problems"] == []
    assert report["findings"] == ["opset: model: raised to 21, for max_drop may raise activations to 16 bits"]


def test_the_same_limit_gives_the_same_bytes():
    again = shipped("qnn", tight_limit()).model.SerializeToString()
    assert again == shipped("qnn", tight_limit(), verify=True).model.SerializeToString()


def test_a_target_without_kernels_gets_no_16_bits():
    held = shipped("ort-x86", tight_limit())
    assert codes_of(held.model).keys() <= {"UINT8"} and held.model.opset_import[0].version == 20
    assert held.report["plan"]["wide_nodes"] == {} and held.report["precision"]["reached"] <= tight_limit()
    assert all(step["to"] == "float" for step in held.report["precision"]["steps"])


def test_what_has_16_bits_is_told(capsys):
    report = shipped("qnn", tight_limit()).report
    wide = len(report["plan"]["wide_nodes"])
    display_quantized.quantized(report)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{wide} of them with 16-bit activations" in shown and f"16-bit: {WIDE_REASON}" in shown
    assert "nodes raised to 16-bit activations for accuracy" in shown
    display_many.quantized([{**report, "model": "m.onnx", "output": "o.onnx"}])
    assert f"({wide} with 16-bit activations)" in " ".join(capsys.readouterr().out.split())
    page = render_report(report)
    assert "Taken back to float or to 16 bits for accuracy" in page and ">16 bits<" in page


@pytest.mark.parametrize("recipe", ["minmax", "mse"])
def test_rounded_activations_get_16_bits_and_no_layer_goes_to_float(proto, recipe):
    free = quantized(proto, recipe=recipe, max_drop=10.0)
    limit = free.report["precision"]["reached"] / 20
    held = quantized(proto, recipe=recipe, max_drop=limit)
    found = held.report["precision"]
    assert found["reached"] <= limit and all(step["to"] == "16 bits" for step in found["steps"])
    assert held.report["plan"]["int8_nodes"] == free.report["plan"]["int8_nodes"]


def test_bits_auto_and_a_limit_that_8_bits_do_not_keep(proto):
    limit = quantized(proto, max_drop=10.0, recipe="mse").report["precision"]["reached"] / 4
    held = quantized(proto, bits="auto", max_drop=limit, recipe="mse")
    assert held.report["precision"]["reached"] <= limit and held.report["plan"]["wide_nodes"]
    assert all(entry["bits"] == 8 for entry in held.report["precision"]["widths"]["weights"])


def test_what_goes_back_to_float_for_speed_leaves_the_others_wide(proto, monkeypatch):
    slow: list[str] = []

    def first_is_slow(session, rewritten, int8, blocks, build, *_):
        slow.extend(next(iter(blocks.values()))[:1])
        build(dict.fromkeys(slow, "slow"))
        ratio = Ratio(1.0, 1.0, 1.0)
        return SpeedCheck("blocks", ratio, ratio, dict.fromkeys(slow, "slow"))

    settings = {"max_drop": quantized(proto, max_drop=10.0, recipe="mse").report["precision"]["reached"] / 4}
    before = quantized(proto, recipe="mse", **settings).report["plan"]
    monkeypatch.setattr(keep_fast, "check_speed", first_is_slow)
    after = quantized(proto, recipe="mse", **settings, verify_speed=True)
    plan = after.report["plan"]
    assert plan["float_nodes"][slow[0]] == "slow" and plan["wide_nodes"]
    assert plan["wide_nodes"].keys() <= before["wide_nodes"].keys() and codes_of(after.model)["UINT16"] > 0


def test_blocks_of_one_width_are_not_taken_for_those_of_another(proto, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, config = parse(GRAPH.replace("[N,", "[1,"), **weights()), QuantConfig(target="qnn")
    request = Request(open_calibration(model, {"x": DATA}, config), find_recipe("q-hyvit"), QNN, config)
    wide = ((), ("e",), ("e", "c"), ("e",))
    plans = [plan_of(model, QNN, wide_nodes=dict.fromkeys(names, "a test")) for names in wide]
    keys = [_block_cache(model, plan, request)._folder.name for plan in plans]
    assert len(set(keys)) == 3 and keys[1] == keys[3]


def test_when_a_model_is_loaded_for_16_bits(proto):
    plain, held = QuantConfig(target="qnn"), QuantConfig(target="qnn", max_drop=0.1)
    assert [load_for(proto, config, QNN).opset for config in (plain, held)] == [20, 21]
    assert load_for(proto, held, load_target("ort-x86")).opset == 20
    assert may_widen(held, QNN) and not may_widen(held, QNN, 20) and not may_widen(plain, QNN)
    assert not may_widen(held.replace(bits="w8a16"), QNN) and not may_widen(held, load_target("ort-x86"))


def test_where_16_bits_do_not_suffice_after_all_nodes_go_to_float(proto):
    """Weights that codes hold exactly: 16 bits are predicted to leave nothing, and leave a little."""
    found = quantized(proto, max_drop=1e-14).report["precision"]
    assert found["reached"] <= 1e-14 and {step["to"] for step in found["steps"]} == {"float"}
