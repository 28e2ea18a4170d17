"""Reverse sweep: one model that runs forward and backward and outputs gradients at chosen tensors."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from ..errors import ModelError
from ..graph.region import names_read_by_bodies
from . import (  # noqa: F401  (register their rules)
    activations,
    attention,
    elementwise,
    linear,
    norms,
    reductions,
    resize,
    shape_ops,
)
from .loss import LossSpec, emit_seeds
from .registry import ZERO_GRADIENT, NoRule, read_node, rule_of
from .tape import Tape

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unsupported:
    """A node that gradients cannot pass, and why."""

    op: str
    node: str
    reason: str


@dataclass(frozen=True)
class BackwardModel:
    """A forward-and-backward model.

    Args:
        proto: Inputs: those of the forward model, then the noise inputs of the loss. Outputs: one gradient per target.
        gradients: Target tensor -> name of its gradient among the outputs; of the target's shape.
        loss: The loss at the outputs.
        unsupported: Nodes on the way from the targets to the loss that have no VJP rule.
        missing: Targets without a gradient, because a path of theirs to the loss meets such a node.
        disconnected: Targets that the loss does not depend on; their gradient is zero.
    """

    proto: onnx.ModelProto
    gradients: dict[str, str]
    loss: LossSpec
    unsupported: tuple[Unsupported, ...]
    missing: tuple[str, ...]
    disconnected: tuple[str, ...]


def build_backward(
    proto: onnx.ModelProto, targets: Sequence[str], loss: LossSpec, shapes: Mapping[str, tuple[int, ...]]
) -> BackwardModel:
    """Emit the backward graph of a model in ONNX operators.

    Args:
        proto: Forward model, topologically sorted, opset 13 or higher, run at exactly ``shapes``.
        targets: Tensors to differentiate at; activations or model inputs.
        loss: What is differentiated; see ``choose_loss``.
        shapes: Concrete shape of every tensor.

    Returns:
        The model, and what could not be differentiated.

    Raises:
        ModelError: A target is not a tensor of the model, a shape is missing, or the opset is below 13.
    """
    _check_targets(proto, targets)
    sweep = _Sweep(proto, targets, Tape(proto, shapes))
    sweep.run(emit_seeds(sweep.tape, loss))
    gradients = {target: sweep.total(target) for target in dict.fromkeys(targets) if target not in sweep.blocked}
    reached = {target: name for target, name in gradients.items() if name is not None}
    return BackwardModel(
        _assemble(proto, sweep.tape, reached, loss, shapes),
        {target: f"grad/{target}" for target in reached},
        loss,
        tuple(sweep.unsupported),
        tuple(target for target in dict.fromkeys(targets) if target in sweep.blocked),
        tuple(target for target, name in gradients.items() if name is None),
    )


def _check_targets(proto: onnx.ModelProto, targets: Sequence[str]) -> None:
    known = {info.name for info in proto.graph.input}.union(*(node.output for node in proto.graph.node))
    for target in targets:
        if target not in known:
            raise ModelError(f"no gradient at {target!r}: not a tensor of the model")


class _Sweep:
    """State of one reverse sweep: gradients collected per tensor, and what is blocked by a missing rule."""

    def __init__(self, proto: onnx.ModelProto, targets: Sequence[str], tape: Tape) -> None:
        self.tape = tape
        self.unsupported: list[Unsupported] = []
        self.blocked: set[str] = set()
        self._nodes = list(proto.graph.node)
        self._parts: dict[str, list[str]] = {}
        self._active = _downstream(self._nodes, targets)

    def run(self, seeds: Mapping[str, str]) -> None:
        """Sweep from the seeds (tensor -> gradient) to the targets."""
        for tensor, gradient in seeds.items():
            self._parts.setdefault(tensor, []).append(gradient)
        for node in reversed(self._nodes):
            self._step(node)

    def total(self, tensor: str) -> str | None:
        """Sum of the gradients that arrived at ``tensor``; None if none did."""
        parts = self._parts.get(tensor, [])
        if len(parts) > 1:
            summed = parts[0]
            for part in parts[1:]:
                summed = self.tape.op("Add", summed, part)
            self._parts[tensor] = parts = [summed]
        return parts[0] if parts else None

    def _step(self, node: onnx.NodeProto) -> None:
        needs = [name in self._active for name in node.input]
        outer = names_read_by_bodies(node) & self._active
        if not (any(needs) or outer) or node.op_type in ZERO_GRADIENT:
            return
        if any(name in self.blocked for name in node.output):
            self.blocked.update(name for name, need in zip(node.input, needs, strict=True) if need)
            self.blocked |= outer
            return
        grads = [self.total(name) if name else None for name in node.output]
        if all(gradient is None for gradient in grads):
            return
        self.blocked |= outer
        view = read_node(node, needs)
        rule = rule_of(node)
        mark = len(self.tape.nodes)
        try:
            if rule is None:
                raise NoRule("no VJP rule")
            found = rule(self.tape, view, grads)
        except NoRule as reason:
            del self.tape.nodes[mark:]
            self.unsupported.append(Unsupported(node.op_type, view.name, str(reason)))
            self.blocked.update(name for name, need in zip(node.input, needs, strict=True) if need)
            _LOG.warning("no gradient through %s %r: %s", node.op_type, view.name, reason)
            return
        for name, need, gradient in zip(node.input, needs, found, strict=False):
            if need and gradient is not None:
                self._parts.setdefault(name, []).append(gradient)


def _downstream(nodes: Sequence[onnx.NodeProto], targets: Sequence[str]) -> set[str]:
    """The targets and every tensor that depends on one."""
    active = set(targets)
    for node in nodes:
        if any(name in active for name in (*node.input, *names_read_by_bodies(node))):
            active.update(name for name in node.output if name)
    return active


def _assemble(
    proto: onnx.ModelProto,
    tape: Tape,
    gradients: Mapping[str, str],
    loss: LossSpec,
    shapes: Mapping[str, tuple[int, ...]],
) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    graph = model.graph
    del graph.value_info[:]
    del graph.output[:]
    for info in graph.input:
        _fix_shape(info, shapes.get(info.name))
    for name, shape, dtype in loss.noise_inputs(tape):
        graph.input.append(onnx.helper.make_tensor_value_info(name, dtype, shape))
    graph.initializer.extend(tape.initializers)
    graph.node.extend(tape.nodes)
    for target, gradient in gradients.items():
        graph.node.append(onnx.helper.make_node("Identity", [gradient], [f"grad/{target}"], name=f"grad/{target}"))
        dtype = onnx.helper.np_dtype_to_tensor_dtype(tape.dtype(target))
        graph.output.append(onnx.helper.make_tensor_value_info(f"grad/{target}", dtype, tape.shape(target)))
    return model


def _fix_shape(info: onnx.ValueInfoProto, shape: tuple[int, ...] | None) -> None:
    if shape is not None:
        kind = info.type.tensor_type.elem_type
        info.CopyFrom(onnx.helper.make_tensor_value_info(info.name, kind, shape))
