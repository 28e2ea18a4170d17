"""Block reconstruction (Q-HyViT, arXiv 2303.12557): from first scales to scales, weights and biases that fit."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnx

from ..backward import LossSpec, choose_loss, fisher_weights
from ..blocks import Block, Structure, find_structure
from ..calibration import Source
from ..graph import Model, model_to_proto
from ..numerics import QParams
from ..placement import Plan
from ..recipes import Reconstruction
from ..runtime import Progress
from ..tasks import Workers
from .block import BlockResult
from .cache import BlockCache
from .divergence import Divergence, is_worse
from .layers import find_layers
from .objective import Metric, Objective
from .sweep import Sweep
from .trial import TrialModel

logger = logging.getLogger(__name__)
State = tuple[Mapping[str, QParams], Mapping[str, np.ndarray]]  # scales, parameters
SEARCH_ELEMENTS = 1 << 26  # of all tensors of a block, times its ranges, times samples
LEAST_SAMPLES = 16
REGULARIZATION = 0.2  # of the Fisher diagonal, see ``backward.regularize``


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
    """

    qparams: Mapping[str, QParams] = field(repr=False)
    parameters: Mapping[str, np.ndarray] = field(repr=False)
    blocks: Sequence[BlockResult]
    weighting: str
    divergence_before: float
    divergence_after: float
    kept: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the report."""
        return {
            "weighting": self.weighting,
            "divergence_before": self.divergence_before,
            "divergence_after": self.divergence_after,
            "kept": self.kept,
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
        settings: What may be changed, and how errors count.
        structure: Blocks found before layout rewrites; they tell which block is a bridge.
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
    batches = _batches_that_fit(source, blocks, shapes, max_memory)
    loss = choose_loss(proto, shapes)
    objective, weighting = _objective(proto, blocks, batches, shapes, loss, settings.metric, seed, threads)
    layers = find_layers(model, plan, shapes)
    sweep = Sweep(model, plan, layers, qparams, batches, settings, objective, threads, proto)
    start = (dict(sweep.qparams), dict(sweep.parameters))
    results: list[BlockResult] = []
    samples = _samples_to_search(model, plan, blocks, shapes, settings.search_samples)
    for result in sweep.run(blocks, cache.load if cache else lambda index: None, samples, workers):
        if cache is not None:
            cache.store(len(results), result)
        results.append(result)
        logger.debug("%s: error %.3g -> %.3g", result.name, result.error_before, result.error_after)
        if progress is not None:
            progress(len(results), len(blocks), "reconstruct")
    end = (sweep.qparams, sweep.parameters)
    each = _divergences(Divergence(proto, loss, batches, threads), sweep.trial, (start, end))
    before, after = (float(values.mean()) for values in each)
    kept = not is_worse(*each)
    if not kept:
        logger.info(  # no warning: the report says so, and nothing is wrong with the result
            "reconstruction left the outputs further from float (%.3g against %.3g): not used", after, before
        )
    chosen = end if kept else (qparams, {})
    return Reconstructed(dict(chosen[0]), dict(chosen[1]), results, weighting, before, after, kept)


def _samples_to_search(
    model: Model, plan: Plan, blocks: Sequence[Block], shapes: Mapping[str, tuple[int, ...]], most: int
) -> list[int]:
    """Samples for the search in each block: fewer where its maps are large or its ranges many.

    Every position of a map is an example of what a range does, so a large map needs few samples.
    """
    made = {node.name: [tensor.name for tensor in node.outputs] for node in model.graph.nodes}
    rows = max((shapes[tensor.name][0] for tensor in model.graph.inputs if shapes.get(tensor.name)), default=1)
    samples = []
    for block in blocks:
        names = [name for node in block.nodes for name in made.get(node, ())]
        elements = sum(math.prod(shapes.get(name, ())) for name in names) // rows
        ranges = sum(name in plan.activations and name not in plan.tied for name in names)
        samples.append(min(most, max(LEAST_SAMPLES, SEARCH_ELEMENTS // max(1, elements * ranges))))
    return samples


def _divergences(judge: Divergence, trial: TrialModel, states: Sequence[State]) -> list[np.ndarray]:
    """Divergence of the model's outputs for each state, by sample."""
    session = judge.session(trial.proto)
    return [judge.each(session, {**trial.feeds(qparams), **parameters}) for qparams, parameters in states]


def _batches_that_fit(
    source: Source, blocks: Sequence[Block], shapes: Mapping[str, tuple[int, ...]], max_memory: int | None
) -> list[dict[str, np.ndarray]]:
    """Batches of ``source``, at least one, whose float and quantized tensors between blocks fit into ``max_memory``."""
    batches: list[dict[str, np.ndarray]] = []
    held = 8 * _widest_crossing(blocks, shapes)
    rows = max((shapes[info.name][0] for info in source.inputs if shapes.get(info.name)), default=1)
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


def _objective(
    proto: Any,
    blocks: Sequence[Block],
    batches: Sequence[Mapping[str, np.ndarray]],
    shapes: Mapping[str, tuple[int, ...]],
    loss: LossSpec,
    metric: Metric,
    seed: int,
    threads: int,
) -> tuple[Objective, str]:
    if metric != "fisher":
        return Objective(metric), metric
    made = {name for node in proto.graph.node for name in node.output}
    targets = [name for block in blocks for name in block.outputs if name in made and len(shapes.get(name, ())) > 1]
    weights = fisher_weights(proto, targets, batches, shapes, loss=loss, seed=seed, threads=threads)
    elementwise = {name: weights.elementwise(name, REGULARIZATION) for name in weights.diagonal}
    return Objective("fisher", elementwise), f"fisher of {loss.describe()}"
