"""What each rounding of activations and weights does to the outputs, all of them at once, from gradients.

With ``g`` the gradient of the sampled loss (``backward.loss``) where a tensor is read, and ``d`` what rounding adds to
it, ``s = g . d`` is the effect of that rounding in one draw, and ``E[(s_1 + s_2 + ...)^2] / 2`` is, to second order,
the divergence that the roundings 1, 2, ... cause together (``E[g g^T]`` is the Gauss-Newton Hessian). A tensor may be
rounded for one reader and not for another, so each reading is a term of its own, and so is each rounded weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..backward import LossSpec, build_backward
from ..backward.runs import batch_of, runs_of
from ..numerics import QParams, fake_quantize
from ..placement import Plan
from ..runtime import Session, make_session, run_at_once, share_threads

OUTPUT = ""  # the reader of a model output
Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Rounding:
    """One term.

    Args:
        tensor: The activation or weight that is rounded.
        reader: Name of the node that reads it so; ``OUTPUT`` for a model output.
        is_weight: Whether it is a weight.
    """

    tensor: str
    reader: str
    is_weight: bool = False


@dataclass(frozen=True)
class Effects:
    """Effects of all roundings.

    Args:
        roundings: The terms.
        values: Effect of each in each draw, float64 [draws, terms]; on the mean answer of each head, added up.
        unknown: Terms that no gradient reaches, or whose effect is not finite.
    """

    roundings: tuple[Rounding, ...]
    values: np.ndarray
    unknown: tuple[Rounding, ...] = ()

    def divergence(self, tensors: Iterable[Sequence[int]]) -> float:
        """Predicted divergence of roundings, given as numbers of terms; those of one tensor belong together.

        Different tensors count as independent: their cross terms are small beside the noise of so few draws.
        """
        return 0.5 * sum(float(np.square(self.values[:, list(terms)].sum(axis=1)).mean()) for terms in tensors if terms)


def measure_effects(
    proto: onnx.ModelProto,
    plan: Plan,
    qparams: Mapping[str, QParams],
    shapes: Mapping[str, tuple[int, ...]],
    batches: Iterable[Feeds],
    loss: LossSpec,
    *,
    draws: int = 4,
    samples: int = 32,
    seed: int = 0,
    threads: int = 2,
    gelus: Mapping[str, float] | None = None,
) -> Effects:
    """Effect of every rounding of ``plan`` on the outputs of the float model.

    Args:
        proto: Float model that the plan was made for, opset 13 or higher.
        plan: What is rounded.
        qparams: Scales of activations and weights.
        shapes: Concrete shape of every tensor; runs have their batch.
        batches: Feeds, cut into runs.
        loss: Loss at the outputs.
        draws: Random draws for each sample.
        samples: Samples to use at most.
        seed: Same seed, same effects.
        threads: Threads in all.
        gelus: Gelu node -> c of the ``x * sigmoid(c x)`` that would stand in its place; a term each, in which the
            tensor is what the node makes and the reader the node itself.
    """
    traced = _Trace(proto, plan, qparams, shapes, gelus or {})
    heads = [head.tensor for head in loss.heads if head.tensor in plan.activations]
    targets = list(dict.fromkeys([*traced.seen_at.values(), *heads]))
    model = build_backward(traced.proto, targets, loss.per_answer(), traced.shapes)
    seen_at = {
        # the loss is put on the scores themselves: the Softmax that reads them gets no gradient of its own
        rounding: rounding.tensor if target in model.disconnected and rounding.tensor in heads else target
        for rounding, target in traced.seen_at.items()
    }
    known = [rounding for rounding, target in seen_at.items() if target in model.gradients]
    unknown = tuple(rounding for rounding, target in seen_at.items() if target in model.missing)
    if not known:
        return Effects((), np.zeros((1, 0)), unknown)
    pairs = [(model.gradients[seen_at[rounding]], traced.change[rounding]) for rounding in known]
    most = max(1, samples // batch_of(proto, shapes)[0])
    runs = islice(runs_of(proto, shapes, batches), most)
    share = share_threads(threads, most * draws)
    session = make_session(_with_products(model.proto, pairs), threads=share.each, name="effects of roundings")
    values = _draw(session, runs, loss, draws, np.random.default_rng(seed), share.at_once)
    finite = np.isfinite(values).all(axis=0)
    lost = tuple(rounding for rounding, good in zip(known, finite, strict=True) if not good)
    kept = tuple(rounding for rounding, good in zip(known, finite, strict=True) if good)
    return Effects(kept, values[:, finite], unknown + lost)


def _with_products(proto: onnx.ModelProto, pairs: Sequence[tuple[str, str]]) -> onnx.ModelProto:
    """The model with the sum of the products of each pair of tensors as its outputs, in order."""
    graph = proto.graph
    del graph.output[:]
    for place, pair in enumerate(pairs):
        product, total = f"effect/{place}/product", f"effect/{place}"
        graph.node.append(helper.make_node("Mul", pair, [product]))
        graph.node.append(helper.make_node("ReduceSum", [product], [total], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(total, TensorProto.FLOAT, ()))
    return proto


def _draw(
    session: Session, runs: Iterable[Feeds], loss: LossSpec, draws: int, rng: np.random.Generator, at_once: int
) -> np.ndarray:
    """All outputs for each draw of each run, float64 [draws, outputs]."""

    def run(feeds: Feeds) -> list[float]:
        found = session.run(feeds)
        return [float(found[name]) for name in session.output_names]

    drawn = ({**feeds, **loss.draw(rng)} for feeds in runs for _ in range(draws))
    rows = list(run_at_once(run, drawn, at_once))
    return np.array(rows, np.float64).reshape(-1, len(session.output_names))


class _Trace:
    """The float model with a name for each reading of a rounded tensor, and what rounding adds there."""

    def __init__(
        self,
        proto: onnx.ModelProto,
        plan: Plan,
        qparams: Mapping[str, QParams],
        shapes: Mapping[str, tuple[int, ...]],
        gelus: Mapping[str, float],
    ) -> None:
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(proto)
        self.shapes = dict(shapes)
        self.seen_at: dict[Rounding, str] = {}
        self.change: dict[Rounding, str] = {}
        self._plan = plan
        self._nodes: list[onnx.NodeProto] = []
        self._edges: dict[tuple[str, str], str] = {}
        self._converted = {
            (reader, each.tensor): name
            for name, each in plan.conversions.items()
            for reader in each.readers
            if name in qparams and each.tensor in shapes
        }
        free = {name for name in plan.activations if name not in plan.tied and name in shapes and name in qparams}
        outputs = {value.name for value in proto.graph.output}
        inputs, on_codes = [value.name for value in proto.graph.input], plan.on_codes
        for name in inputs:
            self._emit(name, qparams, free)
        for node in list(self.proto.graph.node):
            self._readings(node, free)
            made = [name for name in node.output if name in free]
            for place, name in enumerate(node.output):
                if name in made and name in outputs:
                    node.output[place] = f"{name}::made"
                    self.shapes[node.output[place]] = self.shapes[name]
            self._nodes.append(node)
            self._weight(node, qparams)
            if node.name in gelus:
                self._gelu(node, gelus[node.name])
            for name in node.output:
                tensor = name.removesuffix("::made")
                self._emit(tensor, qparams, free, tensor != name, node.name in on_codes)
        del self.proto.graph.node[:]
        self.proto.graph.node.extend(self._nodes)

    def _readings(self, node: onnx.NodeProto, free: set[str]) -> None:
        """Let ``node`` read its rounded inputs under names of their own."""
        for place, name in enumerate(node.input):
            if name in free or (node.name, name) in self._converted:
                node.input[place] = self._edge(name, node.name)

    def _edge(self, tensor: str, reader: str) -> str:
        key = (tensor, reader)
        if key not in self._edges:
            name = f"{tensor}::for::{reader}"
            self._edges[key] = name
            self.shapes[name] = self.shapes[tensor]
            self._nodes.append(helper.make_node("Identity", [self._origin(tensor)], [name], name=name))
            rounding = Rounding(tensor, reader)
            codes = self._converted.get((reader, tensor), tensor)
            self.seen_at[rounding], self.change[rounding] = name, f"{codes}::change"
        return self._edges[key]

    def _origin(self, tensor: str) -> str:
        made = f"{tensor}::made"
        return made if made in self.shapes else tensor

    def _emit(
        self,
        tensor: str,
        qparams: Mapping[str, QParams],
        free: set[str],
        is_output: bool = False,
        on_codes: bool = False,
    ) -> None:
        """Emit what rounding adds to ``tensor``, and its conversions, which read its codes where a node makes some."""
        source = self._origin(tensor)
        if tensor in free:
            rounded = self._activation(tensor, qparams[tensor], is_output)
            source = rounded if on_codes else source
        for name in sorted({name for (_, each), name in self._converted.items() if each == tensor}):
            self._rounding(name, source, tensor, qparams[name])

    def _activation(self, tensor: str, qparams: QParams, is_output: bool) -> str:
        """Emit what rounding adds to ``tensor``; returns the rounded one."""
        origin = self._origin(tensor)
        if is_output:
            self._nodes.append(helper.make_node("Identity", [origin], [tensor], name=f"{tensor}::output"))
            rounding = Rounding(tensor, OUTPUT)
            self.seen_at[rounding], self.change[rounding] = tensor, f"{tensor}::change"
        return self._rounding(tensor, origin, tensor, qparams)

    def _rounding(self, stem: str, source: str, tensor: str, qparams: QParams) -> str:
        """Emit ``stem::change``: ``source`` rounded, less ``tensor``; returns the rounded one."""
        spec, origin = qparams.spec, self._origin(tensor)
        codes, rounded = f"{stem}::codes", f"{stem}::rounded"
        params = [
            self._constant(f"{stem}::{word}", value)
            for word, value in (("scale", qparams.scale), ("zero_point", qparams.zero_point))
        ]
        axis: dict[str, Any] = {} if qparams.scale.ndim == 0 else {"axis": spec.axis}
        self._nodes.append(helper.make_node("QuantizeLinear", [source, *params], [codes], **axis))
        if not spec.is_full_container:
            limits = [self._constant(f"{stem}::{end}", np.array(getattr(spec, end), spec.dtype)) for end in _ENDS]
            self._nodes.append(helper.make_node("Clip", [codes, *limits], [f"{codes}::clipped"]))
            codes = f"{codes}::clipped"
        self._nodes.append(helper.make_node("DequantizeLinear", [codes, *params], [rounded], **axis))
        self._nodes.append(helper.make_node("Sub", [rounded, origin], [f"{stem}::change"]))
        for name in (codes, rounded, f"{stem}::codes", f"{stem}::change"):
            self.shapes[name] = self.shapes[tensor]
        return rounded

    def _weight(self, node: onnx.NodeProto, qparams: Mapping[str, QParams]) -> None:
        """Emit what the rounding of a layer's weight adds to its output."""
        if len(node.input) < 2 or node.input[1] not in self._plan.weights or node.input[1] not in qparams:
            return
        if node.name not in self._plan.int8_nodes:
            return
        name, output = node.input[1], node.output[0]
        weight = next((t for t in self.proto.graph.initializer if t.name == name), None)
        if weight is None or output not in self.shapes:
            return
        values = numpy_helper.to_array(weight)
        change = self._constant(f"{name}::change::{node.name}", fake_quantize(values, qparams[name]) - values)
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.input[2:]
        copy.input[1] = change
        copy.name, copy.output[0] = f"{node.name}::change", f"{output}::by_weight"
        self._nodes.append(copy)
        self.shapes[copy.output[0]] = self.shapes[output]
        rounding = Rounding(name, node.name, True)
        self.seen_at[rounding], self.change[rounding] = output, copy.output[0]

    def _gelu(self, node: onnx.NodeProto, factor: float) -> None:
        """Emit what ``x * sigmoid(factor * x)`` adds to the output of a Gelu."""
        source, made = node.input[0], node.output[0]
        words = ("scaled", "sigmoid", "product", "replaced")
        scaled, sigmoid, product, change = (f"{node.name}::gelu::{word}" for word in words)
        number = self._constant(f"{node.name}::factor", np.array(factor, np.float32))
        self._nodes.append(helper.make_node("Mul", [source, number], [scaled]))
        self._nodes.append(helper.make_node("Sigmoid", [scaled], [sigmoid]))
        self._nodes.append(helper.make_node("Mul", [source, sigmoid], [product]))
        self._nodes.append(helper.make_node("Sub", [product, made], [change]))
        self.shapes.update(dict.fromkeys((scaled, sigmoid, product, change), self.shapes[made]))
        rounding = Rounding(made.removesuffix("::made"), node.name)
        self.seen_at[rounding], self.change[rounding] = made, change

    def _constant(self, name: str, values: np.ndarray) -> str:
        self.proto.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name


_ENDS = ("qmin", "qmax")
