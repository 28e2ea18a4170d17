"""The quantized graph with all that is searched as a graph input, cut into blocks: one session for all candidates.

A *trial model* is the Q/DQ graph of a plan whose scales and zero points are inputs and whose weights and biases are
float inputs (their rounding is done outside). Codes are clipped to the bits of the plan inside the graph, so a run
computes what the finished model computes up to the rounding of the bias.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..graph import Model, model_to_proto
from ..graph.io import infer_shapes
from ..graph.region import extract_region, names_read_by_bodies
from ..insert_qdq import insert_qdq
from ..numerics import QParams
from ..placement import Plan
from ..runtime import Session, make_session, run_at_once
from .divergence import NO_SPINNING

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Pair:
    """A Q/DQ pair of the trial model.

    Args:
        tensor: The activation whose scale it has (the source, when tied).
        scale: Graph input that is the scale, float32 scalar.
        zero_point: Graph input that is the zero point, of the container dtype, scalar.
    """

    tensor: str
    scale: str
    zero_point: str

    def feeds(self, qparams: QParams) -> dict[str, np.ndarray]:
        """Values of the two inputs."""
        return {self.scale: np.asarray(qparams.scale), self.zero_point: np.asarray(qparams.zero_point)}


@dataclass(frozen=True)
class TrialModel:
    """See the module.

    Args:
        proto: The graph, with shapes inferred.
        pairs: Source activation -> its pair.
        parameters: Weights and biases that are inputs, by initializer name: their float values.
    """

    proto: onnx.ModelProto
    pairs: Mapping[str, Pair]
    parameters: Mapping[str, np.ndarray]

    def feeds(self, qparams: Mapping[str, QParams]) -> dict[str, np.ndarray]:
        """Values of the scale and zero point inputs of the activations in ``qparams``."""
        found: dict[str, np.ndarray] = {}
        for tensor, pair in self.pairs.items():
            if tensor in qparams:
                found |= pair.feeds(qparams[tensor])
        return found


def make_trial(model: Model, plan: Plan, parameters: Iterable[str]) -> TrialModel:
    """The trial model of ``plan``.

    Args:
        model: Float model that the plan was made for; not changed.
        plan: Where pairs go.
        parameters: Names of the initializers (weights, biases) that become inputs.
    """
    shield = plan.shield_float and bool(plan.paired)
    bare = replace(
        plan,
        weights={},
        biases={},
        fold_clip=False,
        shield_float=shield,
        mismatched_pairs=False,
        as_convolution=frozenset(),
        as_gather=frozenset(),
    )
    unit = {
        name: QParams(np.ones((), np.float32), np.zeros((), spec.dtype), spec)
        for name, spec in plan.activations.items()
        if name not in plan.tied
    }
    proto = infer_shapes(model_to_proto(insert_qdq(model, bare, unit)))
    pairs = _find_pairs(proto, plan)
    wanted = set(parameters)
    values = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer if t.name in wanted}
    scales = [name for pair in pairs.values() for name in (pair.scale, pair.zero_point)]
    proto = with_inputs(proto, [*values, *scales])
    return TrialModel(proto, pairs, values)


def with_inputs(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """``proto``, edited, with these initializers as inputs behind its own."""
    wanted = set(names)
    kinds = {t.name: (t.data_type, tuple(t.dims)) for t in proto.graph.initializer if t.name in wanted}
    kept = [t for t in proto.graph.initializer if t.name not in wanted]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    proto.graph.input.extend(helper.make_tensor_value_info(name, *kinds[name]) for name in dict.fromkeys(names))
    return proto


def _find_pairs(proto: onnx.ModelProto, plan: Plan) -> dict[str, Pair]:
    """Source activation -> pair, read off the Q/DQ nodes."""
    clipped = {node.input[0]: node.output[0] for node in proto.graph.node if node.op_type == "Clip"}
    dequantized = {node.input[0]: node.output[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    pairs = {}
    for node in proto.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        result = dequantized[clipped.get(node.output[0], node.output[0])]
        name = result if result in plan.activations else node.input[0]
        source = plan.source_of(name)
        pairs[source] = Pair(source, node.input[1], node.input[2])
    return pairs


@dataclass(frozen=True)
class Cut:
    """A block as a model of its own.

    Args:
        session: Inputs: the block's inputs, then the scales, zero points and parameters that it reads.
        entering: Tensors that enter the block.
        leaving: Tensors that leave it.
        given: The other inputs of the session.
    """

    session: Session
    entering: tuple[str, ...]
    leaving: tuple[str, ...]
    given: tuple[str, ...]

    def run(self, entering: Feeds, given: Feeds, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Outputs for one batch."""
        feeds = {name: entering[name] for name in self.entering} | {name: given[name] for name in self.given}
        return self.session.run(feeds, outputs)

    def extend(
        self, batches: Iterable[dict[str, np.ndarray]], given: Feeds, outputs: Sequence[str], at_once: int
    ) -> None:
        """Put the outputs for each batch into it, ``at_once`` batches at the same time."""
        kept = list(batches)
        found = run_at_once(lambda batch: self.run(batch, given, outputs), kept, at_once)
        for batch, made in zip(kept, found, strict=True):
            batch |= made


@dataclass(frozen=True)
class Region:
    """Nodes between two sets of tensors as a model, of which a ``Cut`` is made.

    Args:
        model: The nodes; its inputs are the tensors that enter and ``given``.
        entering: Tensors that enter.
        leaving: Tensors that leave.
        given: The other inputs of the model.
    """

    model: onnx.ModelProto = field(repr=False)
    entering: tuple[str, ...]
    leaving: tuple[str, ...]
    given: tuple[str, ...]

    def open(self, threads: int) -> Cut:
        """A session of it."""
        session = make_session(self.model, threads=threads, optimize="extended", name="block", config=NO_SPINNING)
        return Cut(session, self.entering, self.leaving, self.given)


def cut_region(proto: onnx.ModelProto, entering: Sequence[str], leaving: Sequence[str], extra: Sequence[str]) -> Region:
    """Cut the nodes between two sets of tensors out of a trial model (or of a float one).

    Args:
        proto: Model with shapes inferred.
        entering: Tensors that are given.
        leaving: Tensors that are made.
        extra: More tensors of the region to output.
    """
    free = [value.name for value in proto.graph.input]
    outputs = list(dict.fromkeys([*leaving, *extra]))
    region = extract_region(proto, list(dict.fromkeys([*entering, *free])), outputs)
    read = {name for node in region.graph.node for name in (*node.input, *names_read_by_bodies(node))}
    inputs = [value for value in region.graph.input if value.name in read]
    del region.graph.input[:]
    region.graph.input.extend(inputs)
    names = {value.name for value in inputs}
    return Region(
        region,
        tuple(name for name in dict.fromkeys(entering) if name in names),
        tuple(leaving),
        tuple(value.name for value in inputs if value.name not in set(entering)),
    )
