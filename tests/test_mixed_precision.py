"""What goes back to float: a limit is kept, nothing more is taken, and float means the float weights."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from qdq_graphs import parse, weight

import onnx_hyvit
from onnx_hyvit import keep_fast as module
from onnx_hyvit.calibration import Source
from onnx_hyvit.config import QuantConfig
from onnx_hyvit.errors import ConfigError
from onnx_hyvit.graph import model_to_proto
from onnx_hyvit.recipes import RECIPES
from onnx_hyvit.runtime import Ratio, make_session
from onnx_hyvit.speed_check import SpeedCheck

GRAPH = """g (float[N,16,8,8] x) => (float[N,8] y) {
    c = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(c)
    d = Conv(r, w2, b2) s = Sigmoid(d) m = Mul(d, s)
    e = Conv(m, w3, b3) a = Add(e, x)
    p = GlobalAveragePool(a) q = Flatten(p) y = Gemm(q, w4, b4) }"""
DATA = np.random.default_rng(0).standard_normal((16, 16, 8, 8)).astype(np.float32)


def weights() -> dict[str, np.ndarray]:
    """Weights and biases of ``GRAPH``."""
    return {
        "w1": weight(16, 16, 3, 3), "b1": np.zeros(16, np.float32),
        "w2": weight(16, 16, 1, 1, seed=1), "b2": np.ones(16, np.float32),
        "w3": weight(16, 16, 1, 1, seed=2), "b3": np.zeros(16, np.float32),
        "w4": 8 * weight(16, 8, seed=4), "b4": np.zeros(8, np.float32),
    }  # fmt: skip


@pytest.fixture(scope="module")
def proto():
    model = parse(GRAPH, **weights())
    return model_to_proto(model)


def quantized(proto, **settings):
    config = QuantConfig(samples=None, verify=False, cache=False, threads=1, **settings)
    return onnx_hyvit.quantize(proto, calibration={"x": DATA}, config=config)


def kl(proto, model) -> float:
    wanted, found = (make_session(which).run({"x": DATA})["y"].astype(np.float64) for which in (proto, model))
    logs = [values - np.log(np.exp(values).sum(1, keepdims=True)) for values in (wanted, found)]
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(1).mean())


@pytest.mark.parametrize("recipe", ["minmax", "q-hyvit"])
def test_a_limit_is_kept_and_costs_no_more_than_it_must(proto, recipe, rules_target):
    free = quantized(proto, recipe=recipe, bits="w4a4", target=rules_target)
    limit = kl(proto, free.model) / 8
    held = quantized(proto, recipe=recipe, bits="w4a4", target=rules_target, max_drop=limit)
    assert held.report["precision"]["reached"] <= limit
    assert kl(proto, held.model) == pytest.approx(held.report["precision"]["reached"], rel=0.05, abs=1e-9)
    before, after = free.report["plan"]["int8_nodes"], held.report["plan"]["int8_nodes"]
    assert 0 < after < before, "some nodes went back to float, not all"


def test_a_limit_that_holds_already_changes_nothing(proto):
    plain = quantized(proto, recipe="mse")
    held = quantized(proto, recipe="mse", max_drop=10.0)
    assert plain.model.SerializeToString() == held.model.SerializeToString()
    assert held.report["precision"]["steps"] == [] and plain.report["precision"] is None


def test_a_limit_holds_no_more_inputs_than_calibration_does(proto, monkeypatch):
    original = Source.__iter__
    most = []

    def watched(self):
        alive = []
        for ids, feeds in original(self):
            alive.append(weakref.ref(feeds["x"]))
            yield ids, feeds
            most.append(sum(reference() is not None for reference in alive))

    def held(**settings) -> int:
        most.clear()
        quantized(proto, recipe="minmax", batch_size=1, **settings)
        return max(most)

    monkeypatch.setattr(Source, "__iter__", watched)
    assert held(max_drop=10.0) == held() < len(DATA)


def test_zero_leaves_nothing_that_matters_in_int8(proto):
    assert kl(proto, quantized(proto, recipe="minmax", max_drop=0).model) < 1e-9


def test_narrow_codes_keep_all_layers_in_int8(proto, rules_target):
    audit = quantized(proto, bits="w4a8", target=rules_target).report["audit"]["counts"]
    assert audit["float_weighted"] == 0


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "much", True])
def test_limits_that_make_no_sense_are_refused(value):
    with pytest.raises(ConfigError, match="max_drop"):
        QuantConfig(max_drop=value)


def test_a_recipe_of_ones_own_is_known_by_its_name(proto):
    name = "mse of these tests"
    onnx_hyvit.add_recipe(onnx_hyvit.Recipe(name, "a test", weights="mse"))
    try:
        assert quantized(proto, recipe=name).report["config"]["recipe"] == name
        with pytest.raises(ConfigError, match="exists already"):
            onnx_hyvit.add_recipe(onnx_hyvit.Recipe(name, "again"))
    finally:
        del RECIPES[name]


def test_an_input_without_a_batch_axis_is_the_same_in_every_run():
    text = GRAPH.replace("(float[N,16,8,8] x)", "(float[N,16,8,8] x, float[16,1,1] z)").replace(
        "Add(e, x)", "Add(e, z)"
    )
    model = parse(text, **weights())
    feeds = [{"x": DATA[at : at + 1], "z": np.ones((16, 1, 1), np.float32)} for at in range(8)]
    config = QuantConfig(samples=None, verify=False, cache=False, threads=1)
    result = onnx_hyvit.quantize(model_to_proto(model), calibration=feeds, config=config)
    assert result.report["precision"]["predicted_divergence"] > 0


@pytest.mark.parametrize("all_float", [True, False])
def test_what_goes_back_to_float_for_speed_has_the_float_weights(proto, all_float, monkeypatch):
    ratio = Ratio(1.0, 1.0, 1.0)

    def back_to_float(session, rewritten, int8, blocks, build, *_):
        nodes = [name for names in blocks.values() for name in names]
        build(dict.fromkeys(nodes[:1], "slow"))
        if all_float:
            return SpeedCheck("float", ratio, ratio, all_float=True)
        return SpeedCheck("blocks", ratio, ratio, dict.fromkeys(nodes, "slow"))

    monkeypatch.setattr(module, "check_speed", back_to_float)
    result = quantized(proto, bits="w3a3", verify_speed=True)
    assert not any(node.op_type == "QuantizeLinear" for node in result.model.graph.node)
    assert kl(proto, result.model) < 1e-9


def test_what_precision_took_back_stays_float_when_more_goes_back_for_speed(proto, monkeypatch, rules_target):
    def one_is_slow(session, rewritten, int8, blocks, build, *_):
        slow.extend([next(name for names in blocks.values() for name in names)])
        ratio = Ratio(1.0, 1.0, 1.0)
        return SpeedCheck("blocks", ratio, ratio, dict.fromkeys(slow, "slow"))

    slow: list[str] = []
    settings = {"bits": "w4a4", "target": rules_target}
    limit = quantized(proto, **settings).report["reconstruction"]["divergence_after"] / 8
    before = quantized(proto, **settings, max_drop=limit).report["plan"]["float_nodes"]
    monkeypatch.setattr(module, "check_speed", one_is_slow)
    after = quantized(proto, **settings, max_drop=limit, verify_speed=True).report["plan"]["float_nodes"]
    taken = {name for name, reason in before.items() if "takes away" in reason}
    assert taken and slow[0] not in taken
    assert taken | set(slow) <= set(after)


def test_a_tensor_that_a_body_reads_stays_as_planned_and_is_named(caplog):
    text = """g (float[N,16,8,8] x, bool cond) => (float[N,8] y) {
        c = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(c)
        i = If(cond) <then_branch = t () => (float[N,16,8,8] u) { u = Relu(r) },
                      else_branch = e () => (float[N,16,8,8] z) { z = Neg(r) }>
        d = Conv(i, w2, b2) p = GlobalAveragePool(d) q = Flatten(p) y = Gemm(q, w4, b4) }"""
    model = model_to_proto(parse(text, **{name: value for name, value in weights().items() if "3" not in name}))
    feeds = [{"x": DATA[at : at + 4], "cond": np.array(True)} for at in range(0, 16, 4)]
    config = QuantConfig(samples=None, cache=False, threads=1)
    result = onnx_hyvit.quantize(model, calibration=feeds, config=config)
    assert "w1" in {tensor.name for tensor in model.graph.initializer}
    assert result.report["precision"]["unknown"], "no gradient comes through the If"
    assert "no gradient reaches them" in caplog.text
    assert result.report["reconstruction"]["blocks"]
    exact, found = (
        make_session(which).run({"x": DATA[:4], "cond": np.array(True)})["y"] for which in (model, result.model)
    )
    assert np.abs(exact - found).max() < 0.05 * np.abs(exact).max()
