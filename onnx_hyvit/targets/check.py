"""Check a finished model against the rules of a target."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from .target import Target


def check_target(proto: onnx.ModelProto, target: Target) -> list[str]:
    """Where ``proto`` breaks the rules of ``target``: types, schemes, granularity, pairs, operators, opset.

    Args:
        proto: A QDQ model.
        target: Rules of the runtime.

    Returns:
        One line for each breach, naming the node; empty when there is none.
    """
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    producer = {name: node for node in proto.graph.node for name in node.output}
    breaches = list(_check_opset(proto, target))
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear":
            breaches += _check_activation(node, constants, target)
        elif node.op_type == "DequantizeLinear" and node.input[0] in constants:
            breaches += _check_initializer(node, constants, target)
        elif node.op_type == "DequantizeLinear" and not target.mismatched_pairs:
            breaches += _check_equal(node, producer, constants)
    return breaches


def _check_opset(proto: onnx.ModelProto, target: Target) -> Iterator[str]:
    version = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    lowest, highest = target.opsets
    if not lowest <= version <= highest:
        yield f"opset {version} is outside of what {target.name} takes ({lowest} to {highest})"


def _check_activation(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], target: Target) -> Iterator[str]:
    zero_point = _value(node, 2, constants)
    found = "uint8" if zero_point is None else str(zero_point.dtype)
    if found != target.activation.dtype:
        yield f"{node.name}: activation is {found}, {target.name} takes {target.activation.dtype}"
    elif target.activation.scheme == "symmetric" and zero_point is not None:
        middle = target.activation_spec().qmin + 2 ** (target.activation_spec().bits - 1)
        if (zero_point != middle).any():
            yield f"{node.name}: activation has zero point {zero_point.reshape(-1)[0]}, {target.name} takes {middle}"


def _check_initializer(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], target: Target) -> Iterator[str]:
    codes, scale, zero_point = (_value(node, index, constants) for index in range(3))
    if codes is None or scale is None or codes.dtype == np.int32 or codes.ndim < 2 or codes.dtype != np.int8:
        return
    if target.weight.granularity == "per_tensor" and scale.size > 1:
        yield f"{node.name}: weight has a scale per channel, {target.name} takes one"
    if target.weight.scheme == "symmetric" and zero_point is not None and zero_point.any():
        yield f"{node.name}: weight has a zero point, {target.name} takes 0"
    largest = int(np.abs(codes.astype(np.int16)).max(initial=0))
    if largest > 2 ** (target.weight.bits - 1):
        yield f"{node.name}: weight code {largest} needs more than the {target.weight.bits} bits of {target.name}"


def _check_equal(
    node: onnx.NodeProto, producer: dict[str, onnx.NodeProto], constants: dict[str, onnx.TensorProto]
) -> Iterator[str]:
    before = producer.get(node.input[0])
    while before is not None and before.op_type == "Clip":
        before = producer.get(before.input[0])
    if before is None or before.op_type != "QuantizeLinear":
        return
    for index in (1, 2):
        mine, other = _value(node, index, constants), _value(before, index, constants)
        if mine is not None and other is not None and not np.array_equal(mine, other):
            yield f"{node.name}: its scale or zero point differs from that of {before.name}"
            return


def _value(node: onnx.NodeProto, index: int, constants: dict[str, onnx.TensorProto]) -> np.ndarray | None:
    tensor = constants.get(node.input[index]) if len(node.input) > index else None
    return None if tensor is None else numpy_helper.to_array(tensor)
