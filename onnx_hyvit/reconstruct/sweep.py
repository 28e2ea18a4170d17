"""One sweep over the blocks: each is reconstructed on the inputs that the quantized blocks before it really give.

Where the inputs are those of the float model instead, the blocks are independent of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx

from ..blocks import Block
from ..errors import HyvitError, ModelError
from ..graph import Model, model_to_proto
from ..graph.io import infer_shapes
from ..numerics import QParams, fake_quantize
from ..placement import Plan
from ..recipes import Reconstruction
from ..runtime import run_at_once, share_threads
from ..tasks import Lost, Workers, run_tasks, threads_each
from .block import Arrays, BlockResult, BlockTask, block_or_error, reconstruct_block
from .divergence import samples_of
from .layers import Layer, parameters_of
from .objective import Objective
from .rerank import Reranking, Suffix, cut_suffix
from .trial import TrialModel, cut_region, make_trial

Load = Callable[[int], BlockResult | None]


class Sweep:
    """State of a sweep: the current scales and parameters, and the tensors that cross from block to block."""

    def __init__(
        self,
        model: Model,
        plan: Plan,
        layers: Sequence[Layer],
        qparams: Mapping[str, QParams],
        batches: Sequence[Mapping[str, np.ndarray]],
        settings: Reconstruction,
        objective: Objective,
        threads: int,
        reference: onnx.ModelProto | None = None,
        reranking: Reranking | None = None,
    ) -> None:
        """Prepare a sweep.

        Args:
            model: Float model that the plan was made for; not changed.
            plan: Where pairs go.
            layers: Layers whose weights and biases may change.
            qparams: Scales to start from: every activation of the plan that is not tied, and every weight.
            batches: Feeds of the calibration samples.
            settings: What may change.
            objective: How errors count.
            threads: Threads of the sessions.
            reference: Float model whose tensors are the aim; ``model`` itself when None.
            reranking: How candidates are judged by the model's outputs; None leaves it to the error of their block.
        """
        self.trial: TrialModel = make_trial(model, plan, parameters_of(list(layers)))
        self.qparams = dict(qparams)
        self.parameters = _nearest(self.trial, layers, qparams)
        self._float: onnx.ModelProto = infer_shapes(reference or model_to_proto(model))
        self._layers = {layer.node: layer for layer in layers}
        self._reads = {node.name: node.input[0] for node in self.trial.proto.graph.node if node.input}
        self._exact: list[Arrays] = [dict(batch) for batch in batches]
        self._found: list[Arrays] = [dict(batch) for batch in batches]
        # of the model's inputs: what blocks read may have a row for each token
        self._rows = tuple(map(samples_of, batches))
        self._settings, self._objective, self._threads = settings, objective, threads
        self._searched: set[str] = set(plan.fixed)
        self._reranking, self._last = reranking, dict[str, int]()

    def run(
        self,
        blocks: Sequence[Block],
        load: Load = lambda index: None,
        samples: Sequence[int] | None = None,
        workers: Workers | None = None,
    ) -> Iterator[BlockResult]:
        """Reconstruct the blocks; yields each one's result, in order.

        Args:
            blocks: They partition the graph in topological order.
            load: Gives the result of a block that is known already.
            samples: Samples that the errors of each block are measured on; what the settings say when None.
            workers: Who reconstructs independent blocks, None for this process.
        """
        samples = samples or [self._settings.search_samples] * len(blocks)
        self._last = _last_readers(blocks)
        sweep = self._in_turn(blocks, load, samples)
        if not self._settings.sequential:
            sweep = self._independent(blocks, load, samples, workers)
        for result in sweep:
            self.qparams |= result.qparams
            self.parameters |= result.parameters
            yield result

    def _in_turn(self, blocks: Sequence[Block], load: Load, samples: Sequence[int]) -> Iterator[BlockResult]:
        """Blocks that read what the quantized ones before them give."""
        for index, block in enumerate(blocks):
            task = self._task(index, block, samples[index], self.qparams, self.parameters)
            trial = task.region.open(task.share.each)
            result = load(index) or reconstruct_block(task, trial)
            self._searched.update(choice.tensor for choice in result.ranges)
            yield result
            given = {**self.trial.feeds(self.qparams), **self.parameters}
            trial.extend(self._found, given, block.outputs, task.share.at_once)
            self._advance(block, task)
            forget((self._exact, self._found), self._last, index)

    def _independent(
        self, blocks: Sequence[Block], load: Load, samples: Sequence[int], workers: Workers | None
    ) -> Iterator[BlockResult]:
        """Blocks that read what the float ones before them give; all start from the scales of the beginning."""
        threads = threads_each(self._threads, workers.jobs) if workers else self._threads
        start, known = (dict(self.qparams), dict(self.parameters)), dict[int, BlockResult]()

        def tasks() -> Iterator[BlockTask]:
            for index, block in enumerate(blocks):
                task = self._task(index, block, samples[index], *start, threads)
                if task.measured and self._settings.search:
                    self._searched.update(task.pairs)
                self._advance(block, task)
                self._found = self._exact
                forget((self._exact,), self._last, index)
                if (result := load(index)) is None:
                    yield task
                else:
                    known[index] = result

        ahead = 2 * workers.at_once if workers else None
        position = 0
        for task, found in run_tasks(block_or_error, tasks(), workers, ahead):
            known[task.index] = _result_of(task, found)
            while position in known:
                yield known.pop(position)
                position += 1
        yield from (known[index] for index in sorted(known))

    def _task(
        self,
        index: int,
        block: Block,
        samples: int,
        qparams: Mapping[str, QParams],
        parameters: Mapping[str, np.ndarray],
        threads: int | None = None,
    ) -> BlockTask:
        """The task of a block from its inputs as they are now; runs the float block."""
        layers = tuple(self._layers[name] for name in block.nodes if name in self._layers)
        leaving = tuple(block.outputs)
        wanted = self._float_tensors(block, [layer.activation for layer in layers])
        reads = {layer.node: self._reads[layer.node] for layer in layers}
        inner = [name for name in reads.values() if name not in block.inputs]
        suffix = self._suffix(index, block)
        region = cut_region(self.trial.proto, block.inputs, leaving, [*inner, *(suffix.inner if suffix else ())])
        measured = tuple(name for name in leaving if wanted[0][name].dtype.kind == "f" and wanted[0][name].size > 1)
        pairs = {
            name: pair
            for name, pair in self.trial.pairs.items()
            if pair.scale in region.given and name not in self._searched
        }
        given = {**self.trial.feeds(qparams), **parameters}
        weights = [name for layer in layers for name in (layer.weight, layer.bias) if name is not None]
        return BlockTask(
            index=index,
            name=block.name,
            kind=block.kind,
            region=region,
            layers=layers,
            reads=reads,
            pairs=pairs,
            qparams={name: qparams[name] for name in (*pairs, *(layer.weight for layer in layers))},
            given={name: given[name] for name in region.given},
            weights={name: self.trial.parameters[name] for name in weights},
            found=[{name: batch[name] for name in block.inputs if name in batch} for batch in self._found],
            exact=wanted,
            rows=self._rows,
            measured=measured,
            objective=self._objective.of(measured),
            positions={node: each for node, each in self._objective.positions.items() if node in reads},
            settings=self._settings,
            samples=samples,
            threads=threads or self._threads,
            suffix=suffix,
        )

    def _suffix(self, index: int, block: Block) -> Suffix | None:
        """What is behind a block, where its candidates are judged by the model's outputs."""
        if self._reranking is None or not self._settings.search:
            return None
        alive = [name for name in dict.fromkeys((*self._found[0], *block.outputs)) if self._last.get(name, -1) > index]
        return cut_suffix(self._float, self._reranking, index, alive, self._found)

    def _float_tensors(self, block: Block, activations: Sequence[str]) -> list[Arrays]:
        """Float values of what leaves a block and of what its layers read, for each batch."""
        inner = [name for name in activations if name not in block.inputs]
        share = share_threads(self._threads, len(self._exact))
        exact = cut_region(self._float, block.inputs, block.outputs, inner).open(share.each)

        def run(batch: Arrays) -> Arrays:
            return exact.run(batch, {}) | {name: batch[name] for name in activations if name in batch}

        return list(run_at_once(run, self._exact, share.at_once))

    def _advance(self, block: Block, task: BlockTask) -> None:
        """Keep what the float block gave."""
        for batch, wanted in zip(self._exact, task.exact, strict=True):
            batch |= {name: wanted[name] for name in block.outputs}


def _result_of(task: BlockTask, found: BlockResult | HyvitError | Lost) -> BlockResult:
    if isinstance(found, Lost):
        raise ModelError(f"block {task.name}: its process was ended twice ({found.reason}); use fewer jobs")
    if isinstance(found, HyvitError):
        raise found
    return found


def forget(tensors: Sequence[list[Arrays]], last: Mapping[str, int], index: int) -> None:
    """Drop tensors that no block after ``index`` reads."""
    for batches in tensors:
        for batch in batches:
            for name in [name for name in batch if last.get(name, -1) <= index]:
                del batch[name]


def _nearest(trial: TrialModel, layers: Sequence[Layer], qparams: Mapping[str, QParams]) -> Arrays:
    """Float biases, and the values of the weights' nearest codes."""
    values = dict(trial.parameters)
    for layer in layers:
        values[layer.weight] = fake_quantize(values[layer.weight], qparams[layer.weight]).astype(np.float32)
    return values


def _last_readers(blocks: Sequence[Block]) -> dict[str, int]:
    """Tensor -> index of the last block that reads it."""
    return {name: index for index, block in enumerate(blocks) for name in block.inputs}
