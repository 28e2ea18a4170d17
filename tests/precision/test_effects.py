"""Predicted divergence of every single rounding against the divergence that it really causes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from qdq_graphs import parse, weight

from onnx_hyvit.activation_scales import activation_qparams, weight_scales
from onnx_hyvit.backward import choose_loss
from onnx_hyvit.config import QuantConfig
from onnx_hyvit.costs import find_profile, pose_problem
from onnx_hyvit.graph import model_to_proto
from onnx_hyvit.numerics import fake_quantize
from onnx_hyvit.placement import make_plan
from onnx_hyvit.precision import Effects, Rounding, measure_effects
from onnx_hyvit.precision.choose import _State
from onnx_hyvit.prepared import prepare
from onnx_hyvit.recipes import find_recipe
from onnx_hyvit.reconstruct import Divergence
from onnx_hyvit.request import adapted_target, open_calibration
from onnx_hyvit.runtime import make_session

GRAPH = """g (float[N,16,8,8] x) => (float[N,8] y) {
    c = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(c) s = Sigmoid(r) m = Mul(r, s)
    e = Conv(m, w2, b2) a = Add(e, m) f = Conv(a, w3, b3)
    p = GlobalAveragePool(f) q = Flatten(p) y = Gemm(q, w4, b4) }"""
DATA = np.random.default_rng(0).standard_normal((64, 16, 8, 8)).astype(np.float32)


def effects_of(text: str, bits: str = "w6a6", **weights):
    """Float model, plan, scales and effects of a graph."""
    model = parse(text, **weights)
    config = QuantConfig(samples=None, batch_size=8, bits=bits)
    source = open_calibration(model, {"x": DATA}, config)
    prepared = prepare(model, config)
    width, codes = config.weight_bits, config.activation_bits
    plan = make_plan(prepared.model, prepared.shapes, adapted_target(config), weight_bits=width, activation_bits=codes)
    proto = model_to_proto(prepared.model)
    recipe = find_recipe("mse")
    qparams = activation_qparams(proto, plan, source, recipe) | weight_scales(prepared.model, plan, recipe)
    loss = choose_loss(proto, prepared.shapes)
    effects = measure_effects(
        proto, plan, qparams, prepared.shapes, [f for _, f in source], loss, draws=16, samples=64, threads=1
    )
    return prepared, proto, plan, qparams, effects


@pytest.fixture(scope="module")
def ready():
    return effects_of(
        GRAPH,
        w1=weight(16, 16, 3, 3), b1=np.zeros(16, np.float32),
        w2=weight(16, 16, 1, 1, seed=1), b2=np.zeros(16, np.float32),
        w3=weight(32, 16, 1, 1, seed=2), b3=np.zeros(32, np.float32),
        w4=8 * weight(32, 8, seed=3), b4=np.zeros(8, np.float32),
    )[1:]  # fmt: skip


def only_rounded(proto: onnx.ModelProto, rounding: Rounding, qparams) -> onnx.ModelProto:
    """The float model with just this one reading rounded."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    graph, params = changed.graph, qparams[rounding.tensor]
    if rounding.is_weight:
        stored = next(t for t in graph.initializer if t.name == rounding.tensor)
        stored.CopyFrom(numpy_helper.from_array(fake_quantize(numpy_helper.to_array(stored), params), stored.name))
    else:
        spec = params.spec
        low, high = ((code - int(params.zero_point)) * params.scale for code in (spec.qmin, spec.qmax))
        constants = {"t_low": low, "t_high": high, "t_scale": params.scale}
        graph.initializer.extend(numpy_helper.from_array(np.float32(value), name) for name, value in constants.items())
        made = [
            helper.make_node("Div", [rounding.tensor, "t_scale"], ["t_steps"]),
            helper.make_node("Round", ["t_steps"], ["t_whole"]),
            helper.make_node("Mul", ["t_whole", "t_scale"], ["t_value"]),
            helper.make_node("Clip", ["t_value", "t_low", "t_high"], ["t_rounded"]),
        ]
        nodes = list(graph.node)
        reader = next(node for node in nodes if node.name == rounding.reader)
        place = nodes.index(reader)
        for at, name in enumerate(reader.input):
            if name == rounding.tensor:
                reader.input[at] = "t_rounded"
        nodes = [
            onnx.NodeProto.FromString(node.SerializeToString()) for node in [*nodes[:place], *made, *nodes[place:]]
        ]
        del graph.node[:]
        graph.node.extend(nodes)
    return changed


def really(proto: onnx.ModelProto, rounding: Rounding, qparams) -> float:
    """KL when just this one reading is rounded."""
    changed = only_rounded(proto, rounding, qparams)
    wanted, found = (make_session(model).run({"x": DATA})["y"].astype(np.float64) for model in (proto, changed))
    logs = [values - np.log(np.exp(values).sum(1, keepdims=True)) for values in (wanted, found)]
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(1).mean())


def test_every_rounding_of_the_plan_is_a_term(ready):
    _, plan, _, effects = ready
    assert not effects.unknown
    assert {term.tensor for term in effects.roundings if term.is_weight} == set(plan.weights)
    assert {term.tensor for term in effects.roundings if not term.is_weight} == set(plan.activations) - set(plan.tied)
    assert len([term for term in effects.roundings if term.tensor == "m"]) == 2, "read by a layer and by an addition"


def test_predicted_divergence_is_what_each_rounding_causes(ready):
    proto, _, qparams, effects = ready
    for number, rounding in enumerate(effects.roundings):
        if rounding.reader:
            predicted, found = effects.divergence([[number]]), really(proto, rounding, qparams)
            assert predicted == pytest.approx(found, rel=0.35), rounding


def test_every_head_counts_by_its_own_answers_and_on_the_scale_that_is_measured():
    """A class per image, a class per position, an embedding and a map of numbers hang on one body."""
    text = GRAPH.replace(
        "(float[N,8] y)", "(float[N,8] y, float[N,8,8,8] logits, float[N,8] embed, float[N,4,8,8] map)"
    ).replace("y = Gemm(q, w4, b4)", "y = Gemm(q, w4, b4) logits = Conv(a, w5) embed = Gemm(q, w6) map = Conv(a, w7)")
    weights = {
        "w1": weight(16, 16, 3, 3), "b1": np.zeros(16, np.float32), "w2": weight(16, 16, 1, 1, seed=1),
        "b2": np.zeros(16, np.float32), "w3": weight(32, 16, 1, 1, seed=2), "b3": np.zeros(32, np.float32),
        "w4": 8 * weight(32, 8, seed=3), "b4": np.zeros(8, np.float32), "w5": 4 * weight(8, 16, 1, 1, seed=4),
        "w6": weight(32, 8, seed=5), "w7": weight(4, 16, 1, 1, seed=6),
    }  # fmt: skip
    prepared, proto, _, qparams, effects = effects_of(text, "w4a4", **weights)
    loss = choose_loss(proto, prepared.shapes)
    assert [head.kind for head in loss.heads] == ["softmax", "softmax", "embedding", "regression"]
    judge = Divergence(proto, loss, [{"x": DATA}], threads=1)
    for number, rounding in enumerate(effects.roundings):
        if rounding.reader:
            found = judge.of(judge.session(only_rounded(proto, rounding, qparams)))
            assert effects.divergence([[number]]) == pytest.approx(found, rel=0.4), rounding


def test_readings_of_one_tensor_add_up_before_they_are_squared():
    values = np.array([[1.0, -1.0, 2.0]])
    effects = Effects(tuple(Rounding(name, "r") for name in "aab"), values)
    assert effects.divergence([[0, 1], [2]]) == pytest.approx(2.0)
    assert effects.divergence([[0], [1], [2]]) == pytest.approx(3.0)
    assert effects.divergence([[]]) == 0.0


def test_the_same_seed_gives_the_same_effects(ready):
    proto, plan, qparams, _ = ready
    shapes = {name: (1, *tensor_shape[1:]) for name, tensor_shape in _shapes(proto).items()}
    loss = choose_loss(proto, shapes)
    runs = [measure_effects(proto, plan, qparams, shapes, [{"x": DATA}], loss, samples=4, threads=1) for _ in range(2)]
    assert runs[0].values.shape[0] == 16 and np.array_equal(runs[0].values, runs[1].values)


def _shapes(proto):
    from onnx_hyvit.runtime import observe_shapes

    return observe_shapes(proto)


def test_rounding_of_the_scores_themselves_counts():
    """A convolution makes the scores, a Softmax reads them."""
    text = """g (float[N,16,8,8] x) => (float[N,16,8,8] y) {
        a = Conv(x, w1) l = Conv(a, w2) y = Softmax<axis=1>(l) }"""
    weights = {"w1": weight(16, 16, 1, 1), "w2": 8 * weight(16, 16, 1, 1, seed=1)}
    _, proto, plan, qparams, effects = effects_of(text, "w8a8", **weights)
    assert "l" in plan.activations and not effects.unknown
    number = next(at for at, term in enumerate(effects.roundings) if term.tensor == "l")
    predicted = effects.divergence([[number]])
    rounded = fake_quantize(_run(proto, "l"), qparams["l"]).astype(np.float64)
    logs = [v - np.log(np.exp(v).sum(1, keepdims=True)) for v in (_run(proto, "l").astype(np.float64), rounded)]
    assert predicted == pytest.approx(float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(1).mean()), rel=0.35)


def _run(proto: onnx.ModelProto, tensor: str) -> np.ndarray:
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    shown.graph.output.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
    return make_session(shown).run({"x": DATA}, [tensor])[tensor]


def test_the_weight_behind_a_quantized_output_is_a_term():
    text = "g (float[N,16,8,8] x) => (float[N,16,8,8] y) { a = Conv(x, w1) r = Relu(a) y = Conv(r, w2) }"
    _, _, plan, _, effects = effects_of(text, w1=weight(16, 16, 1, 1), w2=weight(16, 16, 1, 1, seed=1))
    assert "y" in plan.activations
    assert {term.tensor for term in effects.roundings if term.is_weight} == {"w1", "w2"}
    assert "" in {term.reader for term in effects.roundings if term.tensor == "y"}


def test_what_moves_codes_does_not_hide_the_layer_behind_it():
    """With the first layer in float the second still reads codes: the rounding only moves behind the MaxPool."""
    text = """g (float[N,16,8,8] x) => (float[N,8] y) {
        a = Conv(x, w1) r = Relu(a) m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) c = Conv(m, w2)
        p = GlobalAveragePool(c) q = Flatten(p) y = Gemm(q, w3) }"""
    weights = {"w1": weight(16, 16, 1, 1), "w2": weight(16, 16, 1, 1, seed=1), "w3": 8 * weight(16, 8, seed=2)}
    prepared, _, plan, _, effects = effects_of(text, "w8a4", **weights)
    assert plan.carried_nodes
    profile = find_profile("ort-x86-avx2")
    assert profile is not None
    graph = prepared.model.graph
    problem = pose_problem(graph, plan, prepared.shapes, profile, all_free=True)
    first = next(at for at, unit in enumerate(problem.units) if unit.nodes[0].op == "Conv")
    second = next(at for at, unit in enumerate(problem.units) if unit.nodes[0].op == "Conv" and at != first)
    state = _State(graph, problem, effects, None, frozenset(plan.carried_nodes))
    whole = state.divergence(["r"], state.int8)
    assert whole > 0
    assert state.divergence(["r"], state.int8 - {first}) == whole
    assert state.divergence(["r"], state.int8 - {first, second}) == 0
