"""The residual stream: float unless int8 saves time that is worth what it does to the outputs."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from qdq_graphs import parse, weight

import onnx_hyvit
from onnx_hyvit.config import QuantConfig
from onnx_hyvit.costs import LEAST_SHARE, Kernel, find_profile, pose_problem
from onnx_hyvit.graph import model_to_proto
from onnx_hyvit.mixed_precision import WORTH
from onnx_hyvit.placement import make_plan
from onnx_hyvit.recipes import RECIPES
from onnx_hyvit.residual_choice import ResidualChoice
from onnx_hyvit.runtime import observe
from onnx_hyvit.targets import load_target

GRAPH = """g (float[N,256,96] x) => (float[N,8] y) {
    h = MatMul(x, w1) f = MatMul(h, w2) a = Add(h, f) n = LayerNormalization(a, s)
    u = MatMul(n, w3) g1 = Sigmoid(u) v = MatMul(g1, w4) b = Add(a, v) m = LayerNormalization(b, s)
    p = ReduceMean<keepdims=0>(m, axes) y = Gemm(p, w5, b5) }"""
DATA = np.random.default_rng(0).standard_normal((16, 256, 96)).astype(np.float32)


def model():
    """``GRAPH``; its first layer does not read the first channel of the input."""
    weights = {f"w{at}": weight(96, 96, seed=at) for at in range(1, 5)}
    weights["w1"][0] = 0.0
    head = {"w5": 4 * weight(96, 8, seed=5), "b5": np.zeros(8, np.float32)}
    return parse(GRAPH, **weights, **head, s=np.ones(96, np.float32), axes=np.array([1]))


@pytest.fixture(autouse=True)
def plain_recipe(monkeypatch) -> None:
    """Recipe ``plain``: the default one without what folds the wide channel away."""
    monkeypatch.setitem(RECIPES, "plain", dataclasses.replace(RECIPES["q-hyvit"], gains=False))


def profile_where(folder, **fixed_us: float) -> str:
    """A file with the shipped costs, but for kernels that take ``fixed_us`` whatever their size."""
    profile = find_profile("ort-x86")
    changed = {name.replace("_", ".", 1): Kernel(us) for name, us in fixed_us.items()}
    path = folder / "costs.profile.json"
    path.write_text(json.dumps(dataclasses.replace(profile, kernels=profile.kernels | changed).to_dict()))
    return str(path)


def quantized(wide: float = 1.0, **settings):
    """``GRAPH`` in int8; the first channel of the input is ``wide`` times as wide as the others."""
    data = DATA * np.where(np.arange(96) == 0, wide, 1).astype(np.float32)
    settings = {"target": "ort-x86", "objective": "speed", "verify": False, "cache": False, "threads": 1, **settings}
    return onnx_hyvit.quantize(
        model_to_proto(model()), calibration={"x": data}, config=QuantConfig(samples=None, **settings)
    )


def int8_additions(result) -> int:
    readers = {name: node.op_type for node in result.model.graph.node for name in node.input}
    added = [node for node in result.model.graph.node if node.op_type == "Add"]
    return sum(readers.get(node.output[0]) == "QuantizeLinear" for node in added)


def test_int8_that_saves_little_is_not_even_weighed_by_error(tmp_path) -> None:
    found = quantized(profile=profile_where(tmp_path, float_Add=5.0, int8_Add=6.0)).report["residual"]
    assert found["chosen"] == "float" and found["predicted_divergence"]["int8"] is None and found["nodes"]


def test_a_target_without_costs_borrows_some_and_says_so() -> None:
    own, borrowed = (quantized(target=target).report["residual"] for target in ("ort-x86", "ort-arm"))
    assert not own["borrowed"] and borrowed["borrowed"] and borrowed["nodes"] == own["nodes"]
    assert borrowed["predicted_us"]["int8"] != own["predicted_us"]["int8"]
    assert quantized(target="xnnpack").report["residual"] is None  # its residual stream is float, whatever costs say
    assert quantized(target="generic", mode="full").report["residual"] is None


@pytest.mark.parametrize(("wide", "chosen"), [(1.0, "float"), (100.0, "int8")])
def test_int8_that_saves_time_is_taken_where_it_adds_little_to_other_errors(tmp_path, wide: float, chosen: str) -> None:
    made = quantized(wide, recipe="plain", profile=profile_where(tmp_path, float_Add=5.0, int8_Add=5.0))
    found = made.report["residual"]
    times, errors = found["predicted_us"], found["predicted_divergence"]
    assert times["int8"] < (1 - LEAST_SHARE) * times["float"] and 0 < errors["float"] < errors["int8"]
    assert found["chosen"] == chosen and int8_additions(made) == (2 if chosen == "int8" else 0)


def test_what_was_asked_for_is_not_weighed(tmp_path) -> None:
    for residual in ("float", "int8"):
        assert quantized(residual=residual).report["residual"] is None
    assert quantized(recipe="minmax").report["residual"] is None, "a recipe that weighs nothing"


@pytest.mark.parametrize(
    ("saved", "float_divergence", "added", "chosen"),
    [
        (0.10, 1e-3, 0.04e-3, "int8"),
        (0.10, 1e-3, 0.06e-3, "float"),  # more than RATE of its own divergence
        (0.10, 1e-1, 1.01 * WORTH * 0.10, "float"),  # more than the time is worth
        (LEAST_SHARE / 2, 1e-3, 0.0, "float"),
    ],
)
def test_time_has_its_price(saved: float, float_divergence: float, added: float, chosen: str) -> None:
    choice = ResidualChoice(("a",), 100.0, 100.0 * (1 - saved), float_divergence, float_divergence + added)
    assert choice.chosen == chosen and choice.to_dict()["chosen"] == chosen


def test_time_decides_alone_as_long_as_no_error_is_known() -> None:
    assert ResidualChoice(("a",), 100.0, 50.0).chosen == "float"


def test_units_on_codes_are_those_of_the_plan() -> None:
    graph = model()
    shapes = observe(model_to_proto(graph), {"x": (1, 256, 96)}).shapes
    plan = make_plan(graph, shapes, load_target("ort-x86"), residual="int8")
    problem = pose_problem(graph.graph, plan, shapes, find_profile("ort-x86"))
    free = {at for at, unit in enumerate(problem.units) if unit.is_free}
    assert problem.on_codes({*plan.int8_nodes, *plan.carried_nodes}) == free
    assert problem.on_codes(()) == frozenset()
