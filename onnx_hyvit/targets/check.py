"""Check a finished model against the rules of a target."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from ..graph.int4 import is_int4
from ..graph.lookup import Lookup
from .breach import Breach
from .check_width import check_width
from .target import Target

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_FUSED = frozenset({"Softmax", "AveragePool"})  # runtimes make int8 kernels of these when they stand between pairs
_MOVES = frozenset({"Transpose", "Reshape"})


def check_target(proto: onnx.ModelProto, target: Target) -> list[Breach]:
    """Where ``proto`` breaks the rules of ``target``: opset, shapes, types, schemes, granularity, pairs, operators.

    Args:
        proto: A QDQ model.
        target: Rules of the runtime.

    Returns:
        The breaches in graph order; empty when there is none.
    """
    view = Lookup(proto.graph)
    breaches = [*_check_opset(proto, target), *_check_shapes(proto, view, target)]
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear":
            breaches += _check_activation(node, view, target)
        elif node.op_type == "DequantizeLinear" and node.input[0] in view.constants:
            breaches += _check_initializer(node, view, target)
        elif node.op_type == "DequantizeLinear" and not target.mismatched_pairs:
            breaches += _check_equal(node, view, target)
        elif node.op_type in _FUSED and node.op_type in target.float:
            breaches += _check_operator(node, view, target)
        if target.int16_activations == "native":
            breaches += check_width(node, view, target)
    return breaches


def _again(target: Target) -> str:
    return f"quantize the float model again with --target {target.name}"


def _check_opset(proto: onnx.ModelProto, target: Target) -> Iterator[Breach]:
    version = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    lowest, highest = target.opsets
    if not lowest <= version <= highest:
        problem = f"opset {version} is outside of what {target.name} takes ({lowest} to {highest})"
        yield Breach("model", problem, "export the float model with such an opset and quantize it again")


def _check_shapes(proto: onnx.ModelProto, view: Lookup, target: Target) -> Iterator[Breach]:
    if not target.fixed_shapes:
        return
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in view.constants and not all(dim.dim_value > 0 for dim in dims):
            sizes = ",".join(str(dim.dim_value or 1) for dim in dims)
            advice = f"fix it with `onnx-hyvit export-mobile MODEL -o DIR --fixed-shape {value.name}={sizes}`"
            yield Breach(value.name, f"the input has free dimensions, {target.name} takes fixed shapes only", advice)


def _check_activation(node: onnx.NodeProto, view: Lookup, target: Target) -> Iterator[Breach]:
    zero_point = view.operand(node, 2)
    found = "uint8" if zero_point is None else str(zero_point.dtype)
    if found not in target.activation_dtypes:
        yield Breach(node.name, f"activation is {found}, {target.name} takes {target.activation.dtype}", _again(target))
    elif target.activation.scheme == "symmetric" and zero_point is not None:
        middle = 0 if zero_point.dtype.kind == "i" else 2 ** (8 * zero_point.dtype.itemsize - 1)
        if (zero_point != middle).any():
            problem = f"activation has zero point {zero_point.reshape(-1)[0]}, {target.name} takes {middle}"
            yield Breach(node.name, problem, _again(target))


def _check_initializer(node: onnx.NodeProto, view: Lookup, target: Target) -> Iterator[Breach]:
    codes, scale, zero_point = (view.operand(node, index) for index in range(3))
    if codes is None or scale is None:
        return
    narrow = is_int4(view.constants[node.input[0]])
    if codes.dtype == np.int32:
        if target.float_bias:
            yield Breach(node.name, f"the bias is int32, {target.name} takes float biases only", _again(target))
        return
    layer = _layer_behind(node, view)
    if layer is None:
        return
    if narrow and not target.int4_weights:
        yield Breach(node.name, f"the weight is INT4, which {target.name} cannot read", _again(target))
    rule = target.int8.get(layer.op_type)
    per_tensor = target.weight.granularity == "per_tensor" or (rule is not None and not rule.per_channel)
    problems = []
    if str(codes.dtype) != target.weight.dtype:
        problems.append(f"weight is {codes.dtype}, {target.name} takes {target.weight.dtype}")
    if per_tensor and scale.size > 1:
        problems.append(f"weight has a scale per channel, {target.name} takes one for {layer.op_type}")
    middle = (8 if narrow else 128) if codes.dtype == np.uint8 else 0
    if target.weight.scheme == "symmetric" and zero_point is not None and (zero_point != middle).any():
        problems.append(f"weight has a zero point, {target.name} takes {middle}")
    largest = int(np.abs(codes.astype(np.int16) - middle).max(initial=0))
    if largest > 2 ** (target.weight.bits - 1):
        problems.append(f"weight code {largest} needs more than the {target.weight.bits} bits of {target.name}")
    for problem in problems:
        yield Breach(node.name, problem, _again(target))


def _layer_behind(node: onnx.NodeProto, view: Lookup) -> onnx.NodeProto | None:
    """The layer whose weight ``node`` makes, directly or moved."""
    name = node.output[0]
    for reader in view.readers.get(name, []):
        if reader.op_type in _LAYERS and name in reader.input[1:2]:
            return reader
        if reader.op_type in _MOVES:
            return _layer_behind(reader, view)
    return None


def _check_equal(node: onnx.NodeProto, view: Lookup, target: Target) -> Iterator[Breach]:
    before = view.makers.get(node.input[0])
    while before is not None and before.op_type == "Clip":
        before = view.makers.get(before.input[0])
    if before is None or before.op_type != "QuantizeLinear":
        return
    for index in (1, 2):
        mine, other = view.operand(node, index), view.operand(before, index)
        if mine is not None and other is not None and not np.array_equal(mine, other):
            problem = (
                f"its scale or zero point differs from that of {before.name}, {target.name} takes equal pairs only"
            )
            yield Breach(node.name, problem, _again(target))
            return


def _check_operator(node: onnx.NodeProto, view: Lookup, target: Target) -> Iterator[Breach]:
    """An operator that should stay float, but has Q/DQ pairs on all sides."""
    inputs = [view.makers.get(name) for name in node.input if name and name not in view.constants]
    outputs = [reader for name in node.output for reader in view.readers.get(name, [])]
    if not inputs or not outputs or not all(made is not None and made.op_type == "DequantizeLinear" for made in inputs):
        return
    if all(reader.op_type == "QuantizeLinear" for reader in outputs):
        problem = f"{node.op_type} stands between Q/DQ pairs: {target.float[node.op_type]}"
        yield Breach(node.name, problem, f"remove the pair behind it, or {_again(target)}")
