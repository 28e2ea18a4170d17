"""Reconstruction of plans in which some nodes have 16-bit activations: each width of a tensor has its own scale."""

from __future__ import annotations

import numpy as np
import pytest
from qdq_graphs import HEADER_21
from reconstruct_cases import DATA, graph, prepared_for

from onnx_hyvit.graph import model_to_proto
from onnx_hyvit.insert_qdq import insert_qdq
from onnx_hyvit.recipes import Reconstruction
from onnx_hyvit.reconstruct import find_layers, reconstruct
from onnx_hyvit.reconstruct.budget import SearchCost
from onnx_hyvit.reconstruct.layers import parameters_of
from onnx_hyvit.reconstruct.trial import make_trial
from onnx_hyvit.runtime import make_session

WIDE = ("d", "s", "m")


@pytest.fixture(scope="module")
def ready():
    return prepared_for("w4a4", graph(HEADER_21), DATA, wide=WIDE)


def test_trial_and_finished_model_agree(ready):
    prepared, plan, qparams, _, data = ready
    assert set(plan.conversions) == {"r_as_uint16", "m_as_uint8"} and plan.activations["m_as_uint8"].bits == 4
    layers = find_layers(prepared.model, plan, prepared.shapes)
    trial = make_trial(prepared.model, plan, parameters_of(layers))
    assert set(trial.pairs) == set(plan.activations) - set(plan.tied)
    assert len({pair.scale for pair in trial.pairs.values()}) == len(trial.pairs)
    given = {**trial.feeds(qparams), **trial.parameters}
    found = make_session(trial.proto, optimize="none").run({"x": data, **given})["y"]
    finished = model_to_proto(insert_qdq(prepared.model, plan, qparams))
    wanted = make_session(finished, optimize="none").run({"x": data})["y"]
    exact = make_session(model_to_proto(prepared.model)).run({"x": data})["y"]
    assert np.square(found - exact).mean() < 2 * np.square(wanted - exact).mean()
    given["r_as_uint16_scale"] = np.asarray(given["r_as_uint16_scale"] / 4)
    assert not np.array_equal(make_session(trial.proto, optimize="none").run({"x": data, **given})["y"], found)


@pytest.mark.parametrize("sequential", [True, False])
def test_every_width_of_a_tensor_is_searched(ready, sequential):
    prepared, plan, qparams, source, data = ready
    settings = Reconstruction(sequential=sequential)
    result = reconstruct(prepared.model, plan, qparams, prepared.shapes, source, settings, threads=1)
    assert result.kept and result.divergence_after < result.divergence_before
    searched = [choice.tensor for block in result.blocks for choice in block.ranges]
    assert len(searched) == len(set(searched))
    assert set(searched) == {name for name in plan.activations if name not in plan.tied}
    assert {name: result.qparams[name].spec for name in searched} == {name: plan.activations[name] for name in searched}
    start, end = (
        make_session(model_to_proto(insert_qdq(prepared.model, plan, *numbers))).run({"x": data})["y"]
        for numbers in ((qparams,), (result.qparams, result.parameters))
    )
    exact = make_session(model_to_proto(prepared.model)).run({"x": data})["y"]
    assert np.square(end - exact).mean() < np.square(start - exact).mean()


def test_a_conversion_is_a_range_of_the_block_that_makes_its_tensor(ready):
    prepared, plan, _, _, _ = ready
    whole = prepared.structure.blocks
    cost = SearchCost(prepared.model, plan, whole, prepared.shapes)
    made = {tensor.name for node in prepared.model.graph.nodes for tensor in node.outputs}
    own = [name for name in plan.activations if name not in plan.tied and plan.values_of(name) in made]
    assert sum(cost._ranges) == len(own)
