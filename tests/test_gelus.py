"""GELUs replaced by a sigmoid form: what that is predicted to do, what it does, and what stays."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from qdq_graphs import parse, weight

import onnx_hyvit
from onnx_hyvit import gelus as step
from onnx_hyvit.backward import choose_loss
from onnx_hyvit.config import QuantConfig
from onnx_hyvit.errors import ConfigError
from onnx_hyvit.gelus import choose_gelus, replace_gelus
from onnx_hyvit.graph import load_model, model_to_proto
from onnx_hyvit.numerics import Histogram
from onnx_hyvit.planning import decide
from onnx_hyvit.prepared import prepare
from onnx_hyvit.recipes import find_recipe
from onnx_hyvit.reconstruct import Divergence
from onnx_hyvit.request import adapted_target, open_calibration
from onnx_hyvit.runtime import make_session
from onnx_hyvit.scales import Work

GRAPH = """g (float[N,16,32,32] x) => (float[N,8] y) {
    a = Conv<pads=[1,1,1,1]>(x, w1, b1) g = Gelu(a) c = Conv(g, w2, b2) h = Gelu(c) e = Conv(h, w3, b3)
    p = GlobalAveragePool(e) q = Flatten(p) y = Gemm(q, w4, b4) }"""
DATA = np.random.default_rng(0).standard_normal((32, 16, 32, 32)).astype(np.float32)
WEIGHTS = {
    "w1": weight(32, 16, 3, 3), "b1": np.zeros(32, np.float32),
    "w2": 2 * weight(32, 32, 1, 1, seed=1), "b2": np.zeros(32, np.float32),
    "w3": 2 * weight(32, 32, 1, 1, seed=2), "b3": np.zeros(32, np.float32),
    "w4": 4 * weight(32, 8, seed=3), "b4": np.zeros(8, np.float32),
}  # fmt: skip


def float_proto() -> onnx.ModelProto:
    return model_to_proto(parse(GRAPH, **WEIGHTS))


def ready(**settings):
    """What the step reads: work, the plan of all that could be int8, and the rules of the target."""
    config = QuantConfig(samples=None, threads=1, objective="size", **settings)
    model = load_model(float_proto())
    source = open_calibration(model, {"x": DATA}, config)
    prepared = prepare(model, config, {"x": DATA[:1].shape})
    target = adapted_target(config)
    work = Work(prepared.model, prepared.shapes, prepared.structure, source, find_recipe("q-hyvit"), config)
    return work, decide(prepared.model, prepared.shapes, target, config), target


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
def test_the_factor_is_the_one_of_least_error(spread: float) -> None:
    values = np.random.default_rng(1).normal(0, spread, 4000)
    histogram = Histogram()
    histogram.update(values.astype(np.float32))
    errors = [np.square(values / (1 + np.exp(-c * values)) - gelu(values)).sum() for c in step.FACTORS]
    best = step.FACTORS[int(np.argmin(errors))]
    assert step._fit_factor(histogram) == pytest.approx(best, abs=0.006)


def test_both_gelus_are_found_and_their_effect_is_what_replacing_them_does() -> None:
    work, decision, target = ready()
    found = choose_gelus(work, decision, target.glue, "sigmoid")
    assert [entry.output for entry in found.found] == ["g", "h"]
    assert all(entry.saved_us > 0 and 1.55 <= entry.factor <= 1.85 for entry in found.found)
    proto = model_to_proto(work.model)
    judge = Divergence(proto, choose_loss(proto, work.shapes), [{"x": DATA[:16]}], 1)
    for entry in found.found:
        real = judge.of(judge.session(step._replaced(proto, (entry,))))
        assert 0.4 * real < entry.divergence < 2.5 * real, "64 random draws"


def test_replacing_is_undone_exactly_for_the_reference() -> None:
    work, decision, target = ready()
    proto = model_to_proto(work.model)
    found = replace_gelus(work.model, choose_gelus(work, decision, target.glue, "sigmoid"))
    replaced = model_to_proto(work.model)
    assert not any(node.op_type == "Gelu" for node in replaced.graph.node)
    expected, off, again = (
        make_session(model).run({"x": DATA[:2]})["y"] for model in (proto, replaced, found.exact(replaced))
    )
    np.testing.assert_array_equal(again, expected)
    assert 0 < np.abs(off - expected).max() < 0.05 * np.abs(expected).max()


def test_a_choice_keeps_to_what_its_time_is_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    work, decision, target = ready()
    balanced = Work(**{**vars(work), "config": work.config.replace(objective="balanced")})
    monkeypatch.setattr(step, "RATES", {"balanced": 0.0})
    none = choose_gelus(balanced, decision, target.glue)
    assert none.chosen == () and none.measured == 0.0 and len(none.found) == 2
    monkeypatch.setattr(step, "RATES", {"balanced": math.inf})
    monkeypatch.setattr(step, "MOST", math.inf)
    assert len(choose_gelus(balanced, decision, target.glue).chosen) == 2
    least = min(entry.divergence for entry in none.found)
    monkeypatch.setattr(step, "MOST", 1.5 * least / none.rounding)
    (kept,) = choose_gelus(balanced, decision, target.glue).chosen
    assert kept.divergence == least


def test_what_is_measured_to_be_worse_than_predicted_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    work, decision, target = ready()
    monkeypatch.setattr(step, "_affordable", lambda found, *rest: found)
    monkeypatch.setattr(step, "MOST", 0.0)
    assert choose_gelus(work, decision, target.glue).chosen == ()


@pytest.mark.parametrize("kernels", [set(), {"Sigmoid"}, {"Mul"}])
def test_nothing_is_weighed_without_int8_kernels(kernels: set[str]) -> None:
    work, decision, _ = ready()
    assert choose_gelus(work, decision, kernels, "sigmoid") is None


def test_only_gelus_between_codes_count() -> None:
    text = GRAPH.replace("h = Gelu(c)", "f = Softmax(c) h = Gelu(f)")
    config = QuantConfig(objective="size")
    model = parse(text, **WEIGHTS)
    prepared = prepare(model, config, {"x": DATA[:1].shape})
    source = open_calibration(model, {"x": DATA}, config)
    work = Work(prepared.model, prepared.shapes, prepared.structure, source, find_recipe("q-hyvit"), config)
    target = adapted_target(config)
    found = choose_gelus(work, decide(prepared.model, prepared.shapes, target, config), target.glue, "sigmoid")
    assert [entry.output for entry in found.found] == ["g"]


def quantized(**settings):
    wanted = {"samples": None, "cache": False, "threads": 1, **settings}
    return onnx_hyvit.quantize(float_proto(), calibration={"x": DATA}, config=QuantConfig(**wanted))


def test_the_pipeline_does_what_was_asked() -> None:
    exact, other = quantized(gelu="exact"), quantized(gelu="sigmoid")
    assert exact.report["gelus"] is None
    assert [entry["replaced"] for entry in other.report["gelus"]["nodes"]] == [True, True]
    kernels = [sum(node.op_type == "Gelu" for node in result.model.graph.node) for result in (exact, other)]
    assert kernels == [2, 0]
    (expected,) = make_session(float_proto()).run({"x": DATA}).values()
    errors = []
    for result in (exact, other):
        (found,) = make_session(result.model).run({"x": DATA}).values()
        errors.append(float(np.square(found - expected).sum() / np.square(expected).sum()))
    assert errors[1] < 4 * errors[0] + 1e-4, "reconstruction aims at GELU"


def test_reconstruction_aims_at_the_exact_gelu() -> None:
    """The mean that the other form moves is put back by the biases behind it."""
    (expected,) = make_session(float_proto()).run({"x": DATA}).values()
    (found,) = make_session(quantized(gelu="sigmoid", bits="w8a8").model).run({"x": DATA}).values()
    proto = float_proto()
    gelus = [node for node in proto.graph.node if node.op_type == "Gelu"]
    chosen = tuple(
        step.Replaceable(f"{number}", node.output[0], "none", 1.702, 1.0, 0.0) for number, node in enumerate(gelus)
    )
    for number, node in enumerate(gelus):
        node.name = f"{number}"
    (off,) = make_session(step._replaced(proto, chosen)).run({"x": DATA}).values()
    drift = [np.abs((values - expected).mean(axis=0)).mean() for values in (off, found)]
    assert drift[1] < 0.5 * drift[0]


def test_recipes_without_mixed_precision_and_full_size_keep_gelu() -> None:
    for settings in ({"recipe": "minmax"}, {"objective": "size"}):
        result = quantized(**settings)
        replaced = [entry["replaced"] for entry in (result.report["gelus"] or {"nodes": []})["nodes"]]
        assert not any(replaced)
        assert sum(node.op_type == "Gelu" for node in result.model.graph.node) == 2


STEM = """g (float[N,3,96,96] x) => (float[N,8] y) {
    a = Conv<pads=[1,1,1,1],strides=[2,2]>(x, w1, b1) g = Gelu(a) c = Conv(g, w2, b2) h = Gelu(c) e = Conv(h, w3, b3)
    p = GlobalAveragePool(e) q = Flatten(p) y = Gemm(q, w4, b4) }"""


def quantized_stem(width: int, config: QuantConfig):
    """``STEM`` with so many channels behind its first layer, quantized."""
    made = {"w1": weight(width, 3, 3, 3), "w2": 2 * weight(64, width, 1, 1, seed=1)}
    made |= {"b1": np.zeros(width, np.float32), "b2": np.zeros(64, np.float32)}
    others = {"w3": 2 * weight(64, 64, 1, 1, seed=2), "b3": made["b2"], "w4": 4 * weight(64, 8, seed=3)}
    images = np.random.default_rng(0).standard_normal((8, 3, 96, 96)).astype(np.float32)
    proto = model_to_proto(parse(STEM, **made, **others, b4=WEIGHTS["b4"]))
    return onnx_hyvit.quantize(proto, calibration={"x": images}, config=config)


def costs_where_the_stem_needs_its_gelu(path: Path) -> Path:
    """Int8 takes 10 us from the stem and adds 40 with float GELU; without that DequantizeLinear and Gelu are saved."""
    us = {
        "Conv.stem": (100, 90), "Conv.pointwise": (100, 10), "Gemm": (10, 5), "GlobalAveragePool": (10, 5),
        "Gelu": (50,), "Silu": (50,), "Sigmoid": (50, 5), "Mul": (50, 5), "Move": (1, 1), "QuantizeLinear": (20,),
        "DequantizeLinear": (20,),
    }  # fmt: skip
    kernels = {
        f"{kind}.{op}": {"fixed_us": value}
        for op, values in us.items()
        for kind, value in zip(("float", "int8"), values, strict=False)
    }
    machine = {"cpu": "none", "vnni": True, "onnxruntime": "1", "threads": 1}
    profile = {"format": 1, "target": "ort-x86", "machine": machine, "offset_us": 0.0, "kernels": kernels}
    path.write_text(json.dumps(profile), encoding="utf-8")
    return path


@pytest.mark.parametrize(("form", "channels"), [("exact", 3), ("sigmoid", 4)])
def test_a_stem_that_is_int8_for_its_gelu_alone_keeps_its_padding(form: str, channels: int, tmp_path: Path) -> None:
    profile = os.fspath(costs_where_the_stem_needs_its_gelu(tmp_path / "costs.json"))
    config = QuantConfig(samples=None, cache=False, threads=1, gelu=form, objective="speed", profile=profile)
    made = quantized_stem(24, config)
    float_stem = "a" in made.report["plan"]["float_nodes"]
    assert float_stem == (channels == 3)
    pads = sum(node.op_type == "Pad" for node in made.model.graph.node)
    stems = [tensor for tensor in made.model.graph.initializer if list(tensor.dims[2:]) == [3, 3]]
    assert [list(tensor.dims) for tensor in stems] == [[24, channels, 3, 3]]
    assert pads == (not float_stem)


@pytest.mark.parametrize(("settings", "taken"), [({"objective": "size"}, False), ({"max_drop": 1e-9}, True)])
def test_a_stem_that_precision_takes_back_loses_its_padding(settings: dict[str, object], taken: bool) -> None:
    """The plan pads its channels for int8; mixed precision decides later."""
    config = QuantConfig(samples=None, cache=False, threads=1, gelu="exact", target="ort-x86", **settings)
    made = quantized_stem(16, config)
    assert ("a" in {name for step in made.report["precision"]["steps"] for name in step["nodes"]}) == taken
    assert any(node.op_type == "Pad" for node in made.model.graph.node) != taken


def test_the_setting_is_checked() -> None:
    with pytest.raises(ConfigError, match="gelu"):
        QuantConfig(gelu="fast")
