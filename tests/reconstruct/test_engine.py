"""The engine on whole graphs: the trial model is the finished model, and reconstruction brings it closer to float."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pieces import ClusterExecutor
from reconstruct_cases import DATA, graph, prepared_for

import onnx_hyvit
from onnx_hyvit.blocks import find_structure
from onnx_hyvit.config import QuantConfig
from onnx_hyvit.graph import load_model, model_to_proto
from onnx_hyvit.insert_qdq import insert_qdq
from onnx_hyvit.recipes import SCALES_ONLY, Reconstruction
from onnx_hyvit.reconstruct import find_layers, reconstruct
from onnx_hyvit.reconstruct.block import reconstruct_block
from onnx_hyvit.reconstruct.layers import parameters_of
from onnx_hyvit.reconstruct.objective import Objective
from onnx_hyvit.reconstruct.sweep import Sweep
from onnx_hyvit.reconstruct.trial import make_trial
from onnx_hyvit.request import open_calibration
from onnx_hyvit.runtime import make_session, observe_shapes
from onnx_hyvit.tasks import Workers, local_processes, run_tasks


def finished(model, plan, qparams, parameters=None):
    return model_to_proto(insert_qdq(model, plan, qparams, parameters))


def test_the_trial_model_computes_what_the_finished_model_computes():
    prepared, plan, qparams, source, data = prepared_for("w8a8", graph(), DATA)
    layers = find_layers(prepared.model, plan, prepared.shapes)
    assert len(layers) == 5 and all(layer.bias for layer in layers)
    batches = [feeds for _, feeds in source]
    sweep = Sweep(prepared.model, plan, layers, qparams, batches, Reconstruction(), Objective(), threads=1)
    session = make_session(sweep.trial.proto, optimize="none")
    given = {**sweep.trial.feeds(qparams), **sweep.parameters}
    found = session.run({"x": data, **given})["y"]
    wanted = make_session(finished(prepared.model, plan, qparams), optimize="none").run({"x": data})["y"]
    exact = make_session(model_to_proto(prepared.model)).run({"x": data})["y"]
    # only the rounding of biases to int32 differs, which tips a few activations to the next code
    assert np.linalg.norm(found - wanted) < 0.3 * np.linalg.norm(wanted - exact)


def test_layers_know_their_padding(ready):
    prepared, plan = ready[:2]
    by_node = {layer.node: layer for layer in find_layers(prepared.model, plan, prepared.shapes)}
    geometry = by_node["f"].geometry
    assert geometry.pads == (0, 0, 1, 1) and geometry.output_size((8, 8)) == (4, 4)


@pytest.mark.parametrize(
    "settings",
    [
        Reconstruction(),
        Reconstruction(metric="fisher", try_symmetric=True),
        Reconstruction(rounding="nearest", search=False),
    ],
    ids=["default", "fisher", "biases"],
)
def test_outputs_come_closer_to_float(ready, settings):
    prepared, plan, qparams, source, data = ready
    model = load_model(model_to_proto(prepared.model))
    result = reconstruct(model, plan, qparams, prepared.shapes, source, settings, threads=1)
    assert result.kept and result.divergence_after < result.divergence_before
    start = finished(model, plan, qparams)
    exact = make_session(model_to_proto(prepared.model)).run({"x": data})["y"]
    errors = [
        np.square(make_session(proto).run({"x": data})["y"] - exact).mean()
        for proto in (start, finished(model, plan, result.qparams, result.parameters))
    ]
    assert errors[1] < errors[0]
    report = result.to_dict()
    assert report["weighting"].startswith(settings.metric) and len(report["blocks"]) == len(result.blocks)
    assert all(block.error_after >= 0 for block in result.blocks)


def test_a_result_that_is_worse_is_not_used(ready, monkeypatch, caplog):
    prepared, plan, qparams, source, _ = ready
    values = [np.full(8, 1.0), np.full(8, 2.0)]
    monkeypatch.setattr("onnx_hyvit.reconstruct.engine._divergences", lambda *_: values)
    caplog.set_level("INFO")
    result = reconstruct(prepared.model, plan, qparams, prepared.shapes, source, Reconstruction(search=False))
    assert not result.kept and result.parameters == {} and result.qparams == qparams
    assert "not used" in caplog.text


def test_every_weight_and_scale_is_an_input_of_the_trial_model(ready):
    prepared, plan, _, _, _ = ready
    layers = find_layers(prepared.model, plan, prepared.shapes)
    trial = make_trial(prepared.model, plan, parameters_of(layers))
    inputs = {value.name for value in trial.proto.graph.input}
    assert {name for pair in trial.pairs.values() for name in (pair.scale, pair.zero_point)} <= inputs
    assert set(parameters_of(layers)) <= inputs
    assert set(trial.pairs) == set(plan.activations) - set(plan.tied)


def test_blocks_are_those_of_the_rewritten_graph_and_bridges_keep_their_kind(tiny_model: Path, tiny_data: Path):
    config = QuantConfig(recipe="q-hyvit", bits="w4a8", samples=8, target="ort-x86-avx2")
    results = [onnx_hyvit.quantize(tiny_model, None, calibration=tiny_data, config=config) for _ in range(2)]
    report = results[0].report["reconstruction"]
    assert sum(block["kind"] == "bridge" for block in report["blocks"]) == 3
    assert report["divergence_after"] < report["divergence_before"]
    assert results[0].model.SerializeToString() == results[1].model.SerializeToString()


def test_partition_covers_every_node(ready):
    prepared = ready[0]
    blocks = find_structure(prepared.model, observe_shapes(model_to_proto(prepared.model))).blocks
    names = [name for block in blocks for name in block.nodes]
    assert sorted(names) == sorted(node.name for node in prepared.model.graph.nodes)


def test_the_search_sees_no_more_samples_than_asked_for(ready):
    prepared, plan, qparams, source, _ = ready
    settings = replace(SCALES_ONLY, search_samples=4)
    few, many = (
        reconstruct(prepared.model, plan, qparams, prepared.shapes, source, chosen, threads=1).blocks
        for chosen in (settings, replace(settings, search_samples=16))
    )
    assert few[0].error_before != many[0].error_before


@pytest.mark.parametrize("confirm", [True, False])
def test_samples_that_the_search_does_not_see_must_gain_too(confirm):
    small = np.where(np.arange(16) < 4, 0.2, 1.0).astype(np.float32)[:, None, None, None]
    prepared, plan, qparams, source, _ = prepared_for("w8a6", graph(), DATA * small)
    settings = replace(SCALES_ONLY, search_samples=4, confirm=confirm)
    result = reconstruct(prepared.model, plan, qparams, prepared.shapes, source, settings, threads=1)
    choices = [choice for block in result.blocks for choice in block.ranges]
    widths = [np.ptp(choice.after) / np.ptp(choice.before) for choice in choices]
    assert len(choices) == 9 and (min(widths) > 0.9 if confirm else min(widths) < 0.5)
    for choice in choices:
        assert (choice.after == choice.before) == (choice.error_after == choice.error_before)


def test_all_samples_in_one_batch_leave_none_to_confirm(ready):
    prepared, plan, qparams, _, data = ready
    source = open_calibration(prepared.model, {"x": data}, QuantConfig(samples=None, batch_size=16))
    found = [
        reconstruct(prepared.model, plan, qparams, prepared.shapes, source, replace(SCALES_ONLY, confirm=confirm))
        for confirm in (True, False)
    ]
    assert found[0].to_dict() == found[1].to_dict()
    assert any(choice.after != choice.before for block in found[0].blocks for choice in block.ranges)


def test_rows_of_tokens_are_not_taken_for_samples(tiny_model: Path, tiny_data: Path, monkeypatch):
    tasks = []

    def watched(task, cut):
        tasks.append(task)
        return reconstruct_block(task, cut)

    monkeypatch.setattr("onnx_hyvit.reconstruct.sweep.reconstruct_block", watched)
    config = QuantConfig(samples=8, target="ort-x86-avx2", verify=False)
    onnx_hyvit.quantize(tiny_model, None, calibration=tiny_data, config=config)
    assert any(value.shape[0] > 1 for task in tasks for value in task.found[0].values())
    assert {task.rows for task in tasks} == {(1,) * 8}  # the model has a fixed batch of 1


def test_parallel_blocks_see_float_inputs(ready):
    prepared, plan, qparams, source, _ = ready
    parallel, sequential = (
        reconstruct(
            prepared.model, plan, qparams, prepared.shapes, source, replace(SCALES_ONLY, sequential=choice), threads=1
        ).blocks
        for choice in (False, True)
    )
    assert parallel[0].error_before == sequential[0].error_before
    assert parallel[-1].error_before < sequential[-1].error_before


@pytest.mark.parametrize("jobs", [1, 2, 3])
@pytest.mark.parametrize("rounding", [None, "gptq"])
def test_parallel_blocks_are_those_of_one_process(ready, rounding, jobs):
    prepared, plan, qparams, source, _ = ready
    settings = replace(Reconstruction(metric="fisher"), sequential=False, rounding=rounding)
    start = (prepared.model, plan, qparams, prepared.shapes, source, settings)
    alone = reconstruct(*start, threads=1)
    with local_processes(jobs) as workers:
        shared = reconstruct(*start, threads=1, workers=workers)
    assert [block.name for block in shared.blocks] == [block.name for block in alone.blocks]
    files = [finished(prepared.model, plan, found.qparams, found.parameters) for found in (alone, shared)]
    assert files[0].SerializeToString(deterministic=True) == files[1].SerializeToString(deterministic=True)
    assert shared.to_dict() == alone.to_dict()


def test_blocks_are_handed_out_to_all_workers_of_a_cluster(ready, monkeypatch):
    prepared, plan, qparams, source, _ = ready
    handed = []

    def watched(function, tasks, workers, ahead):
        handed.append(ahead)
        return run_tasks(function, tasks, None)

    monkeypatch.setattr("onnx_hyvit.reconstruct.sweep.run_tasks", watched)
    settings = replace(SCALES_ONLY, sequential=False)
    workers = Workers(ClusterExecutor({"a": 1, "b": 1, "c": 1}))
    reconstruct(prepared.model, plan, qparams, prepared.shapes, source, settings, threads=1, workers=workers)
    assert handed == [6], "one that runs and one that waits for each"
