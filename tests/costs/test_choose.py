"""The choice of regions against every choice of small graphs, with made-up costs."""

from __future__ import annotations

import dataclasses
import json
from itertools import combinations

import numpy as np
import pytest
from qdq_graphs import ORT, parse, plan_of, weight

from onnx_hyvit.config import QuantConfig
from onnx_hyvit.costs import Kernel, Profile, choose_float, faster_as_convolution
from onnx_hyvit.costs.borders import BLOCKED, LAST, PLAIN, layout_of
from onnx_hyvit.costs.choose import _cheapest, pose_problem
from onnx_hyvit.costs.units import find_units
from onnx_hyvit.graph import model_to_proto
from onnx_hyvit.placement import make_plan
from onnx_hyvit.planning import decide
from onnx_hyvit.runtime import observe_shapes

MACHINE = {"cpu": "none", "vnni": False, "onnxruntime": "0", "threads": 1}
OPS = ("Add", "Mul", "Sigmoid", "Transpose", "Move", "Concat", "GlobalAveragePool", "Gemm")
CONVOLUTIONS = ("pointwise", "dense", "stem", "depthwise", "depthwise_wide")


def profile_of(int8: float = 0.5, pair: float = 1.0, layout: float = 1.0, **fixed: float) -> Profile:
    """Every float kernel takes 10 us, int8 ones ``int8`` times that, Q and DQ ``pair`` us."""
    names = [*OPS, *(f"Conv.{kind}" for kind in CONVOLUTIONS), "Silu", "Relu"]
    kernels = {f"float.{name}": Kernel(10.0) for name in names} | {
        f"int8.{name}": Kernel(10.0 * int8) for name in names
    }
    kernels |= {f"float.{name}": Kernel(pair) for name in ("QuantizeLinear", "DequantizeLinear")}
    kernels |= {"float.Reorder": Kernel(layout), "int8.Transpose": Kernel(layout)}
    return Profile(
        "made-up", MACHINE, 0.0, kernels | {name.replace("_", ".", 2): Kernel(us) for name, us in fixed.items()}
    )


CHAIN = """g (float[1,16,8,8] x) => (float[1,16,8,8] y) {
    a = Conv(x, w) b = Conv(a, v) p = Softmax(b) c = Conv(p, w) s = Sigmoid(c) m = Mul(c, s) y = Conv(m, v) }"""
BRANCHES = """g (float[1,16,8,8] x) => (float[1,16,8,8] y, float[1,16,8,8] z) {
    a = Conv(x, w) b = Conv(a, v) r = Add(a, b) t = Transpose<perm=[0,1,3,2]>(r) y = Conv(t, w)
    n = Softmax(r) z = Conv(n, v) }"""
LINEAR = """g (float[8,16] x) => (float[8,16] y) {
    a = Gemm(x, k) g = Sigmoid(a) m = Mul(a, g) b = Gemm(m, k) s = Softmax(b) y = Gemm(s, k) }"""
WEIGHTS = {"w": weight(16, 16, 1, 1), "v": weight(16, 16, 1, 1, seed=1)}


def model_of(text: str):
    return parse(text, k=weight(16, 16)) if "Gemm" in text else parse(text, **WEIGHTS)


def random_profile(seed: int) -> Profile:
    random = np.random.default_rng(seed)
    base = profile_of()
    return dataclasses.replace(
        base, kernels={name: Kernel(float(random.uniform(0, 12))) for name in sorted(base.kernels)}
    )


@pytest.mark.parametrize("text", [CHAIN, BRANCHES, LINEAR], ids=["chain", "branches", "linear"])
@pytest.mark.parametrize("seed", range(6))
def test_the_cut_is_the_cheapest_of_all_choices(text: str, seed: int) -> None:
    model = model_of(text)
    shapes = observe_shapes(model_to_proto(model))
    problem = pose_problem(model.graph, plan_of(model), shapes, random_profile(seed))
    for table in problem.tables.values():  # what the cut cannot express is made dearer first, as the choice does
        table[0][1] = max(table[0][1], table[0][0] + table[1][1] - table[1][0])
    free = [at for at, unit in enumerate(problem.units) if unit.is_free]
    every = [frozenset(chosen) for size in range(len(free) + 1) for chosen in combinations(free, size)]
    assert problem.cost(_cheapest(problem)) == pytest.approx(min(map(problem.cost, every)), abs=0.05)


def choice_of(text: str, profile: Profile, objective: str = "speed"):
    model = model_of(text)
    return choose_float(model, plan_of(model), observe_shapes(model_to_proto(model)), profile, objective)


def test_nothing_is_kept_float_where_int8_is_faster() -> None:
    assert choice_of(CHAIN, profile_of()).regions == ()


def test_everything_is_kept_float_where_pairs_are_dear() -> None:
    choice = choice_of(CHAIN, profile_of(pair=50.0))
    assert set(choice.float_nodes()) == {"a", "b", "c", "s", "m", "y"}
    assert len(choice.regions) == 2, "the softmax between them is float anyway"
    assert choice.chosen_us == choice.float_us < choice.int8_us


def test_a_slow_kernel_between_int8_ones_goes_only_if_it_pays_for_its_pairs() -> None:
    text = CHAIN.replace("b = Conv(a, v)", "b = Conv<group=16, kernel_shape=[3,3], pads=[1,1,1,1]>(a, d) ")
    text = text.replace("p = Softmax(b)", "e = Conv(b, v) p = Softmax(e)")
    model = parse(text, d=weight(16, 1, 3, 3), **WEIGHTS)
    shapes = observe_shapes(model_to_proto(model))
    for us, chosen in ((15.0, set()), (40.0, {"b"})):
        profile = profile_of(**{"int8_Conv_depthwise": us})
        assert set(choose_float(model, plan_of(model), shapes, profile).float_nodes()) == chosen


def test_reasons_give_the_gain() -> None:
    reasons = choice_of(CHAIN, profile_of(pair=50.0)).float_nodes()
    assert "us more than float with its Q/DQ pairs" in reasons["a"] and "int8 here costs" in reasons["a"]


def test_size_keeps_everything_int8_and_balanced_what_saves_less_time_than_it_adds_bytes() -> None:
    slightly = profile_of(int8=0.9, pair=2.0)
    assert choice_of(CHAIN, slightly, "size").regions == ()
    assert choice_of(CHAIN, slightly, "speed").regions and not choice_of(CHAIN, slightly, "balanced").regions
    gate = profile_of(int8_Sigmoid=60.0, float_Silu=1.0)  # no weights: what saves time costs no bytes
    assert set(choice_of(CHAIN, gate, "balanced").float_nodes()) == {"s", "m"}


def test_balanced_weighs_a_layer_by_its_share_of_all_weights() -> None:
    text = "g (float[1,16,8,8] x) => (float[1,16,8,8] y) { a = Conv<group=16>(x, d) s = Softmax(a) y = Conv(s, w) }"
    profile = profile_of(int8_Conv_depthwise=40.0)
    for taps, chosen in ((1, {"a"}), (64, set())):  # 16 and 1,024 weights of one, beside 256 of the other
        model = parse(
            text.replace("float[1,16,8,8] x", f"float[1,16,{7 + taps},8] x"), d=weight(16, 1, taps, 1), **WEIGHTS
        )
        kind = "Conv.depthwise" if taps == 1 else "Conv.depthwise_wide"
        kernels = profile.kernels | {f"int8.{kind}": Kernel(40.0)}
        costs = dataclasses.replace(profile, kernels=kernels)
        shapes = observe_shapes(model_to_proto(model))
        for objective, expected in (("balanced", chosen), ("speed", {"a"})):
            choice = choose_float(model, plan_of(model), shapes, costs, objective)
            assert set(choice.float_nodes()) == expected, (taps, objective)


GATES = {
    "silu": "g = Sigmoid(a) m = Mul(a, g)",
    "scaled": "t = Mul(a, c) g = Sigmoid(t) m = Mul(a, g)",
    "other factor first": "t = Mul(c, a) g = Sigmoid(t) m = Mul(g, a)",
}


@pytest.mark.parametrize("gate", sorted(GATES))
def test_a_gate_is_one_kernel_in_float_and_two_in_int8(gate: str) -> None:
    model = gated(GATES[gate])
    units = units_of(model)
    assert [unit.float_us for unit in units if unit.is_silu] == [10.0]
    assert [unit.int8_us for unit in units if unit.is_silu] == [10.0]


@pytest.mark.parametrize("other", ["t = Mul(a, a) g = Sigmoid(t) m = Mul(a, g)", "g = Sigmoid(a) m = Mul(b, g)"])
def test_other_products_with_a_sigmoid_are_no_gate(other: str) -> None:
    assert not any(unit.is_silu for unit in units_of(gated(other)))


def gated(text: str):
    whole = f"g (float[1,16,8,8] x) => (float[1,16,8,8] y) {{ a = Conv(x, w) b = Conv(x, v) {text} y = Conv(m, v) }}"
    return parse(whole, c=np.array(1.7, np.float32), **WEIGHTS)


def units_of(model):
    return pose_problem(model.graph, plan_of(model), observe_shapes(model_to_proto(model)), profile_of()).units


def test_the_padding_of_a_stem_is_paid_in_int8_and_gone_in_float() -> None:
    text = """g (float[1,3,8,8] x) => (float[1,16,8,8] y) {
        p = Pad(x, more) a = Conv<pads=[1,1,1,1]>(p, stem) y = Conv(a, v) }"""
    pads = np.array([0, 0, 0, 0, 0, 1, 0, 0], np.int64)
    model = parse(text, stem=weight(16, 4, 3, 3), v=WEIGHTS["v"], more=pads)
    kernels = {
        "float.Conv.stem": Kernel(0.0, ns_per_mac=1.0, ns_per_read=10.0),
        "int8.Conv.stem": Kernel(5.0, ns_per_read=10.0),
        "float.Pad": Kernel(7.0),
    }
    costs = profile_of()
    costs = dataclasses.replace(costs, kernels=costs.kernels | kernels)
    shapes = observe_shapes(model_to_proto(model))
    (stem,) = [u for u in pose_problem(model.graph, plan_of(model), shapes, costs).units if u.name == "a"]
    assert stem.float_us == pytest.approx(1e-3 * (16 * 64 * 27 + 10 * 3 * 64)), "three channels"
    assert stem.int8_us == pytest.approx(5.0 + 1e-3 * 10 * 4 * 64 + 7.0), "four, and the Pad"


def test_nodes_of_unknown_cost_are_left_to_the_rules() -> None:
    profile = profile_of(pair=50.0)
    kernels = {name: kernel for name, kernel in profile.kernels.items() if "Conv" not in name}
    choice = choice_of(CHAIN, dataclasses.replace(profile, kernels=kernels))
    assert not {"a", "b", "c", "y"} & set(choice.float_nodes())


def test_a_plan_takes_the_reasons_over() -> None:
    model = model_of(CHAIN)
    plan = make_plan(model, observe_shapes(model_to_proto(model)), ORT, float_nodes={"a": "it is slow"})
    assert plan.float_nodes["a"] == "it is slow"


def test_decisions_say_when_rules_decide_and_when_a_profile_is_borrowed(tmp_path) -> None:
    model, path = model_of(CHAIN), tmp_path / "p.json"
    shapes = observe_shapes(model_to_proto(model))
    rules = decide(model, shapes, dataclasses.replace(ORT, profile=None), QuantConfig())
    assert rules.choice is None and "its rules decide" in rules.to_dict()["note"]
    path.write_text(json.dumps(profile_of(pair=50.0).to_dict()))
    config = QuantConfig(profile=str(path), objective="speed")
    costs = decide(model, shapes, ORT, config)
    assert costs.to_dict()["profile"]["borrowed"] and not costs.plan.int8_nodes
    again = decide(model, shapes, ORT, config, earlier=costs)
    assert again.plan == costs.plan


def test_size_drops_the_conditions_that_are_about_speed() -> None:
    text = "g (float[1,8,8,8] x) => (float[1,8,8,8] y) { y = Conv(x, w) }"
    model = parse(text, w=weight(8, 8, 1, 1))
    shapes = observe_shapes(model_to_proto(model))
    assert not decide(model, shapes, ORT, QuantConfig()).plan.int8_nodes
    assert decide(model, shapes, ORT, QuantConfig(objective="size")).plan.int8_nodes == ("y",)


def linear_profile(gemm: Kernel, convolution: Kernel) -> Profile:
    base = profile_of(int8=0.1)
    return dataclasses.replace(
        base, kernels={**base.kernels, "int8.Gemm": gemm, "int8.Conv.pointwise": convolution, "int8.Move": Kernel(1.0)}
    )


@pytest.mark.parametrize(("convolution", "expected"), [(0.3, set()), (0.2, {"a"})], ids=["dearer", "cheaper"])
def test_a_linear_layer_is_a_convolution_where_that_is_cheaper_moves_included(
    convolution: float, expected: set[str]
) -> None:
    model = model_of(LINEAR)
    shapes = observe_shapes(model_to_proto(model))
    profile = linear_profile(Kernel(0.0, ns_per_written=1000 * 4.0 / 128), Kernel(8 * convolution))
    found = faster_as_convolution(model.graph, plan_of(model), shapes, profile)
    assert found == expected, "those whose output has no codes never are"


def test_a_layer_costs_what_the_better_of_its_forms_does() -> None:
    model = model_of(LINEAR)
    shapes = observe_shapes(model_to_proto(model))
    units = find_units(model.graph, plan_of(model), shapes, linear_profile(Kernel(9.0), Kernel(2.0)))
    assert {unit.name: unit.int8_us for unit in units if unit.nodes[0].op == "Gemm"} == {"a": 4.0, "b": 9.0, "y": 9.0}


def test_a_nearest_resize_costs_what_moving_its_values_does_and_lies_as_the_convolution_wrote_it() -> None:
    text = """g (float[1,16,8,8] x) => (float[1,16,16,16] y) {
        a = Conv(x, w) r = Resize<mode="MODE">(a, , scales) y = Conv(r, v) }"""
    found = {}
    for mode in ("nearest", "linear"):
        model = parse(text.replace("MODE", mode), **WEIGHTS, scales=np.float32([1, 1, 2, 2]))
        shapes = observe_shapes(model_to_proto(model))
        moves = {"int8.Transpose": Kernel(0.0, ns_per_written=1.0), "float.Reorder": Kernel(0.0, ns_per_written=2.0)}
        base = profile_of()
        profile = dataclasses.replace(base, kernels={**base.kernels, **moves})
        (unit,) = (u for u in find_units(model.graph, plan_of(model), shapes, profile) if u.name == "r")
        layouts = [layout_of(unit.nodes[0], int8, unit.is_free, shapes) for int8 in (False, True)]
        found[mode] = (unit.is_free, unit.float_us, unit.int8_us, layouts)
    values = 16 * 16 * 16 / 1000
    assert found["nearest"] == (True, 2 * values, values, [BLOCKED, LAST])
    assert found["linear"] == (False, 0.0, 0.0, [PLAIN, PLAIN])
