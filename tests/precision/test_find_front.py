"""The greedy choice on a chain of layers, with made-up effects and costs."""

from __future__ import annotations

import numpy as np
import pytest
from qdq_graphs import parse, plan_of, weight

from onnx_hyvit.costs import Kernel, Profile, pose_problem
from onnx_hyvit.graph import model_to_proto
from onnx_hyvit.precision import Budget, Effects, Rounding, find_front
from onnx_hyvit.precision.choose import _State
from onnx_hyvit.runtime import observe_shapes

MACHINE = {"cpu": "none", "vnni": False, "onnxruntime": "0", "threads": 1}
KERNELS = {f"float.Conv.{kind}": Kernel(20.0) for kind in ("pointwise", "dense", "stem")} | {
    f"int8.Conv.{kind}": Kernel(10.0) for kind in ("pointwise", "dense", "stem")
}
KERNELS |= {f"float.{name}": Kernel(1.0) for name in ("QuantizeLinear", "DequantizeLinear", "Reorder")}
KERNELS["int8.Transpose"] = Kernel(1.0)
PROFILE = Profile("made-up", MACHINE, 0.0, KERNELS)
CHAIN = """g (float[1,16,8,8] x) => (float[1,16,8,8] y) {
    a = Conv(x, w) b = Conv(a, v) c = Conv(b, u) y = Conv(c, t) }"""


@pytest.fixture
def chain():
    weights = {name: weight(16, 16, 1, 1, seed=seed) for seed, name in enumerate("wvut")}
    model = parse(CHAIN, **weights)
    shapes = observe_shapes(model_to_proto(model))
    plan = plan_of(model)
    return model.graph, pose_problem(model.graph, plan, shapes, PROFILE)


def effects_of(graph, **sizes: float) -> Effects:
    """One term for each weight: ``sizes`` are the divergences."""
    readers = {node.inputs[1].name: node.name for node in graph.nodes}
    terms = tuple(Rounding(name, readers[name], True) for name in sizes)
    return Effects(terms, np.sqrt(2 * np.array([list(sizes.values())])))


def nodes_of(front):
    return [name for step in front.steps for name in step.nodes]


def test_the_change_of_a_cost_is_the_difference_of_two_costs(chain):
    _, problem = chain
    every = frozenset(at for at, unit in enumerate(problem.units) if unit.is_free)
    for at in every:
        for members in (frozenset((at,)), frozenset((at, *sorted(problem.near(at) & every)[:1]))):
            assert problem.change(every, members) == pytest.approx(problem.cost(every - members) - problem.cost(every))


def test_what_matters_most_goes_first_and_the_budget_ends_it(chain):
    graph, problem = chain
    effects = effects_of(graph, w=0.1, v=1.0, u=0.2, t=0.01)
    layer = {node.inputs[1].name: node.name for node in graph.nodes}
    front = find_front(graph, problem, effects, Budget(share=0.4, rate=0.0))
    assert nodes_of(front)[0] == layer["v"]
    assert front.divergence == pytest.approx(1.31)
    spent = sum(max(step.cost_us, 0) for step in front.steps)
    assert 0 < spent <= 0.4 * front.int8_us
    assert front.steps[-1].divergence < front.divergence
    assert set(front.float_nodes()) == set(nodes_of(front))


def test_a_step_that_saves_next_to_nothing_for_free_does_not_end_the_search(chain):
    graph, problem = chain
    for unit in problem.units:
        object.__setattr__(unit, "int8_us", 30.0 if unit.nodes[0].name == graph.nodes[3].name else 10.0)
    effects = effects_of(graph, w=0.1, v=1.0, u=0.2, t=0.001)
    front = find_front(graph, problem, effects, Budget(share=0.4, rate=0.0))
    assert graph.nodes[1].name in nodes_of(front)
    assert (graph.nodes[3].name,) not in [step.nodes for step in front.steps]


def test_nothing_is_bought_that_is_not_worth_its_time(chain):
    graph, problem = chain
    effects = effects_of(graph, w=0.25, v=0.25, u=0.25, t=0.25)
    assert not find_front(graph, problem, effects, Budget(share=1.0, rate=100.0)).steps
    assert not find_front(graph, problem, effects, Budget(share=0.0, rate=0.0)).steps
    assert not find_front(graph, problem, effects, Budget(share=1.0, rate=0.0, layers=False)).steps


def test_time_has_a_price_in_divergence_except_for_a_limit(chain):
    graph, problem = chain
    effects = effects_of(graph, w=0.1, v=1.0, u=0.2, t=0.01)
    open_purse = find_front(graph, problem, effects, Budget(share=1.0, rate=0.0))
    tight = find_front(graph, problem, effects, Budget(share=1.0, rate=0.0, least=1.0))
    assert 0 < len(tight.steps) < len(open_purse.steps)
    before = tight.divergence
    for step in tight.steps:
        assert before - step.divergence >= step.cost_us / tight.int8_us
        before = step.divergence
    hardly = effects_of(graph, w=1e-5, v=1e-4, u=2e-5, t=1e-6)  # the same shares of next to nothing
    assert find_front(graph, problem, hardly, Budget(share=1.0, rate=0.0)).steps
    assert not find_front(graph, problem, hardly, Budget(share=1.0, rate=0.0, least=1.0)).steps
    assert find_front(graph, problem, hardly, Budget(share=1.0, rate=0.0, least=1.0, limit=2e-5)).steps


def test_more_is_spent_on_a_model_that_is_not_sound(chain):
    graph, problem = chain
    effects = effects_of(graph, w=0.1, v=1.0, u=0.2, t=0.01)
    plain = find_front(graph, problem, effects, Budget(share=0.2, rate=0.0))
    unsound = find_front(graph, problem, effects, Budget(share=0.2, rate=0.0, most=0.5, sound=0.05))
    sound = find_front(graph, problem, effects, Budget(share=0.2, rate=0.0, most=0.5, sound=2.0))
    assert len(unsound.steps) > len(plain.steps) and sound == plain


def test_a_limit_is_reached_whatever_it_costs(chain):
    graph, problem = chain
    effects = effects_of(graph, w=0.1, v=1.0, u=0.2, t=0.01)
    front = find_front(graph, problem, effects, Budget(share=0.0, rate=100.0, limit=0.15, layers=False))
    assert front.steps[-1].divergence <= 0.15 < front.steps[-2].divergence


def test_borrowed_costs_never_make_a_layer_free(chain):
    graph, problem = chain
    for unit in problem.units:
        object.__setattr__(unit, "int8_us", 30.0)  # slower than float, says the other processor
    effects = effects_of(graph, w=0.25, v=0.25, u=0.25, t=0.25)
    assert find_front(graph, problem, effects, Budget(share=0.0, rate=0.0)).steps
    assert not find_front(graph, problem, effects, Budget(share=0.0, rate=0.0), layers_cost=0.5).steps


def test_bytes_of_float_weights_count_when_they_are_asked_to(chain):
    graph, problem = chain
    effects = effects_of(graph, w=0.1, v=1.0, u=0.2, t=0.01)
    free = find_front(graph, problem, effects, Budget(share=0.5, rate=0.0))
    assert free.steps  # a quarter of the weights in float: 75 % more bytes
    dear = find_front(graph, problem, effects, Budget(share=0.5, rate=0.0, bytes=1.0))
    assert not dear.steps
    enough = find_front(graph, problem, effects, Budget(share=1.5, rate=0.0, bytes=1.0))
    assert [step.cost_us for step in enough.steps] == [step.cost_us for step in free.steps][: len(enough.steps)]
    assert len(enough.steps) == 1 and enough.steps[0].nodes == free.steps[0].nodes


def test_what_was_measured_before_a_step_is_what_a_fresh_look_finds(chain):
    graph, problem = chain
    effects = effects_of(graph, w=0.1, v=1.0, u=0.2, t=0.01)
    state = _State(graph, problem, effects, None, frozenset())
    while state.int8:
        best = state.best(lambda saved, cost: True, True)
        if best is None:
            break
        state.take(best[0])
        fresh = _State(graph, problem, effects, None, frozenset())
        fresh.int8 = state.int8
        assert state.best(lambda saved, cost: True, True) == fresh.best(lambda saved, cost: True, True)
    assert not state.int8


def test_units_whose_time_is_unknown_can_go_back_to_float_at_no_cost():
    model = parse(CHAIN, **{name: weight(16, 16, 1, 1, seed=seed) for seed, name in enumerate("wvut")})
    graph, plan = model.graph, plan_of(model)
    kernels = {name: kernel for name, kernel in KERNELS.items() if "Conv" not in name}
    shapes = dict.fromkeys("xabcy", (1, 16, 8, 8)) | dict.fromkeys("wvut", (16, 16, 1, 1))
    costs = Profile("made-up", MACHINE, 0.0, kernels)
    effects = effects_of(graph, w=0.1, v=1.0, u=0.2, t=0.01)
    fixed, free = (pose_problem(graph, plan, shapes, costs, all_free=value) for value in (False, True))
    assert not any(unit.is_free for unit in fixed.units) and sum(unit.is_free for unit in free.units) == 4
    assert not find_front(graph, fixed, effects, Budget(share=0.5, rate=0.0)).steps
    assert set(nodes_of(find_front(graph, free, effects, Budget(share=9.0, rate=0.0, limit=0.0)))) == {
        node.name for node in graph.nodes
    }
