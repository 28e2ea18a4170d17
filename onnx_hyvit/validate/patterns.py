"""Q/DQ patterns that a runtime refuses, computes wrongly, or silently runs in float; read off the graph alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from ..graph.int4 import is_int4
from ..graph.lookup import Lookup

FUSED_OPS = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "MatMul",
        "Gemm",
        "Add",
        "Mul",
        "Concat",
        "Softmax",
        "Sigmoid",
        "LeakyRelu",
        "GlobalAveragePool",
        "AveragePool",
    }
)


@dataclass(frozen=True)
class Finding:
    """Something about a quantized model that its owner should know.

    Args:
        kind: Short identifier, such as ``per-channel-activation``.
        node: Name of the node or tensor.
        message: One line: what it is and what it does.
        fatal: Whether a runtime fails or gives wrong values; else it is a loss of speed.
    """

    kind: str
    node: str
    message: str
    fatal: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.node}: {self.message}"


def find_patterns(proto: onnx.ModelProto) -> list[Finding]:
    """Patterns of ``proto`` that fail, give wrong values, or cost an int8 kernel, in graph order.

    Fatal are: a scale per channel on an activation in front of an operator that is fused to int8 (session or run
    fails), or right behind one; scales that are not positive and finite; a bias whose scale is not the product of its
    activation's and weight's scales (integer kernels imply that product); Q or DQ that nothing reads.
    """
    view = Lookup(proto.graph)
    findings: list[Finding] = []
    for node in proto.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            findings += _check_pair(node, view)
        elif node.op_type in ("Conv", "Gemm", "ConvTranspose"):
            findings += _check_bias(node, view)
        elif node.op_type == "Clip":
            findings += _check_clip(node, view)
    return findings


def _check_pair(node: onnx.NodeProto, view: Lookup) -> Iterator[Finding]:
    scale = view.value(node.input[1])
    if scale is not None and not (np.isfinite(scale).all() and (scale > 0).all()):
        yield Finding("bad-scale", node.name, "its scale is not positive and finite", fatal=True)
    if node.output[0] not in view.readers and node.output[0] not in view.outputs:
        yield Finding("dead-pair", node.name, f"nothing reads its output {node.output[0]!r}", fatal=True)
    source = view.constants.get(node.input[0])
    if source is not None and is_int4(source):
        yield Finding("narrow-container", node.name, "4-bit containers are dequantized and computed in float")
    if scale is None or scale.size <= 1 or source is not None:
        return
    if node.op_type == "DequantizeLinear":
        for reader in view.readers.get(node.output[0], []):
            if reader.op_type in FUSED_OPS:
                message = f"activation with a scale per channel in front of {reader.op_type} {reader.name!r}"
                yield Finding(
                    "per-channel-activation", node.name, f"{message}: int8 kernels take one scale", fatal=True
                )
    else:
        producer = view.makers.get(node.input[0])
        if producer is not None and producer.op_type in FUSED_OPS:
            message = f"scale per channel right behind {producer.op_type} {producer.name!r}"
            yield Finding("per-channel-activation", node.name, f"{message}: int8 kernels take one scale", fatal=True)


def _check_bias(node: onnx.NodeProto, view: Lookup) -> Iterator[Finding]:
    pairs = [_dequantizer(name, view) for name in node.input[:3]]
    if len(pairs) < 2 or pairs[0] is None or pairs[1] is None or pairs[1].input[0] not in view.constants:
        return
    if node.op_type == "Conv" and not any(
        reader.op_type == "QuantizeLinear" for reader in _behind_relu(node.output[0], view)
    ):
        yield Finding("no-output-pair", node.name, "a Conv without Q on its output runs in float")
    if len(pairs) < 3 or not node.input[2]:
        return
    if pairs[2] is None:
        yield Finding("float-bias", node.name, "a float bias can keep its layer in float; store it as int32")
        return
    scales = [view.value(pair.input[1]) for pair in pairs if pair is not None]
    if all(scale is not None for scale in scales) and len(scales) == 3:
        activation, weight, bias = scales
        if activation is None or weight is None or bias is None or activation.size != 1:
            return
        if not np.allclose(np.broadcast_to(activation * weight, bias.shape), bias, rtol=1e-4, atol=0):
            message = "its bias scale is not activation scale x weight scale, which integer kernels imply"
            yield Finding("bias-scale", node.name, message, fatal=True)


def _check_clip(node: onnx.NodeProto, view: Lookup) -> Iterator[Finding]:
    producer = view.makers.get(node.input[0])
    if producer is None or producer.op_type != "QuantizeLinear" or len(producer.input) < 3:
        return
    zero_point = view.constants.get(producer.input[2])
    if zero_point is not None and zero_point.data_type == onnx.TensorProto.INT8:
        yield Finding("signed-clip", node.name, "on x86 a Clip of int8 codes keeps the layer before it in float")


def _dequantizer(name: str, view: Lookup) -> onnx.NodeProto | None:
    node = view.makers.get(name)
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _behind_relu(name: str, view: Lookup) -> list[onnx.NodeProto]:
    readers = view.readers.get(name, [])
    if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
        return view.readers.get(readers[0].output[0], [])
    return readers
