"""Which loss each output of a model has: as asked for, or by shapes, names and last nodes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import onnx

from ..config import LOSSES
from ..errors import ConfigError, ModelError
from .loss import Head, LossSpec

_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, 0})
_THROUGH = frozenset({"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})
_NORMS = frozenset({"LpNormalization", "BatchNormalization", "LayerNormalization", "InstanceNormalization"})
_EMBEDDING_NAMES = ("embed", "feat", "vector", "descriptor")
_NUMBERS = re.compile(r"(?:^|[^a-z])(?:b?box|landmark|keypoint|coord|offset|pose|depth)")


def choose_loss(
    proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, str] | None = None
) -> LossSpec:
    """Decide the loss of every output.

    Args:
        proto: The model.
        shapes: Concrete shapes.
        kinds: Output -> one of ``LOSSES``, see ``QuantConfig.losses``; auto where it says nothing.

    Returns:
        Softmax where a Softmax, LogSoftmax or ArgMax ends the model or ``[B, classes]`` implies one, bernoulli where a
        Sigmoid ends it, cosine for ``[B, features]`` that end in a normalisation or are named so, else squared error;
        the same for outputs named after boxes, landmarks and the like.

    Raises:
        ConfigError: A kind is unknown, or the model has no such output.
        ModelError: No output is differentiable.
    """
    kinds = kinds or {}
    check_losses([info.name for info in proto.graph.output], kinds)
    rest = kinds.get("", "auto")
    producers = {name: node for node in proto.graph.node for name in node.output}
    heads = [_head(info, producers, shapes, kinds.get(info.name, rest)) for info in proto.graph.output]
    found = [head for head in heads if head is not None]
    if not found:
        raise ModelError("no output of the model is a floating-point tensor of known shape; nothing to differentiate")
    unique = {head.tensor: head for head in reversed(found)}
    return LossSpec(tuple(head for head in found if unique[head.tensor] is head))


def check_losses(outputs: Sequence[str], kinds: Mapping[str, str]) -> None:
    """Refuse losses that are unknown, and those of outputs that the model does not have.

    Args:
        outputs: Names of the model's outputs.
        kinds: As for ``choose_loss``.

    Raises:
        ConfigError: Names the first of them.
    """
    for name, kind in kinds.items():
        if kind not in LOSSES:
            raise ConfigError(f"unknown loss {kind!r}; expected one of {', '.join(LOSSES)}")
        if name and name not in outputs:
            raise ConfigError(f"loss: the model has no output {name!r}; expected one of {', '.join(outputs)}")


def _head(
    info: onnx.ValueInfoProto,
    producers: Mapping[str, onnx.NodeProto],
    shapes: Mapping[str, tuple[int, ...]],
    kind: str,
) -> Head | None:
    name = info.name
    last = _last_node(name, producers)
    if last is not None and last.op_type == "ArgMax" and last.input[0] in shapes:
        tensor = last.input[0]
        inner = _last_node(tensor, producers)
        if inner is None or inner.op_type not in ("Softmax", "LogSoftmax"):
            return Head(name, tensor, "softmax", _axis(last, shapes[tensor], 0), shapes[tensor], "read by ArgMax")
        last = inner
    elif info.type.tensor_type.elem_type not in _FLOATS or name not in shapes or not shapes[name]:
        return None
    if last is not None and last.op_type in ("Softmax", "LogSoftmax") and kind != "regression":
        tensor = last.input[0]
        return Head(name, tensor, "softmax", _axis(last, shapes[tensor], -1), shapes[tensor], f"ends in {last.op_type}")
    if last is not None and last.op_type == "Sigmoid" and kind == "auto":
        return Head(name, last.input[0], "bernoulli", 0, shapes[last.input[0]], "ends in Sigmoid")
    shape = shapes[name]
    found, reason = (kind, "asked for") if kind != "auto" else _guess(name, shape, last, producers)
    axis = 1 if found == "segmentation" else len(shape) - 1
    head_kind = "softmax" if found in ("classifier", "sequence", "segmentation") else found
    return Head(name, name, head_kind, axis, shape, reason)


def _axis(node: onnx.NodeProto, shape: tuple[int, ...], default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "axis"), default) % len(shape)


def _last_node(name: str, producers: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    node = producers.get(name)
    while node is not None and node.op_type in _THROUGH:
        node = producers.get(node.input[0])
    return node


def _guess(
    name: str, shape: tuple[int, ...], last: onnx.NodeProto | None, producers: Mapping[str, onnx.NodeProto]
) -> tuple[str, str]:
    if "logit" in name.lower() and len(shape) > 1:
        return ("segmentation" if len(shape) == 4 else "sequence"), "named logits"
    if _NUMBERS.search(name.lower()):
        return "regression", f"named {name!r}"
    if len(shape) != 2 or shape[1] < 2:
        return "regression", f"shape {list(shape)} implies no classes"
    if any(word in name.lower() for word in _EMBEDDING_NAMES):
        return "embedding", f"named {name!r}"
    if last is not None and last.op_type in _NORMS:
        return "embedding", f"ends in {last.op_type}"
    if last is not None and last.op_type == "Div" and _is_norm(last.input[1], producers):
        return "embedding", "divided by its own norm"
    return "classifier", f"shape {list(shape)} implies a softmax"


def _is_norm(name: str, producers: Mapping[str, onnx.NodeProto]) -> bool:
    node = producers.get(name)
    while node is not None and node.op_type in ("Clip", "Max", "Add", "Expand", "Identity", "Unsqueeze"):
        node = producers.get(node.input[0])
    return node is not None and node.op_type in ("ReduceL2", "Sqrt", "ReduceL1")
