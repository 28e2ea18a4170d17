"""The best candidates of a range judged by the model's outputs: quantized up to the block, float behind it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from qdq_graphs import parse, weight
from reconstruct_cases import DATA, prepared_for

from onnx_hyvit.backward import choose_loss
from onnx_hyvit.blocks import find_structure
from onnx_hyvit.errors import ConfigError
from onnx_hyvit.graph import model_to_proto
from onnx_hyvit.numerics import QuantSpec, qparams_from_range
from onnx_hyvit.recipes import Reconstruction
from onnx_hyvit.reconstruct import Divergence, find_layers, reconstruct
from onnx_hyvit.reconstruct import rerank as rerank_module
from onnx_hyvit.reconstruct.budget import LEAST_RERANKED, SearchCost
from onnx_hyvit.reconstruct.engine import _reranking
from onnx_hyvit.reconstruct.objective import Objective
from onnx_hyvit.reconstruct.rerank import OutputJudge, least_divergence
from onnx_hyvit.reconstruct.search_ranges import range_of, search_range
from onnx_hyvit.reconstruct.sweep import Sweep
from onnx_hyvit.runtime import make_session
from onnx_hyvit.tasks import local_processes

RERANK = Reconstruction(rerank=3)


def log_softmax(values):
    values = values.astype(np.float64)
    values = values - values.max(-1, keepdims=True)
    return values - np.log(np.exp(values).sum(-1, keepdims=True))


def divergence(exact, found):
    p, q = log_softmax(exact), log_softmax(found)
    return (np.exp(p) * (p - q)).sum(-1)


class Pieces:
    """A sweep that has come to ``block``, with all blocks before it quantized as they were given."""

    def __init__(self, ready, samples: int) -> None:
        prepared, plan, qparams, source, _ = ready
        self.model, self.proto = prepared.model, model_to_proto(prepared.model)
        self.blocks = find_structure(self.model, prepared.shapes).blocks
        batches = [feeds for _, feeds in source]
        loss = choose_loss(self.proto, prepared.shapes)
        judge = Divergence(self.proto, loss, batches, 1)
        settings = replace(RERANK, search_samples=8)
        cost = SearchCost(self.model, plan, self.blocks, prepared.shapes)
        self.reranking = replace(
            _reranking(self.model, self.blocks, loss, judge, settings, cost, None), samples=[samples] * len(self.blocks)
        )
        layers = find_layers(self.model, plan, prepared.shapes)
        self.sweep = Sweep(
            self.model, plan, layers, qparams, batches, settings, Objective(), 1, self.proto, self.reranking
        )

    def judge_at(self, block: int):
        """The judge of a block, the values that it is asked about, and the sweep's tensors."""
        sweep = self.sweep
        for index, task in enumerate(tasks_of(sweep, self.blocks)):
            if index == block:
                judge = OutputJudge(task.suffix, task.region.open(1), task.found, 1)
                return judge, {**sweep.trial.feeds(sweep.qparams), **sweep.parameters}, task
        raise AssertionError(block)


def tasks_of(sweep, blocks):
    """The task of every block in turn, none of which is reconstructed."""
    sweep._last = {name: index for index, block in enumerate(blocks) for name in block.inputs}
    for index, block in enumerate(blocks):
        task = sweep._task(index, block, 8, sweep.qparams, sweep.parameters)
        yield task
        given = {**sweep.trial.feeds(sweep.qparams), **sweep.parameters}
        cut = task.region.open(1)
        for batch in sweep._found:
            batch |= cut.run(batch, given, block.outputs)
        sweep._advance(block, task)


@pytest.mark.parametrize("which", [0, 1, -1])
def test_the_judge_sees_the_block_quantized_and_all_behind_it_float(ready, which):
    pieces = Pieces(ready, samples=8)
    block = range(len(pieces.blocks))[which]
    judge, given, task = pieces.judge_at(block)
    assert task.suffix.batches == (2, 3)  # two of four batches of 4: those that the search does not see
    assert (task.suffix.region is None) == (block == len(pieces.blocks) - 1)
    # independently: the whole trial model up to the block, then the float model cut by onnx's own extractor
    x = DATA[8:]
    crossing = list(pieces.blocks[block].outputs)
    if task.suffix.region is not None:
        crossing = list(task.suffix.region.entering)
    trial = onnx.ModelProto()
    trial.CopyFrom(pieces.sweep.trial.proto)
    known = {value.name: value for value in trial.graph.value_info}
    trial.graph.output.extend(known[name] for name in crossing if name in known)
    session = make_session(trial, optimize="none")
    values = session.run({"x": x, **{name: given[name] for name in session.input_names if name in given}}, crossing)
    found = values.get("y")
    if task.suffix.region is not None:
        whole = onnx.shape_inference.infer_shapes(pieces.proto)
        rest = onnx.utils.Extractor(whole).extract_model(crossing, ["y"])
        found = make_session(rest, optimize="none").run(values)["y"]
    exact = make_session(pieces.proto, optimize="none").run({"x": x})["y"]
    np.testing.assert_allclose(judge.each(given), divergence(exact, found), rtol=1e-3, atol=1e-6)
    assert divergence(exact, found).mean() > 1e-4


def test_a_later_candidate_must_be_clearly_better():
    base = np.array([0.04, 0.05, 0.06, 0.05, 0.04, 0.06])
    noise = base + np.array([0.01, -0.02, 0.01, -0.01, 0.01, -0.02])
    assert least_divergence([base, noise, noise], lambda each: each) == 0
    assert least_divergence([base, base * 0.9, base * 0.5, base * 0.6], lambda each: each) == 2


def test_the_search_hands_its_best_candidates_over():
    spec, asked = QuantSpec(bits=8), []
    start = qparams_from_range(0.0, 9.0, spec)

    def error(candidate):
        return abs(range_of(candidate)[1] - 5.0)

    def last(candidates):
        asked.extend(candidates)
        return len(candidates) - 1

    plain, _ = search_range("x", start, error(start), error)
    found, choice = search_range("x", start, error(start), error, rerank=last, keep=3)
    assert len(asked) == 3 and asked[0] == plain and [error(one) for one in asked] == sorted(map(error, asked))
    assert found == asked[2] and choice.rank == 2 and choice.error_after == error(found) > error(plain)


def rerun(ready, settings, **how):
    prepared, plan, qparams, source, _ = ready
    return reconstruct(prepared.model, plan, qparams, prepared.shapes, source, settings, threads=1, **how)


def test_the_choice_by_outputs_is_used_and_reported(ready, monkeypatch):
    monkeypatch.setattr(rerank_module, "is_worse", lambda before, after: True)
    found = rerun(ready, RERANK)
    ranks = [choice.rank for block in found.blocks for choice in block.ranges]
    assert max(ranks) == 2 and set(ranks) <= {0, 1, 2}
    assert {entry["rank"] for block in found.to_dict()["blocks"] for entry in block["choices"]} == set(ranks)
    monkeypatch.setattr(rerank_module, "is_worse", lambda before, after: False)
    same, plain = (rerun(ready, settings) for settings in (RERANK, Reconstruction()))
    assert same.to_dict() == plain.to_dict()


def test_what_the_outputs_chose_needs_no_second_opinion(ready, monkeypatch):
    """Samples that the search does not see confirm only what the block's own error chose."""
    monkeypatch.setattr(rerank_module, "is_worse", lambda before, after: True)
    ranks = []
    for confirm in (True, False):
        found = rerun(ready, replace(RERANK, confirm=confirm, search_samples=8))  # half of the samples confirm
        ranks.append({choice.tensor: choice.rank for block in found.blocks for choice in block.ranges})
    assert ranks[0] == ranks[1] and set(ranks[0].values()) == {2}


@pytest.mark.parametrize("jobs", [1, 2])
def test_independent_blocks_give_the_same_in_processes(ready, jobs):
    settings = replace(RERANK, sequential=False, search_samples=8)
    alone = rerun(ready, settings)
    with local_processes(jobs) as workers:
        assert rerun(ready, settings, workers=workers).to_dict() == alone.to_dict()


def test_with_auto_it_sees_only_the_samples_of_the_search(ready, monkeypatch):
    seen = []
    original = rerank_module.cut_suffix
    monkeypatch.setattr(
        "onnx_hyvit.reconstruct.sweep.cut_suffix", lambda *args: seen.append(original(*args)) or seen[-1]
    )
    rerun(ready, replace(RERANK, metric="auto"))
    assert {suffix.batches for suffix in seen if suffix} == {(0, 1, 2)}


def test_blocks_that_cost_too_much_are_left_to_their_error(ready, monkeypatch):
    prepared, plan = ready[:2]
    blocks = find_structure(prepared.model, prepared.shapes).blocks
    cost = SearchCost(prepared.model, plan, blocks, prepared.shapes)
    assert set(cost.reranked(RERANK)) == {RERANK.search_samples}
    monkeypatch.setattr("onnx_hyvit.reconstruct.budget.RERANK_ELEMENTS", 3 * LEAST_RERANKED * 2000)
    few = cost.reranked(RERANK)
    assert few[0] == 0 < few[-1]
    assert max(cost.reranked(replace(RERANK, rerank=5))) <= max(few)


def test_a_model_with_an_output_in_front_of_the_last_block():
    model = parse(
        """g (float[N,16,8,8] x) => (float[N,8] early, float[N,8] y) {
            c = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(c) k = GlobalAveragePool(r) l = Flatten(k)
            early = Gemm(l, w2, b2)
            d = Conv<pads=[1,1,1,1]>(r, w3, b3) s = Relu(d) a = Add(s, r) p = GlobalAveragePool(a) q = Flatten(p)
            z = Gemm(q, w4, b2) y = Softmax(z) }""",
        w1=weight(16, 16, 3, 3), b1=np.zeros(16, np.float32), w2=weight(16, 8, seed=1), b2=np.zeros(8, np.float32),
        w3=weight(16, 16, 3, 3, seed=2), b3=np.zeros(16, np.float32), w4=weight(16, 8, seed=3),
    )  # fmt: skip
    made = prepared_for("w4a6", model, DATA, biases=0)
    found = rerun(made, RERANK)
    assert found.kept and found.divergence_after < found.divergence_before


def test_one_candidate_is_no_choice():
    with pytest.raises(ConfigError, match="rerank"):
        Reconstruction(rerank=1)
