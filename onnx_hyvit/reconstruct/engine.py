"""Block reconstruction (Q-HyViT, arXiv 2303.12557): from first scales to scales, weights and biases that fit."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from ..backward import LossSpec, choose_loss
from ..blocks import Block, Structure, find_structure
from ..calibration import Source
from ..graph import Model, model_to_proto
from ..numerics import QParams
from ..placement import Plan
from ..recipes import Reconstruction
from ..runtime import Progress
from ..tasks import Workers
from .block import BlockResult
from .budget import SearchCost, samples_in
from .cache import BlockCache
from .divergence import Divergence, is_worse
from .layers import find_layers
from .rerank import Reranking
from .sweep import Load, Sweep
from .trial import TrialModel
from .weighting import Comparison, Split, compare_weightings, make_objective, metrics_of, split_samples

logger = logging.getLogger(__name__)
State = tuple[Mapping[str, QParams], Mapping[str, np.ndarray]]  # scales, parameters


@dataclass(frozen=True)
class Reconstructed:
    """Outcome of ``reconstruct``.

    Args:
        qparams: Scales of all activations and weights.
        parameters: New float values of weights (of their codes) and biases, by initializer name.
        blocks: What each block became.
        weighting: How errors were weighted, in words.
        divergence_before: Divergence of the model's outputs from the float ones before, on the calibration samples.
        divergence_after: The same afterwards.
        kept: Whether the result is used; False when it is clearly worse than the start, which ``qparams`` then are.
        compared: The weightings that were tried, None where one was given.
    """

    qparams: Mapping[str, QParams] = field(repr=False)
    parameters: Mapping[str, np.ndarray] = field(repr=False)
    blocks: Sequence[BlockResult]
    weighting: str
    divergence_before: float
    divergence_after: float
    kept: bool
    compared: Comparison | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the report."""
        return {
            "weighting": self.weighting,
            "divergence_before": self.divergence_before,
            "divergence_after": self.divergence_after,
            "kept": self.kept,
            "compared": self.compared.to_dict() if self.compared else None,
            "blocks": [_block_dict(block) for block in self.blocks],
        }


def _block_dict(block: BlockResult) -> dict[str, Any]:
    return {
        "name": block.name,
        "kind": block.kind,
        "error_before": block.error_before,
        "error_after": block.error_after,
        "choices": [asdict(choice) for choice in block.ranges],
        "layers": [{"node": node, "rounding": how, "ridge": ridge} for node, (how, ridge) in block.layers.items()],
    }


def reconstruct(
    model: Model,
    plan: Plan,
    qparams: Mapping[str, QParams],
    shapes: Mapping[str, tuple[int, ...]],
    source: Source,
    settings: Reconstruction,
    *,
    structure: Structure | None = None,
    losses: Mapping[str, str] | None = None,
    threads: int = 2,
    seed: int = 0,
    cache: BlockCache | None = None,
    max_memory: int | None = None,
    workers: Workers | None = None,
    reference: onnx.ModelProto | None = None,
    progress: Progress | None = None,
) -> Reconstructed:
    """Choose ranges, weight scales, roundings and biases block by block.

    Args:
        model: Float model that the plan was made for; not changed.
        plan: Where Q/DQ pairs go.
        qparams: Scales to start from: activations that are not tied, and weights.
        shapes: Concrete shape of every tensor of ``model``.
        source: Calibration data; its samples are held in memory.
        settings: What may be changed, and how errors count. With metric ``auto`` everything is done twice, once with
            each weighting; the samples that judge them are left out of the search of ranges and the Fisher weights.
        structure: Blocks found before layout rewrites; they tell which block is a bridge.
        losses: What outputs are, see ``choose_loss``.
        threads: Threads of ONNX Runtime.
        seed: Seed of the Fisher draws.
        max_memory: Bytes of the tensors that cross from block to block, of all samples; where they take more, fewer
            samples are used.
        cache: Results of an earlier run that was interrupted; those of this one are added.
        workers: Who reconstructs independent blocks, None for this process.
        reference: Float model whose tensors and outputs are the aim; ``model`` itself when None. It has the same
            tensors between blocks and in front of layers.
        progress: Called as ``progress(done, total, text)``.

    Returns:
        The choices; the start itself when they take the outputs further from the float ones, see ``is_worse``.
    """
    proto = reference or model_to_proto(model)
    blocks = _blocks(model, shapes, structure)
    batches = batches_that_fit(source, blocks, shapes, max_memory)
    loss = choose_loss(proto, shapes, losses)
    judge = Divergence(proto, loss, batches, threads)
    metrics = metrics_of(settings)
    split = split_samples(judge.rows, settings.search_samples) if len(metrics) > 1 else None
    if split is not None:
        settings = replace(settings, search_samples=split.samples)
    cost = SearchCost(model, plan, blocks, shapes)
    reranking = _reranking(model, blocks, loss, judge, settings, cost, split) if settings.rerank > 1 else None
    layers, samples = find_layers(model, plan, shapes), cost.searched(settings.search_samples)
    record, runs = _Record(cache, progress, len(metrics) * len(blocks)), list[_Run]()
    for metric in metrics:
        seen = batches[: split.batches] if split else batches
        weighed = layers if settings.weigh_positions else ()
        objective, weighting = make_objective(metric, proto, blocks, seen, shapes, loss, seed, threads, weighed)
        sweep = Sweep(model, plan, layers, qparams, batches, settings, objective, threads, proto, reranking)
        start = (dict(sweep.qparams), dict(sweep.parameters))
        results = [record.add(result) for result in sweep.run(blocks, record.loader(), samples, workers)]
        runs.append(_Run(weighting, results, (sweep.qparams, sweep.parameters)))
    first, *each = _divergences(judge, sweep.trial, (start, *(run.end for run in runs)))
    compared = compare_weightings(metrics, each, split) if split else None
    place = metrics.index(compared.best) if compared else 0
    return _outcome(qparams, runs[place], first, each[place], compared)


@dataclass(frozen=True)
class _Run:
    """One reconstruction of all blocks."""

    weighting: str
    blocks: Sequence[BlockResult]
    end: State


class _Record:
    """Blocks finished so far with all weightings; they are cached, and the user is told."""

    def __init__(self, cache: BlockCache | None, progress: Progress | None, total: int) -> None:
        self._cache, self._progress, self._total, self._done = cache, progress, total, 0

    def loader(self) -> Load:
        """Finds blocks of the weighting that begins now in the cache."""
        cache, first = self._cache, self._done
        return (lambda index: cache.load(first + index)) if cache is not None else (lambda index: None)

    def add(self, result: BlockResult) -> BlockResult:
        """Keep a result; gives it back."""
        if self._cache is not None:
            self._cache.store(self._done, result)
        self._done += 1
        logger.debug("%s: error %.3g -> %.3g", result.name, result.error_before, result.error_after)
        if self._progress is not None:
            self._progress(self._done, self._total, "reconstruct")
        return result


def _outcome(
    qparams: Mapping[str, QParams], run: _Run, first: np.ndarray, last: np.ndarray, compared: Comparison | None
) -> Reconstructed:
    """The end of ``run``, or the start where that is better; ``first`` and ``last`` are their divergences."""
    before, after = float(first.mean()), float(last.mean())
    kept = not is_worse(first, last)
    if not kept:
        logger.info(  # no warning: the report says so, and nothing is wrong with the result
            "reconstruction left the outputs further from float (%.3g against %.3g): not used", after, before
        )
    chosen = run.end if kept else (qparams, {})
    return Reconstructed(dict(chosen[0]), dict(chosen[1]), run.blocks, run.weighting, before, after, kept, compared)


def _reranking(
    model: Model,
    blocks: Sequence[Block],
    loss: LossSpec,
    judge: Divergence,
    settings: Reconstruction,
    cost: SearchCost,
    split: Split | None,
) -> Reranking:
    """How the best candidates are judged: on samples that the search does not see, as far as there are."""
    index_of = {name: index for index, block in enumerate(blocks) for name in block.nodes}
    makers = {
        tensor.name: index_of[node.name]
        for node in model.graph.nodes
        if node.name in index_of
        for tensor in node.outputs
    }
    searched = split.batches if split else split_samples(judge.rows, settings.search_samples, 1.0).batches
    order = (*range(searched, len(judge.rows)), *range(searched)) if split is None else range(searched)
    return Reranking(loss.heads, makers, judge.wanted, judge.rows, tuple(order), cost.reranked(settings))


def _divergences(judge: Divergence, trial: TrialModel, states: Sequence[State]) -> list[np.ndarray]:
    """Divergence of the model's outputs for each state, by sample."""
    session = judge.session(trial.proto)
    return [judge.each(session, {**trial.feeds(qparams), **parameters}) for qparams, parameters in states]


def batches_that_fit(
    source: Source, blocks: Sequence[Block], shapes: Mapping[str, tuple[int, ...]], max_memory: int | None
) -> list[dict[str, np.ndarray]]:
    """Batches of ``source``, at least one, whose float and quantized tensors between blocks fit into ``max_memory``."""
    batches: list[dict[str, np.ndarray]] = []
    held = 8 * _widest_crossing(blocks, shapes)
    rows = samples_in(shapes, (info.name for info in source.inputs))
    taken = 0
    for samples, feeds in source:
        taken += len(samples)
        if batches and max_memory is not None and taken * held / rows > max_memory:
            logger.warning("reconstruction uses %d samples: more do not fit into max_memory", taken - len(samples))
            break
        batches.append(dict(feeds))
    return batches


def _widest_crossing(blocks: Sequence[Block], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Elements of the tensors that are alive between two blocks, where they are the most."""
    last = {name: index for index, block in enumerate(blocks) for name in block.inputs}
    made = {name: index for index, block in enumerate(blocks) for name in block.outputs}
    widest = 0
    for index in range(len(blocks)):
        alive = [name for name, end in last.items() if made.get(name, -1) < index <= end]
        widest = max(widest, sum(math.prod(shapes.get(name, ())) for name in alive))
    return widest


def _blocks(model: Model, shapes: Mapping[str, tuple[int, ...]], structure: Structure | None) -> list[Block]:
    """Blocks of the rewritten graph; the kind of most of a block's nodes in ``structure`` wins."""
    found = find_structure(model, shapes).blocks
    if structure is None:
        return list(found)
    kind_of = {node: block.kind for block in structure.blocks for node in block.nodes}
    renamed = []
    for block in found:
        kinds = [kind_of[node] for node in block.nodes if node in kind_of]
        kind = max(sorted(set(kinds)), key=kinds.count) if kinds else block.kind
        renamed.append(Block(block.name, kind, block.nodes, block.inputs, block.outputs, block.params, block.macs))
    return renamed
