"""Granularity by the error at the outputs of the blocks that a choice touches (Q-HyViT, arXiv 2303.12557).

A choice changes constants of the float model only (weights, biases, affines), so one session of the quantized blocks,
with these constants, scales and zero points as inputs, measures all options of an activation. The blocks before are
float: what is asked is which granularity suits these blocks, before anything is rounded for good.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from ..backward import choose_loss
from ..blocks import Block, find_structure
from ..calibration import Source
from ..graph import Model, model_to_proto
from ..graph.edit import new_constant
from ..placement import Plan
from ..recipes import Reconstruction
from ..runtime import share_threads
from .divergence import samples_of
from .engine import batches_that_fit
from .objective import ErrorSum, Objective
from .option_values import Arrays, Codes, OptionRegion, OptionValues, Place, written
from .options import Candidate, Option
from .sweep import forget
from .trial import cut_region
from .weighting import make_objective, metrics_of, split_samples

LEAST_GAIN = 0.01  # share of the error that another granularity must take away


@dataclass(frozen=True)
class Found:
    """What was found for one activation; errors are relative to the size of the blocks' outputs, squared.

    Args:
        option: The best option.
        before: Error of one scale for the tensor.
        after: Error of ``option``.
    """

    option: Option
    before: float
    after: float


@dataclass(frozen=True)
class Measure:
    """How granularity is measured.

    Args:
        shapes: Concrete shape of every tensor.
        codes: How first scales are found.
        settings: Whose metric and number of samples count.
        losses: What the model's outputs are, see ``choose_loss``.
        seed: Seed of the Fisher draws.
    """

    shapes: Mapping[str, tuple[int, ...]]
    codes: Codes
    settings: Reconstruction
    losses: Mapping[str, str] | None = None
    seed: int = 0

    def search(
        self,
        model: Model,
        plan: Plan,
        source: Source,
        candidates: Sequence[Candidate],
        threads: int,
        max_memory: int | None,
    ) -> dict[str, Found]:
        """Decide on every candidate, write what was chosen into ``model``, and return what was found, by tensor.

        Args:
            model: Float model that the plan was made for; edited in place, computing the same function.
            plan: Where pairs go.
            source: Calibration data; the batch behind those that the search sees confirms what it finds.
            candidates: Activations; those whose options change more than constants of their own are left out.
            threads: Threads of ONNX Runtime.
            max_memory: Bytes of the tensors that cross from block to block.

        Raises:
            CalibrationError: The data hold NaN or Inf, or do not fit the model.
        """
        proto, shapes = model_to_proto(model), self.shapes
        blocks = find_structure(model, shapes).blocks
        batches = batches_that_fit(source, blocks, shapes, max_memory)
        seen = split_samples([samples_of(batch) for batch in batches], self.settings.search_samples).batches
        loss, metric = choose_loss(proto, shapes, self.losses), metrics_of(self.settings)[-1]
        objective, _ = make_objective(metric, proto, blocks, batches[:seen], shapes, loss, self.seed, threads)
        walk = _Walk(model, plan, blocks, batches[: seen + 1], seen, objective, threads)
        return walk.run(candidates, self.codes)


class _Walk:
    """Goes through the blocks once and decides on every candidate at the block of its last node."""

    def __init__(
        self,
        model: Model,
        plan: Plan,
        blocks: Sequence[Block],
        batches: Sequence[Mapping[str, np.ndarray]],
        seen: int,
        objective: Objective,
        threads: int,
    ) -> None:
        self._model, self._plan, self._blocks, self._threads = model, plan, blocks, threads
        self._seen, self._objective = seen, objective
        self._alive: list[Arrays] = [dict(batch) for batch in batches]
        self._block_of = {name: index for index, block in enumerate(blocks) for name in block.nodes}

    def run(self, candidates: Sequence[Candidate], codes: Codes) -> dict[str, Found]:
        places = {candidate.tensor: self._places(candidate) for candidate in candidates}
        usable = [candidate for candidate in candidates if places[candidate.tensor]]
        if not usable:
            return {}
        names = {place: name for each in places.values() for place, name in each.items()}
        values = OptionValues(self._model, self._plan, names, codes)
        spans = [self._span(candidate, places[candidate.tensor]) for candidate in usable]
        until = self._last_readers(spans)
        found = {}
        for index, block in enumerate(self._blocks):
            self._advance(values, index, index, block.outputs)
            for candidate, (first, last) in zip(usable, spans, strict=True):
                if last == index:
                    found[candidate.tensor] = self._decide(candidate, values, first, last)
            forget((self._alive,), until, index)
        return found

    def _places(self, candidate: Candidate) -> dict[Place, str]:
        """Constants that the options change, by place; empty when an option does more than that.

        A bias or affine that other nodes read, too, is copied for the node whose own it would become; one that an
        option gives more axes or sizes has them from now on.
        """
        graph, shapes = self._model.graph, dict[Place, tuple[int, ...]]()
        before = {node.name: list(node.inputs) for node in graph.nodes}
        for option in candidate.options():
            for (name, index), value in (written(graph, option.write) if option.write else {}).items():
                tensor = before[name][index] if index < len(before[name]) else None
                if not isinstance(tensor, gs.Constant) or (len(tensor.outputs) != 1 and tensor.values.ndim > 1):
                    return {}
                shapes[name, index] = value.shape
        nodes = {node.name: node for node in graph.nodes}
        for (name, index), shape in shapes.items():
            tensor = nodes[name].inputs[index]
            if len(tensor.outputs) != 1 or tensor.values.shape != shape:
                value = np.ascontiguousarray(np.broadcast_to(tensor.values, shape))
                nodes[name].inputs[index] = new_constant(graph, f"{name}_{tensor.name}", value)
        return {(name, index): nodes[name].inputs[index].name for name, index in shapes}

    def _span(self, candidate: Candidate, places: Mapping[Place, str]) -> tuple[int, int]:
        """First and last block with a node of the candidate's, or one whose constants it changes."""
        indices = [self._block_of[name] for name in (*candidate.nodes, *(name for name, _ in places))]
        return min(indices), max(indices)

    def _entering(self, first: int, last: int) -> list[str]:
        members = self._blocks[first : last + 1]
        made = {name for block in members for name in block.outputs}
        return [name for name in dict.fromkeys(name for block in members for name in block.inputs) if name not in made]

    def _leaving(self, first: int, last: int) -> list[str]:
        later = {name for block in self._blocks[last + 1 :] for name in block.inputs}
        later |= {tensor.name for tensor in self._model.graph.outputs}
        return [name for block in self._blocks[first : last + 1] for name in block.outputs if name in later]

    def _last_readers(self, spans: Iterable[tuple[int, int]]) -> dict[str, int]:
        """Tensor -> index of the last block at which it is needed."""
        until: dict[str, int] = {}
        for first, last in [*((index, index) for index in range(len(self._blocks))), *spans]:
            for name in self._entering(first, last):
                until[name] = max(until.get(name, -1), last)
        return until

    def _advance(self, values: OptionValues, first: int, last: int, wanted: Sequence[str]) -> None:
        """Keep what the float blocks from ``first`` to ``last`` give with the constants as they are now."""
        if wanted:
            share = share_threads(self._threads, len(self._alive))
            cut = cut_region(values.proto, self._entering(first, last), wanted, ()).open(share.each)
            cut.extend(self._alive, values.floats, wanted, share.at_once)

    def _decide(self, candidate: Candidate, values: OptionValues, first: int, last: int) -> Found:
        """The best option: of least error on the samples that the search sees, better on the others, too."""
        entering, leaving = self._entering(first, last), self._leaving(first, last)
        region = OptionRegion(values, entering, leaving, self._alive, self._threads)
        options = candidate.options()
        best, (start, confirmed) = options[0], self._errors(region, {})
        least = start
        for option in options[1:]:
            error, others = self._errors(region, values.changed_by(option))
            unconfirmed = self._seen < len(self._alive) and others >= confirmed
            if error < min(least, (1 - LEAST_GAIN) * start) and not unconfirmed:
                best, least = option, error
        if best.write is not None:
            values.keep(best)
            made = [name for block in self._blocks[first : last + 1] for name in block.outputs]
            self._advance(values, first, last, [name for name in made if name in self._alive[0]])
        return Found(best, start, least)

    def _errors(self, region: OptionRegion, changed: Arrays) -> tuple[float, float]:
        """Error on the samples that the search sees, and on the others."""
        objective = self._objective.of(region.measured)
        sums = ErrorSum(objective), ErrorSum(objective)
        for number, (exact, found) in enumerate(region.run(changed)):
            sums[number >= self._seen].update(exact, found, region.measured)
        return sums[0].value(), sums[1].value()
