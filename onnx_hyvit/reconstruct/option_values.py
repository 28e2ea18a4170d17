"""The constants that options of granularity change, as inputs of the float and of the quantized graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from ..graph import Model, model_to_proto
from ..graph.io import infer_shapes
from ..graph.region import extract_region
from ..numerics import QParams, RangeMethod, fake_quantize, qparams_from_range
from ..numerics.weights import WeightMethod, weight_qparams
from ..placement import Plan
from ..runtime import run_at_once, share_threads
from .options import Option
from .trial import Cut, Pair, Region, TrialModel, cut_region, make_trial, with_inputs

Arrays = dict[str, np.ndarray]
Place = tuple[str, int]  # a node's name and the index of one of its inputs
MOVED = 1e-3  # of a tensor's largest value: what moves more has other values with another granularity


@dataclass(frozen=True)
class Codes:
    """How first scales are found: ranges of activations and scales of weights."""

    ranges: RangeMethod
    weights: WeightMethod


class OptionValues:
    """The constants as they are now, and the models that read them as inputs.

    Attributes:
        trial: The quantized graph, with scales and zero points as inputs, too.
        proto: The float graph, with shapes inferred.
        floats: Values of the constants, and of all weights that have codes, by the name they had at first.
    """

    def __init__(self, model: Model, plan: Plan, names: Mapping[Place, str], codes: Codes) -> None:
        """Make the models.

        Args:
            model: Float model; ``keep`` edits it in place.
            plan: Where pairs go.
            names: Constants that options change, by place.
            codes: How first scales are found.
        """
        self._model, self._codes, self._names = model, codes, names
        self.plan = plan
        parameters = sorted({*names.values(), *plan.weights})
        self.trial: TrialModel = make_trial(model, plan, parameters)
        self.proto: onnx.ModelProto = infer_shapes(with_inputs(model_to_proto(model), parameters))
        self.floats: Arrays = dict(self.trial.parameters)
        self._rounded: Arrays = self._with_codes(self.floats)

    def _with_codes(self, values: Arrays) -> Arrays:
        """These constants, weights by their nearest codes."""
        found = dict(values)
        for name in self.plan.weights.keys() & values.keys():
            scale = weight_qparams(values[name], self.plan.weights[name], self._codes.weights)
            found[name] = fake_quantize(values[name], scale).astype(np.float32)
        return found

    def changed_by(self, option: Option) -> Arrays:
        """New float values of the constants that ``option`` changes; the model stays as it is."""
        return {} if option.write is None else self._named(written(self._model.graph, option.write))

    def keep(self, option: Option) -> None:
        """Write ``option`` for good."""
        if option.write is not None:
            changed = self._named(written(self._model.graph, option.write, keep=True))
            self.floats |= changed
            self._rounded |= self._with_codes(changed)

    def _named(self, values: Mapping[Place, np.ndarray]) -> Arrays:
        return {self._names[place]: np.asarray(value, np.float32) for place, value in values.items()}

    def feeds(self, changed: Arrays) -> tuple[Arrays, Arrays]:
        """Values of all constants with these changes: float, and with the codes of weights."""
        return {**self.floats, **changed}, {**self._rounded, **self._with_codes(changed)}

    def qparams(self, tensors: Sequence[str], batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, QParams]:
        """First scales of tensors with these values."""
        specs, fixed, ranges = self.plan.activations, self.plan.fixed, self._codes.ranges
        observers = {name: ranges.observer() for name in tensors if name not in fixed}
        for batch in batches:
            for name, observer in observers.items():
                observer.update(batch[name])
        found = {name: ranges.qparams(observer, specs[name]) for name, observer in observers.items()}
        return found | {name: qparams_from_range(*fixed[name], specs[name]) for name in tensors if name in fixed}


class OptionRegion:
    """The blocks in which an activation is made and read, float and quantized.

    Attributes:
        measured: Tensors that leave and that an error can be measured at.
    """

    def __init__(
        self,
        values: OptionValues,
        entering: Sequence[str],
        leaving: Sequence[str],
        batches: Sequence[Arrays],
        threads: int,
    ) -> None:
        """Cut them out, and run the float ones.

        Args:
            values: The constants as they are now.
            entering: Tensors that enter.
            leaving: Tensors that leave.
            batches: Float values of the tensors that enter.
            threads: Threads in all.
        """
        self._values, self._leaving, self._batches = values, tuple(leaving), batches
        quantized = cut_region(values.trial.proto, entering, leaving, ())
        self._pairs = _observable(values, entering, leaving, quantized)
        self._inner = [name for name in self._pairs if name not in entering]
        share = share_threads(threads, len(batches))
        self._at_once = share.at_once
        self._cut: Cut = quantized.open(share.each)
        self._float: Cut = cut_region(values.proto, entering, leaving, self._inner).open(share.each)
        self._exact: list[Arrays] = []
        self._first: Arrays = {}
        self._qparams = values.qparams(list(self._pairs), self._run_exact())
        first = self._exact[0]
        self.measured = tuple(name for name in leaving if first[name].dtype.kind == "f" and first[name].size > 1)

    def _run_exact(self) -> Iterator[Arrays]:
        """All tensors of each batch in turn; keeps the outputs, and what is rounded of the first batch."""
        names = [*self._leaving, *self._inner]

        def run(batch: Arrays) -> Arrays:
            return self._float.run(batch, self._values.floats, names)

        for batch, arrays in zip(self._batches, run_at_once(run, self._batches, self._at_once), strict=True):
            self._exact.append({name: arrays[name] for name in self._leaving})
            self._first = self._first or {name: arrays[name] for name in self._inner}
            yield {**batch, **arrays}

    def run(self, changed: Arrays) -> Iterator[tuple[Arrays, Arrays]]:
        """Float and quantized outputs of each batch with these constants."""
        floats, given = self._values.feeds(changed)
        qparams = {**self._qparams, **(self._qparams_with(floats) if changed else {})}
        for name, pair in self._pairs.items():
            given |= pair.feeds(qparams[name])

        def run(batch: Arrays) -> Arrays:
            return self._cut.run(batch, given, self._leaving)

        yield from zip(self._exact, run_at_once(run, self._batches, self._at_once), strict=True)

    def _qparams_with(self, floats: Arrays) -> dict[str, QParams]:
        """First scales of the tensors that have other values now."""
        first = self._float.run(self._batches[0], floats, self._inner) if self._inner else {}
        moved = [name for name, array in first.items() if _differs(array, self._first[name])]
        if not moved:
            return {}
        found = run_at_once(lambda batch: self._float.run(batch, floats, moved), self._batches, self._at_once)
        return self._values.qparams(moved, found)


def _observable(
    values: OptionValues, entering: Sequence[str], leaving: Sequence[str], quantized: Region
) -> dict[str, Pair]:
    """The pairs of a region, each by a tensor there that has its codes: one behind moves where its own is outside."""
    floats = extract_region(values.proto, [*entering, *values.floats], leaving)
    inside = {*entering, *(name for node in floats.graph.node for name in node.output)}
    found = {}
    for source, pair in values.trial.pairs.items():
        if pair.scale in quantized.given:
            moved = (name for name, maker in values.plan.tied.items() if maker == source and name in inside)
            found[source if source in inside else next(moved)] = pair
    return found


def _differs(array: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(array - other).max(initial=0.0) > MOVED * np.abs(other).max(initial=0.0))


def written(graph: gs.Graph, write: Callable[[], object], keep: bool = False) -> dict[Place, np.ndarray]:
    """The constants that ``write`` puts into nodes, by place; the nodes get their own back unless told otherwise."""
    before = {node.name: list(node.inputs) for node in graph.nodes}
    write()
    found = {}
    for node in graph.nodes:
        inputs = before[node.name]
        if len(inputs) == len(node.inputs) and all(a is b for a, b in zip(inputs, node.inputs, strict=True)):
            continue
        for index, tensor in enumerate(node.inputs):
            if index >= len(inputs) or tensor is not inputs[index]:
                found[node.name, index] = np.asarray(getattr(tensor, "values", np.zeros(())))
        if not keep:
            node.inputs = inputs
    return found
