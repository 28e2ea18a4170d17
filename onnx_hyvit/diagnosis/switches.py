"""One session that runs the int8 model with any part of its quantization switched off.

Behind every DequantizeLinear stands ``Where(switch, dequantized, float)``, for activations with what went into the
pair, for weights with the float weight that was found for it; the switches are inputs of the model. So one load serves
all combinations, the arithmetic is that of the Q/DQ graph (no fused kernel), and no names have to be shared with the
float model. A weight without a float original keeps its codes in every combination.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..runtime import Session, make_session
from .ownership import Limits, stem_of
from .pairs import MOVES, ActivationPair, GraphIndex, WeightCodes

WEIGHTS, ACTIVATIONS, RESIDUALS = "weights", "activations", "residuals"
KINDS = (WEIGHTS, ACTIVATIONS, RESIDUALS)
_PREFIX = "onnx_hyvit_switch"


@dataclass(frozen=True)
class Part:
    """A piece of the quantization that can be switched: one kind of one block, or one tensor of it."""

    block: int
    kind: str
    tensor: str = ""


@dataclass(frozen=True)
class Switchable:
    """The quantization of a model, sorted into parts.

    Args:
        proto: The int8 model.
        activations: Pairs, each with its part.
        limits: Tensor of a pair -> lowest and highest value, where the codes also do the work of a Relu or Clip.
        weights: Codes with their part and the float weight (None where none was found).
    """

    proto: onnx.ModelProto
    activations: tuple[tuple[ActivationPair, Part], ...]
    weights: tuple[tuple[WeightCodes, Part, np.ndarray | None], ...]
    limits: Mapping[str, Limits] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that have something in them, in order."""
        parts = {part for _, part in self.activations} | {part for _, part, array in self.weights if array is not None}
        return tuple(sorted(parts, key=lambda part: (part.block, KINDS.index(part.kind), part.tensor)))

    @property
    def pairs(self) -> tuple[ActivationPair, ...]:
        """The activation pairs."""
        return tuple(pair for pair, _ in self.activations)

    def with_own_switches(self, tensors: Iterable[str]) -> Switchable:
        """The same, with a part of its own for each activation in ``tensors``."""
        own = set(tensors)
        activations = tuple(
            (pair, replace(part, tensor=pair.tensor) if pair.tensor in own else part) for pair, part in self.activations
        )
        return replace(self, activations=activations)


def switchable(
    proto: onnx.ModelProto,
    pairs: Sequence[ActivationPair],
    weights: Sequence[WeightCodes],
    originals: Sequence[np.ndarray | None],
    block_of: Sequence[int],
    limits: Mapping[str, Limits],
) -> Switchable:
    """Sort pairs and weights into parts.

    Args:
        proto: The int8 model.
        pairs: Its activation pairs; each goes with the block that makes the tensor, an input's with its first reader.
        weights: Its weights; each goes with its reader.
        originals: The float weights.
        block_of: Block of every node, by position.
        limits: Outputs of Relu and Clip in the float model.
    """
    index = GraphIndex(proto.graph)
    activations = []
    for pair in pairs:
        place = pair.maker if pair.maker is not None else min(_readers(index, pair.results), default=0)
        kind = RESIDUALS if _is_residual(index, pair) else ACTIVATIONS
        activations.append((pair, Part(block_of[place], kind)))
    stored = []
    for weight, original in zip(weights, originals, strict=True):
        place = min(_readers(index, (weight.result,)), default=weight.dequantizer)
        stored.append((weight, Part(block_of[place], WEIGHTS), original))
    return Switchable(proto, tuple(activations), tuple(stored), _absorbed_limits(index, pairs, limits))


def _absorbed_limits(
    index: GraphIndex, pairs: Sequence[ActivationPair], limits: Mapping[str, Limits]
) -> dict[str, Limits]:
    """The pairs whose codes end where a Relu or Clip of the float model does that the int8 model no longer has.

    A tensor that the float model does not know under this name, made by a layer and without any code below 0, is taken
    for the output of a Relu.
    """
    found = {}
    for pair in pairs:
        made_by = index.graph.node[pair.maker].op_type if pair.maker is not None else ""
        name = stem_of(pair.tensor)
        if name in limits and made_by not in ("Relu", "Clip", "", *MOVES):
            found[pair.tensor] = limits[name]
        elif name not in limits and made_by in ("Conv", "Gemm") and not (pair.low < 0).any():
            found[pair.tensor] = (0.0, None)
    return found


def _readers(index: GraphIndex, names: Iterable[str]) -> list[int]:
    return [place for name in names for place in index.readers.get(name, ())]


def _is_residual(index: GraphIndex, pair: ActivationPair) -> bool:
    """Whether the tensor is the sum of two activations."""
    node = index.graph.node[pair.maker] if pair.maker is not None else None
    if node is None or node.op_type != "Add":
        return False
    computed = [name for name in node.input if name not in index.constants]
    stored = [index.maker.get(name) for name in computed]
    fixed = sum(
        place is not None
        and index.graph.node[place].op_type == "DequantizeLinear"
        and index.graph.node[place].input[0] in index.constants
        for place in stored
    )
    return len(computed) - fixed == 2


class SwitchSession:
    """The switchable model in a session.

    Args:
        model: What can be switched.
        expose: Also give out what goes into each pair and what comes out of it (``pair_values``).
        forced: Every reader of a pair gets what is fed as ``force(pair, value)``, so that the error at a pair is the
            one that its own operator adds.
        threads: Threads of the session.
    """

    def __init__(self, model: Switchable, *, expose: bool = False, forced: bool = False, threads: int = 1) -> None:
        self.parts = model.parts
        self._names = {part: f"{_PREFIX}_{number}" for number, part in enumerate(self.parts)}
        self._made: dict[str, str] = {}
        proto, outputs = self._build(model, forced)
        self.output_names = [value.name for value in model.proto.graph.output]
        if expose or forced:
            present = set(self.output_names)
            names = [name for name in outputs if name not in present]
            proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names))
        self.session: Session = make_session(proto, threads=threads, optimize="basic", name="switchable model")

    def run(
        self,
        feeds: Mapping[str, np.ndarray],
        on: Iterable[Part],
        outputs: Sequence[str] | None = None,
        forced: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Run with the parts in ``on`` quantized and all others float.

        Args:
            feeds: Inputs of the model.
            on: Parts.
            outputs: Tensors to fetch; None is the model's outputs.
            forced: For a forced session: result of a pair -> value that its readers get.
        """
        chosen = set(on)
        switches = {name: np.array(part in chosen) for part, name in self._names.items()}
        wanted = self.output_names if outputs is None else outputs
        return self.session.run({**feeds, **switches, **(forced or {})}, wanted)

    def made(self, pair: ActivationPair) -> str:
        """Name of the tensor that holds what the pair makes."""
        return self._made[pair.results[0]]

    def _build(self, model: Switchable, forced: bool) -> tuple[onnx.ModelProto, list[str]]:
        """The model, and the names of all that pairs make."""
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        graph = proto.graph
        del graph.value_info[:]
        ends = {value.name for value in graph.output}
        behind: dict[int, list[onnx.NodeProto]] = {}
        for pair, part in model.activations:
            plain = pair.source
            if pair.tensor in model.limits and pair.maker is not None:
                limit = _limit(graph, pair, model.limits[pair.tensor])
                behind.setdefault(pair.maker, []).append(limit)
                plain = limit.output[0]
            for place, result, factor in zip(pair.dequantizers, pair.results, pair.factors, strict=True):
                force = forced and result not in ends
                self._made[result] = f"{result}::made" if force else result
                times = [] if factor == 1.0 else [_times(graph, pair, plain, factor, result)]
                source = times[0].output[0] if times else plain
                behind[place] = [*times, _switch(graph, place, self._names[part], source, self._made[result])]
                if force:
                    graph.input.append(helper.make_tensor_value_info(result, pair.element, None))
        for weight, part, original in model.weights:
            if original is not None:
                name = f"{weight.result}::float"
                graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(original), name))
                node = _switch(graph, weight.dequantizer, self._names[part], name, weight.result)
                behind[weight.dequantizer] = [node]
        for name in self._names.values():
            graph.input.append(helper.make_tensor_value_info(name, TensorProto.BOOL, []))
        nodes = [each for place, node in enumerate(graph.node) for each in (node, *behind.get(place, ()))]
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)
        return proto, list(self._made.values())


def _times(graph: onnx.GraphProto, pair: ActivationPair, plain: str, factor: float, result: str) -> onnx.NodeProto:
    """The product that was folded into the scale of a DequantizeLinear."""
    name = f"{result}::factor"
    dtype = helper.tensor_dtype_to_np_dtype(pair.element)
    graph.initializer.append(numpy_helper.from_array(np.array(factor, dtype), name))
    return helper.make_node("Mul", [plain, name], [f"{result}::product"], f"{result}::times")


def _limit(graph: onnx.GraphProto, pair: ActivationPair, limits: Limits) -> onnx.NodeProto:
    """The Relu or Clip that the codes of a pair stand for."""
    names = []
    dtype = helper.tensor_dtype_to_np_dtype(pair.element)
    for word, bound in zip(("low", "high"), limits, strict=True):
        names.append("" if bound is None else f"{pair.source}::{word}")
        if bound is not None:
            graph.initializer.append(numpy_helper.from_array(np.array(bound, dtype), names[-1]))
    return helper.make_node("Clip", [pair.source, *names], [f"{pair.source}::limited"], f"{pair.source}::limit")


def _switch(graph: onnx.GraphProto, place: int, switch: str, plain: str, result: str) -> onnx.NodeProto:
    """Rename the output of a DequantizeLinear; returns the node that chooses between it and ``plain``."""
    node = graph.node[place]
    codes = f"{node.output[0]}::codes"
    node.output[0] = codes
    return helper.make_node("Where", [switch, codes, plain], [result], f"{result}::switch")
