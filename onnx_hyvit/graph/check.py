"""What makes a parsed model unusable, each refused with one line."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx.checker
from google.protobuf.message import Message

from ..errors import ModelError, one_line

MIN_OPSET = 7
KNOWN_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
QUANTIZED_OPS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
        "DynamicQuantizeLinear",
    }
)


def check_text(message: Message, name: str) -> None:
    """Refuse strings that are no UTF-8: protobuf hands them out as bytes, which fail in the middle of something."""
    for entry, value in message.ListFields():
        many = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        if entry.type == entry.TYPE_MESSAGE:
            for part in value if many else (value,):
                check_text(part, name)
        elif entry.type == entry.TYPE_STRING:
            for text in value if many else (value,):
                if isinstance(text, bytes):
                    raise ModelError(f"{name}: damaged: {entry.name} {text[:40]!r} is not UTF-8")


def check_usable(proto: onnx.ModelProto, name: str, *, quantized_ok: bool = False) -> None:
    """Refuse a model that cannot be worked on: opset, domains, types, already quantized, or invalid.

    Args:
        proto: Model as parsed, with its external data.
        name: What messages call it.
        quantized_ok: Accept quantization operators.

    Raises:
        ModelError: Says what and where.
    """
    functions = {(function.domain, function.name) for function in proto.functions}
    function_domains = {domain for domain, _ in functions}
    version = default_opset(proto)
    if version is None:
        raise ModelError(f"{name}: no opset of the default ONNX domain is imported")
    if not MIN_OPSET <= version <= onnx.defs.onnx_opset_version():
        raise ModelError(
            f"{name}: opset {version} is not supported (expected {MIN_OPSET} to {onnx.defs.onnx_opset_version()}); "
            "export the model again with opset 17 to 20"
        )
    for node in proto.graph.node:
        if node.op_type in QUANTIZED_OPS and not quantized_ok:
            raise ModelError(
                f"{name}: already quantized (node {node.name or node.output[0]!r} is {node.op_type}); "
                "pass the float model instead"
            )
        if node.domain not in KNOWN_DOMAINS and node.domain not in function_domains:
            raise ModelError(
                f"{name}: node {node.name or node.op_type!r} uses the custom domain {node.domain!r}, "
                "whose operators cannot be run here"
            )
    _check_types(proto.graph, name)
    try:
        onnx.checker.check_model(proto)
    except ValueError as error:
        if "exceeds maximum" not in str(error) and "2GB" not in str(error):
            raise ModelError(f"{name}: invalid model ({one_line(error)})") from error
    except Exception as error:
        raise ModelError(f"{name}: invalid model ({one_line(error)})") from error


def _check_types(graph: onnx.GraphProto, name: str) -> None:
    """Refuse what the graph IR cannot carry: optional values, and constants of strings."""
    for kind, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            if value.type.WhichOneof("value") in ("optional_type", "sparse_tensor_type", "map_type"):
                found = str(value.type.WhichOneof("value")).removesuffix("_type")
                raise ModelError(f"{name}: {kind} {value.name!r} is of type {found}; expected a tensor")
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.STRING:
            raise ModelError(f"{name}: constant {tensor.name!r} holds strings; expected numbers")


def default_opset(proto: onnx.ModelProto) -> int | None:
    """Version of the default ONNX domain that ``proto`` imports, or None."""
    return next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), None)
