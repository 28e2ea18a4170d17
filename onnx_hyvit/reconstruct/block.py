"""The reconstruction of one block as a pure task: its graph, the tensors around it, and settings -> its choices."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import HyvitError
from ..numerics import QParams
from ..numerics.moments import GramAccumulator, InputMoments
from ..recipes import Reconstruction
from ..runtime import Share, run_at_once, share_threads
from .layers import Layer
from .objective import BatchErrors, ErrorSum, Objective
from .rerank import OutputJudge, Suffix, least_divergence
from .round_layer import round_layer
from .search_ranges import RangeChoice, search_range, unchanged
from .search_weights import search_weight
from .trial import Cut, Pair, Region

Arrays = dict[str, np.ndarray]
LEAST_SECONDS = 2e-3  # shorter batches lose more by being handed to threads than they gain
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


@dataclass(frozen=True)
class BlockTask:
    """All that decides a ``BlockResult``.

    Args:
        index: Place of the block in its model.
        name: Name of the block.
        kind: Its kind.
        region: The block in the trial model.
        layers: Its layers whose weights and biases may change.
        reads: Layer node -> the quantized tensor that it reads.
        pairs: Activation whose range is searched -> its pair.
        qparams: Scales to start from, of these activations and of the weights.
        given: Values of the region's other inputs to start from.
        weights: Float weights and biases of the layers, by initializer name.
        found: Tensors that enter, as the quantized graph gives them; one dict for each batch.
        exact: Float values of the tensors that leave and of what layers read; one dict for each batch.
        rows: Samples of each batch.
        measured: Tensors that errors are measured at.
        objective: How they count.
        positions: Layer node -> weight of each output position of one sample, where they are not alike.
        settings: What may change.
        samples: Samples that errors are measured on.
        threads: Threads in all.
        suffix: The model behind the block, where its best candidates are judged by the model's outputs.
    """

    index: int
    name: str
    kind: str
    region: Region = field(repr=False)
    layers: tuple[Layer, ...]
    reads: Mapping[str, str]
    pairs: Mapping[str, Pair]
    qparams: Mapping[str, QParams] = field(repr=False)
    given: Mapping[str, np.ndarray] = field(repr=False)
    weights: Mapping[str, np.ndarray] = field(repr=False)
    found: Sequence[Mapping[str, np.ndarray]] = field(repr=False)
    exact: Sequence[Mapping[str, np.ndarray]] = field(repr=False)
    rows: tuple[int, ...]
    measured: tuple[str, ...]
    objective: Objective = field(repr=False)
    settings: Reconstruction
    samples: int
    threads: int
    suffix: Suffix | None = None
    positions: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def hidden(self) -> list[bool]:
        """For each batch whether the search does not see it."""
        return [start >= self.samples for start in itertools.accumulate(self.rows[:-1], initial=0)]

    @property
    def share(self) -> Share:
        """How its threads run the batches that the search sees."""
        return share_threads(self.threads, self.hidden.count(False))


def reconstruct_block(task: BlockTask, cut: Cut | None = None) -> BlockResult:
    """Round the layers of a block one after the other, then search the ranges of its activations.

    Where weights are searched instead of rounded, that and the search of ranges take turns.

    Args:
        task: The block.
        cut: A session of its region, made here when None.
    """
    return _BlockSearch(task, cut or task.region.open(task.share.each)).run()


def block_or_error(task: BlockTask) -> BlockResult | HyvitError:
    """As ``reconstruct_block`` in a worker: an error is a value."""
    try:
        return reconstruct_block(task)
    except HyvitError as error:
        return error
    except Exception as error:
        return HyvitError(f"block {task.name}: internal error ({type(error).__name__}: {error})")


class _BlockSearch:
    """The current scales and parameters of a block while it is reconstructed."""

    def __init__(self, task: BlockTask, cut: Cut) -> None:
        self._task, self._cut = task, cut
        self._given: Arrays = dict(task.given)
        self._qparams: dict[str, QParams] = {}  # new ones
        self._parameters: Arrays = {}
        self._hidden, self._at_once = task.hidden, task.share.at_once

    def run(self) -> BlockResult:
        task = self._task
        before = self._first_error()
        rounded: dict[str, tuple[str, float | None]] = {}
        if task.settings.rounding is not None:
            for layer in task.layers:
                rounded[layer.node] = self._round(layer)
        ranges: dict[str, RangeChoice] = {}
        for _ in range(task.settings.rounds if task.measured else 0):
            scales = {name: self._scale_of(name) for name in task.qparams}
            if task.settings.search_weights:
                rounded |= self._search_weights()
            if task.settings.search:
                ranges = {choice.tensor: choice.after_all(ranges.get(choice.tensor)) for choice in self._search()}
            if all(self._scale_of(name) is scale for name, scale in scales.items()):
                break  # nothing moved: another round would be the same
        after, choices = self._error(self._given), tuple(ranges.values())
        return BlockResult(task.name, task.kind, before, after, self._qparams, self._parameters, choices, rounded)

    def _first_error(self) -> float:
        """The error at the start; tells whether batches are long enough to run at the same time, as no number feels."""
        at_once, self._at_once = self._at_once, 1
        start = time.perf_counter()
        error = self._error(self._given)
        if time.perf_counter() - start > LEAST_SECONDS * max(1, self._hidden.count(False)):
            self._at_once = at_once
        return error

    def _error(self, given: Mapping[str, np.ndarray], held_out: bool = False) -> float:
        """Error on the samples that the search sees, or on the others."""
        task, total = self._task, ErrorSum(self._task.objective)

        def errors(batch: int) -> BatchErrors:
            found = self._cut.run(task.found[batch], given, task.measured)
            return task.objective.errors(task.exact[batch], found, task.measured)

        chosen = [batch for batch, hidden in enumerate(self._hidden) if task.measured and hidden == held_out]
        for found in run_at_once(errors, chosen, self._at_once):
            total.add(found)
        return total.value()

    def _candidate_error(self, pair: Pair, candidate: QParams) -> float:
        return self._error({**self._given, **pair.feeds(candidate)})

    def _round(self, layer: Layer) -> tuple[str, float | None]:
        """Round one layer for its current inputs; the new values are the current ones from then on."""
        task, settings = self._task, self._task.settings
        assert settings.rounding is not None
        rounded = round_layer(
            layer,
            task.weights[layer.weight],
            None if layer.bias is None else task.weights[layer.bias],
            self._moments(layer),
            start=task.qparams[layer.weight],
            rounding=settings.rounding,
            ridge=settings.ridge,
            correct_bias=settings.correct_bias,
            refit=settings.refit,
            at_once=task.threads,
        )
        self._qparams[layer.weight] = rounded.qparams
        self._parameters[layer.weight] = rounded.weight
        if layer.bias is not None and rounded.bias is not None:
            self._parameters[layer.bias] = rounded.bias
        self._given |= self._parameters
        return rounded.rounding, rounded.ridge

    def _moments(self, layer: Layer) -> tuple[InputMoments, InputMoments]:
        """Moments of a layer's inputs, over every other sample each."""
        task = self._task
        inputs = layer.rows(task.weights[layer.weight]).shape[-1]
        most = -(-max(POSITIONS, POSITIONS_PER_INPUT * inputs) // len(task.found))
        halves = [GramAccumulator(layer.geometry, max_positions=most, seed=half) for half in (0, 1)]
        read = task.reads[layer.node]
        for index, found in enumerate(run_at_once(self._reader(read), task.found, self._at_once)):
            exact = task.exact[index][layer.activation]
            weights = layer.over_positions(task.positions[layer.node], exact) if layer.node in task.positions else None
            _add_halves(halves, exact, found, weights, task.rows[index], index, task.threads)
        seen = [half for half in halves if half.seen] or halves
        return seen[0].result(), seen[-1].result()

    def _reader(self, tensor: str) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
        """Gives a tensor of the block for a batch of what enters it."""
        return lambda batch: batch[tensor] if tensor in batch else self._cut.run(batch, self._given, [tensor])[tensor]

    def _search_weights(self) -> dict[str, tuple[str, float | None]]:
        """Search the scale of every layer's weight; the codes stay the nearest ones."""
        error = self._error(self._given)
        for layer in self._task.layers:
            name = layer.weight
            start = self._scale_of(name)

            def measure(values: np.ndarray, name: str = name) -> float:
                return self._error({**self._given, name: values})

            self._qparams[name], values, error = search_weight(self._task.weights[name], start, error, measure)
            self._parameters[name] = self._given[name] = values
        return {layer.node: ("nearest", None) for layer in self._task.layers}

    def _scale_of(self, tensor: str) -> QParams:
        """The current scale of an activation or a weight."""
        return self._qparams.get(tensor, self._task.qparams[tensor])

    def _search(self) -> list[RangeChoice]:
        """Search the ranges one after the other; samples that the search does not see confirm each where asked for."""
        task = self._task
        judge = OutputJudge(task.suffix, self._cut, task.found, task.threads) if task.suffix else None
        error = self._error(self._given)
        confirm = task.settings.confirm and any(self._hidden)
        others = self._error(self._given, held_out=True) if confirm else 0.0
        choices = []
        for name, pair in task.pairs.items():
            measure = functools.partial(self._candidate_error, pair)
            start = self._scale_of(name)
            found, choice = search_range(
                name,
                start,
                error,
                measure,
                try_symmetric=task.settings.try_symmetric,
                rerank=functools.partial(self._rerank, judge, pair) if judge else None,
                keep=max(1, task.settings.rerank),
            )
            if confirm and found is not start:
                confirmed = self._error({**self._given, **pair.feeds(found)}, held_out=True)
                if confirmed < others or choice.rank:  # what the model's outputs chose needs no second opinion
                    others = confirmed
                else:
                    found, choice = start, unchanged(name, start, error)
            self._qparams[name] = found
            self._given |= pair.feeds(found)
            error = choice.error_after
            choices.append(choice)
        return choices

    def _rerank(self, judge: OutputJudge, pair: Pair, candidates: Sequence[QParams]) -> int:
        return least_divergence(candidates, lambda candidate: judge.each({**self._given, **pair.feeds(candidate)}))


def _add_halves(
    halves: list[GramAccumulator],
    exact: np.ndarray,
    found: np.ndarray,
    weights: np.ndarray | None,
    samples: int,
    index: int,
    threads: int,
) -> None:
    """Give every other sample to each half; a batch of one goes to the halves in turn."""
    if samples < 2 or exact.shape[0] % samples:
        halves[index % 2].update(exact, found, weights)
        return
    arrays = [exact, found] if weights is None else [exact, found, weights]
    split = [array.reshape(samples, array.shape[0] // samples, *array.shape[1:]) for array in arrays]

    def update(half: int) -> None:
        halves[half].update(*(array[half::2].reshape(-1, *array.shape[2:]) for array in split))

    list(run_at_once(update, range(len(halves)), min(threads, len(halves))))
