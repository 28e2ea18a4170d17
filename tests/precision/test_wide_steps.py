"""Steps to 16-bit activations: taken for roundings of activations, not of weights, and only where asked for."""

from __future__ import annotations

import numpy as np
import pytest
from qdq_graphs import HEADER_21, parse, plan_of, weight
from test_find_front import PROFILE, nodes_of

from onnx_hyvit.backward import choose_loss
from onnx_hyvit.costs import pose_problem
from onnx_hyvit.graph import model_to_proto
from onnx_hyvit.numerics import qparams_from_range
from onnx_hyvit.precision import Budget, Effects, Rounding, find_front, measure_effects
from onnx_hyvit.precision.choose import _State
from onnx_hyvit.runtime import observe_shapes
from onnx_hyvit.targets import load_target

CHAIN = """g (float[1,16,8,8] x) => (float[1,16,8,8] y) {
    a = Conv(x, w) b = Conv(a, v) m = Transpose<perm=[0,1,3,2]>(b) c = Conv(m, u) y = Conv(c, t) }"""
LAYERS = ["a", "b", "c", "y"]
READER = {"x": "a", "a": "b", "b": "m", "c": "y", "y": "", "w": "a", "v": "b", "u": "c", "t": "y"}
NOTHING = Budget(share=-1.0, rate=0.0)
QNN = load_target("qnn")


@pytest.fixture
def chain():
    model = parse(CHAIN, HEADER_21, **{name: weight(16, 16, 1, 1, seed=seed) for seed, name in enumerate("wvut")})
    shapes, plan = observe_shapes(model_to_proto(model)), plan_of(model, QNN)
    return model.graph, pose_problem(model.graph, plan, shapes, PROFILE, all_free=True)


def effects_of(**sizes: float) -> Effects:
    """One term for each tensor: ``sizes`` are the divergences."""
    terms = tuple(Rounding(name, READER[name], name in "wvut") for name in sizes)
    return Effects(terms, np.sqrt(2 * np.array([list(sizes.values())])))


def front_of(chain, effects, limit: float | None, wide_cost: float | None = 0.5):
    budget = Budget(share=-1.0, rate=0.0, limit=limit)
    return find_front(*chain, effects, budget, layers_cost=0.5, carried=("m",), wide_cost=wide_cost)


def test_roundings_of_activations_are_raised_to_16_bits(chain):
    front = front_of(chain, effects_of(a=1.0, v=0.01), limit=0.1)
    assert [(set(step.nodes), step.wide) for step in front.steps] == [({"a", "b"}, True)]
    assert not front.float_nodes() and set(front.wide_nodes()) == {"a", "b"}
    assert front.wide_nodes()["a"].startswith("16 bits here takes away 99.0% of the predicted divergence")
    assert front.to_dict()["steps"][0]["to"] == "16 bits"


def test_roundings_of_weights_are_taken_back_to_float(chain):
    front = front_of(chain, effects_of(a=0.01, v=1.0), limit=0.1)
    assert [(step.nodes, step.wide) for step in front.steps] == [(("b",), False)]
    assert not front.wide_nodes() and front.to_dict()["steps"][0]["to"] == "float"


def test_codes_that_are_moved_are_kept_by_whoever_reads_them_behind(chain):
    front = front_of(chain, effects_of(b=1.0), limit=0.0)
    assert [(set(step.nodes), step.wide) for step in front.steps] == [({"b", "c"}, True)]


def test_a_wide_layer_whose_weight_matters_goes_on_to_float(chain):
    front = front_of(chain, effects_of(a=1.0, v=0.3), limit=0.0)
    assert [step.wide for step in front.steps] == [True, False]
    assert front.steps[1].divergence == pytest.approx(0.0) and front.steps[1].nodes == ("b",)
    assert set(front.wide_nodes()) == {"a"} and set(front.float_nodes()) == {"b"}
    alone = front_of(chain, effects_of(v=0.3), limit=0.0).steps[0]
    assert 0 < front.steps[1].cost_us < alone.cost_us, "what 16 bits cost is paid already"


def test_nothing_is_raised_without_need_or_without_kernels(chain):
    effects = effects_of(a=1.0, v=0.01)
    assert not front_of(chain, effects, limit=None).steps
    plain = front_of(chain, effects, limit=0.1, wide_cost=None)
    assert not plain.wide_nodes() and set(nodes_of(plain)) <= set(LAYERS)
    budget = Budget(share=9.0, rate=0.0)
    paying, floats = (find_front(*chain, effects, budget, carried=("m",), wide_cost=cost) for cost in (0.5, None))
    assert paying.steps[0].wide and floats.steps and not floats.wide_nodes()


def test_16_bits_everywhere_cost_their_share_of_what_float_does(chain):
    problem = chain[1]
    effects = effects_of(**dict.fromkeys("xabcy", 1.0))
    front = find_front(*chain, effects, Budget(share=-1.0, rate=0.0, limit=0.0), carried=("m",), wide_cost=0.25)
    layers = frozenset(at for at, unit in enumerate(problem.units) if unit.name in LAYERS)
    every = frozenset(at for at, unit in enumerate(problem.units) if unit.is_free)
    assert all(step.wide for step in front.steps) and set(front.wide_nodes()) == set(LAYERS)
    assert sum(step.cost_us for step in front.steps) == pytest.approx(0.25 * problem.change(every, layers))


def test_what_was_measured_before_a_step_is_what_a_fresh_look_finds(chain):
    effects = effects_of(x=0.1, a=1.0, b=0.2, c=0.5, y=0.3, w=0.1, v=0.6, u=0.2, t=0.05)
    state = _State(*chain, effects, 0.5, frozenset("m"), 0.0, 0.5)
    seen = []
    while best := state.best(lambda saved, cost: True, True):
        seen.append(best.wide)
        state.take(best.members, best.wide)
        fresh = _State(*chain, effects, 0.5, frozenset("m"), 0.0, 0.5)
        fresh.int8, fresh.wide = state.int8, state.wide
        assert state.best(lambda saved, cost: True, True) == fresh.best(lambda saved, cost: True, True)
    assert True in seen and False in seen
    assert state.divergence(state.tensors(), state.int8, state.int8 - state.wide) == 0


def test_effects_of_a_plan_with_16_bits_are_those_of_its_codes():
    text = "g (float[4,16,8,8] x) => (float[4,16] y) { a = Conv(x, w) p = GlobalAveragePool(a) y = Flatten(p) }"
    model = parse(text, HEADER_21, w=weight(16, 16, 1, 1))
    proto, shapes = model_to_proto(model), observe_shapes(model_to_proto(model))
    data = [{"x": np.random.default_rng(0).standard_normal((4, 16, 8, 8)).astype(np.float32)}]

    def terms(*wide: str) -> dict[tuple[str, str], float]:
        plan = plan_of(model, QNN, wide_nodes=dict.fromkeys(wide, "a test"))
        qparams = {name: qparams_from_range(-8.0, 8.0, plan.activations[name]) for name in plan.activations}
        effects = measure_effects(proto, plan, qparams, shapes, data, choose_loss(proto, shapes, {}))
        each = [effects.divergence([[number]]) for number in range(len(effects.roundings))]
        return {(r.tensor, r.reader): value for r, value in zip(effects.roundings, each, strict=True)}

    narrow, maker, reader = terms(), terms("a"), terms("p")
    assert narrow["a", "p"] > 0
    assert maker["a", "p"] == pytest.approx(narrow["a", "p"], rel=0.5), "16 bits, converted to 8 for its reader"
    assert reader["a", "p"] == pytest.approx(narrow["a", "p"], rel=0.5), "8 bits, converted to 16 for its reader"
    both = terms("a", "p")
    assert both["a", "p"] < 1e-3 * narrow["a", "p"] and both["x", "a"] < 1e-3 * narrow["x", "a"]
