"""One sweep over the blocks: each is reconstructed on the inputs that the quantized blocks before it really give."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from ..blocks import Block
from ..graph import Model, model_to_proto
from ..graph.io import infer_shapes
from ..numerics import QParams, fake_quantize
from ..numerics.ridge import GramAccumulator, InputMoments
from ..placement import Plan
from ..recipes import Reconstruction
from .layers import Layer, parameters_of
from .objective import ErrorSum, Objective
from .round_layer import round_layer
from .search_ranges import RangeChoice, search_range
from .trial import Cut, Pair, TrialModel, cut_block, make_trial

Arrays = dict[str, np.ndarray]
POSITIONS = 4096  # output positions that go into the moments of a layer, over all samples of a half
POSITIONS_PER_INPUT = 8  # the same for each of its inputs, where that is more


@dataclass(frozen=True)
class BlockResult:
    """What a block became; enough to take it from a cache instead of computing it again.

    Args:
        name: Name of the block.
        kind: Its kind.
        error_before: Error at its outputs before (inputs quantized), relative to their size, see ``Objective``.
        error_after: The same afterwards.
        qparams: New scales of activations and weights.
        parameters: New weights and biases.
        ranges: What the search did to each activation.
        layers: Layer node -> (how it was rounded, strength of its ridge or None).
    """

    name: str
    kind: str
    error_before: float
    error_after: float
    qparams: Mapping[str, QParams] = field(repr=False)
    parameters: Mapping[str, np.ndarray] = field(repr=False)
    ranges: Sequence[RangeChoice] = ()
    layers: Mapping[str, tuple[str, float | None]] = field(default_factory=dict)


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
        """
        self.trial: TrialModel = make_trial(model, plan, parameters_of(list(layers)))
        self.qparams = dict(qparams)
        self.parameters = _nearest(self.trial, layers, qparams)
        self._float: onnx.ModelProto = infer_shapes(model_to_proto(model))
        self._layers = {layer.node: layer for layer in layers}
        self._reads = {node.name: node.input[0] for node in self.trial.proto.graph.node if node.input}
        self._exact: list[Arrays] = [dict(batch) for batch in batches]
        self._found: list[Arrays] = [dict(batch) for batch in batches]
        self._settings, self._objective, self._threads = settings, objective, threads
        self._samples = settings.search_samples
        self._searched: set[str] = set(plan.fixed)

    def run(
        self,
        blocks: Sequence[Block],
        load: Callable[[int], BlockResult | None] = lambda index: None,
        samples: Sequence[int] | None = None,
    ) -> Iterator[BlockResult]:
        """Reconstruct the blocks in order; yields each one's result.

        Args:
            blocks: They partition the graph in topological order.
            load: Gives the result of a block that is known already.
            samples: Samples that the errors of each block are measured on; what the settings say when None.
        """
        last = _last_readers(blocks)
        for index, block in enumerate(blocks):
            self._samples = samples[index] if samples else self._settings.search_samples
            known = load(index)
            yield self._block(block, known)
            for tensors in (self._exact, self._found):
                for batch in tensors:
                    for name in [name for name in batch if last.get(name, -1) <= index]:
                        del batch[name]

    def _block(self, block: Block, known: BlockResult | None) -> BlockResult:
        layers = [self._layers[name] for name in block.nodes if name in self._layers]
        leaving = tuple(block.outputs)
        inputs = set(block.inputs)
        inner = [layer.activation for layer in layers if layer.activation not in inputs]
        exact = cut_block(self._float, block.inputs, leaving, inner, self._threads)
        reads = [self._reads[layer.node] for layer in layers]
        inner = [name for name in reads if name not in inputs]
        trial = cut_block(self.trial.proto, block.inputs, leaving, inner, self._threads)
        wanted = [exact.run(batch, {}) for batch in self._exact]
        result = known or self._reconstruct(block, layers, trial, wanted)
        self._searched.update(choice.tensor for choice in result.ranges)
        self.qparams |= result.qparams
        self.parameters |= result.parameters
        given = self._given()
        sequential = self._settings.sequential
        for index, batch in enumerate(self._found):
            batch |= trial.run(batch, given, leaving) if sequential else {name: wanted[index][name] for name in leaving}
            self._exact[index] |= {name: wanted[index][name] for name in leaving}
        return result

    def _reconstruct(self, block: Block, layers: list[Layer], trial: Cut, wanted: list[Arrays]) -> BlockResult:
        measured = [name for name in block.outputs if wanted[0][name].dtype.kind == "f" and wanted[0][name].size > 1]
        before = self._error(trial, wanted, measured, self._given())
        rounded: dict[str, tuple[str, float | None]] = {}
        changed: dict[str, QParams] = {}
        parameters: Arrays = {}
        if self._settings.rounding is not None:
            for layer in layers:
                rounded[layer.node] = self._round(layer, trial, wanted, changed, parameters)
        ranges = self._search(trial, wanted, measured, changed) if self._settings.search else []
        after = self._error(trial, wanted, measured, self._given())
        return BlockResult(block.name, block.kind, before, after, changed, parameters, tuple(ranges), rounded)

    def _given(self) -> Arrays:
        return {**self.trial.feeds(self.qparams), **self.parameters}

    def _error(self, trial: Cut, wanted: list[Arrays], names: list[str], given: Mapping[str, np.ndarray]) -> float:
        total, seen = ErrorSum(self._objective), 0
        for batch, exact in zip(self._found, wanted, strict=True):
            if seen >= self._samples or not names:
                break
            total.update(exact, trial.run(batch, given, names), names)
            seen += _rows(batch)
        return total.value()

    def _candidate_error(
        self,
        trial: Cut,
        wanted: list[Arrays],
        names: list[str],
        given: Mapping[str, np.ndarray],
        pair: Pair,
        candidate: QParams,
    ) -> float:
        return self._error(trial, wanted, names, {**given, **pair.feeds(candidate)})

    def _round(
        self, layer: Layer, trial: Cut, wanted: list[Arrays], changed: dict[str, QParams], parameters: Arrays
    ) -> tuple[str, float | None]:
        """Round one layer for its current inputs; the new values are the current ones from then on."""
        settings = self._settings
        assert settings.rounding is not None
        rounded = round_layer(
            layer,
            self.trial.parameters[layer.weight],
            None if layer.bias is None else self.trial.parameters[layer.bias],
            self._moments(layer, trial, wanted),
            start=self.qparams[layer.weight],
            rounding=settings.rounding,
            ridge=settings.ridge,
            correct_bias=settings.correct_bias,
        )
        changed[layer.weight] = self.qparams[layer.weight] = rounded.qparams
        parameters[layer.weight] = self.parameters[layer.weight] = rounded.weight
        if layer.bias is not None and rounded.bias is not None:
            parameters[layer.bias] = self.parameters[layer.bias] = rounded.bias
        return rounded.rounding, rounded.ridge

    def _moments(self, layer: Layer, trial: Cut, wanted: list[Arrays]) -> tuple[InputMoments, InputMoments]:
        """Moments of a layer's inputs, over every other sample each."""
        inputs = layer.rows(self.trial.parameters[layer.weight]).shape[-1]
        most = -(-max(POSITIONS, POSITIONS_PER_INPUT * inputs) // len(self._found))
        halves = [GramAccumulator(layer.geometry, max_positions=most, seed=half) for half in (0, 1)]
        read, given = self._reads[layer.node], self._given()
        for index, batch in enumerate(self._found):
            found = batch[read] if read in batch else trial.run(batch, given, [read])[read]
            exact = self._exact[index].get(layer.activation)
            exact = wanted[index][layer.activation] if exact is None else exact
            _add_halves(halves, exact, found, _rows(batch), index)
        seen = [half for half in halves if half.seen] or halves
        return seen[0].result(), seen[-1].result()

    def _search(
        self, trial: Cut, wanted: list[Arrays], measured: list[str], changed: dict[str, QParams]
    ) -> list[RangeChoice]:
        pairs = self.trial.pairs
        mine = [name for name, pair in pairs.items() if pair.scale in trial.given and name not in self._searched]
        given = self._given()
        error = self._error(trial, wanted, measured, given)
        choices = []
        for name in mine if measured else ():
            measure = functools.partial(self._candidate_error, trial, wanted, measured, dict(given), pairs[name])
            found, choice = search_range(
                name, self.qparams[name], error, measure, try_symmetric=self._settings.try_symmetric
            )
            changed[name] = self.qparams[name] = found
            given |= pairs[name].feeds(found)
            error = choice.error_after
            choices.append(choice)
        return choices


def _nearest(trial: TrialModel, layers: Sequence[Layer], qparams: Mapping[str, QParams]) -> Arrays:
    """Float biases, and the values of the weights' nearest codes."""
    values = dict(trial.parameters)
    for layer in layers:
        values[layer.weight] = fake_quantize(values[layer.weight], qparams[layer.weight]).astype(np.float32)
    return values


def _rows(batch: Mapping[str, np.ndarray]) -> int:
    return max((value.shape[0] for value in batch.values() if value.ndim), default=1)


def _add_halves(halves: list[GramAccumulator], exact: np.ndarray, found: np.ndarray, samples: int, index: int) -> None:
    """Give every other sample to each half; a batch of one goes to the halves in turn."""
    if samples < 2 or exact.shape[0] % samples:
        halves[index % 2].update(exact, found)
        return
    split = [array.reshape(samples, array.shape[0] // samples, *array.shape[1:]) for array in (exact, found)]
    for half, accumulator in enumerate(halves):
        parts = [array[half::2].reshape(-1, *array.shape[2:]) for array in split]
        accumulator.update(*parts)


def _last_readers(blocks: Sequence[Block]) -> dict[str, int]:
    """Tensor -> index of the last block that reads it."""
    return {name: index for index, block in enumerate(blocks) for name in block.inputs}
