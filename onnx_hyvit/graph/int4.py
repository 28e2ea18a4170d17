"""INT4 initializers (ONNX opset 21): two codes in a byte, the first in the low half."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ..errors import ModelError

NARROW: dict[int, int] = {TensorProto.INT8: TensorProto.INT4, TensorProto.UINT8: TensorProto.UINT4}
WIDE: dict[int, int] = {narrow: wide for wide, narrow in NARROW.items()}


@dataclass(frozen=True)
class Packed:
    """Weights that are stored as INT4.

    Args:
        weights: Names of their initializers of codes, in graph order.
        bytes_before: Bytes of their codes in 8-bit containers.
        bytes_after: Bytes of their codes now.
    """

    weights: tuple[str, ...]
    bytes_before: int
    bytes_after: int


def is_int4(tensor: TensorProto) -> bool:
    """Whether the tensor holds 4-bit codes."""
    return tensor.data_type in WIDE


def pack_int4(proto: onnx.ModelProto, layers: Collection[str]) -> Packed:
    """Store the weight codes of ``layers`` as INT4 or UINT4, with their zero points; edits ``proto``.

    The codes stay what they are, so the graph computes the same values.

    Args:
        proto: A QDQ model of opset 21 or higher.
        layers: Names of nodes whose second input is dequantized from int8 or uint8 codes of 4 bits or fewer.

    Returns:
        What was packed.

    Raises:
        ModelError: A code does not fit into 4 bits.
    """
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    makers = {node.output[0]: node for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    found: dict[str, int] = {}
    for node in proto.graph.node:
        maker = makers.get(node.input[1]) if node.name in layers and len(node.input) > 1 else None
        if maker is None or maker.input[0] not in tensors:
            continue
        codes = tensors[maker.input[0]]
        if codes.data_type in NARROW:
            found[codes.name] = int(np.prod(codes.dims, dtype=np.int64))
        for name in (maker.input[0], *maker.input[2:3]):
            _narrow(tensors[name])
    return Packed(tuple(found), sum(found.values()), sum((size + 1) // 2 for size in found.values()))


def unpack_int4(proto: onnx.ModelProto) -> None:
    """Store every INT4 and UINT4 initializer in an 8-bit container; edits ``proto``."""
    for tensor in proto.graph.initializer:
        if is_int4(tensor):
            kind, codes = WIDE[tensor.data_type], int4_codes(tensor)
            tensor.CopyFrom(numpy_helper.from_array(codes, tensor.name))
            assert tensor.data_type == kind, tensor.name


def int4_codes(tensor: TensorProto) -> np.ndarray:
    """Codes of an INT4 or UINT4 tensor as int8 or uint8, in its shape."""
    size = int(np.prod(tensor.dims, dtype=np.int64))
    stored = np.frombuffer(tensor.raw_data, np.uint8) if tensor.raw_data else np.array(tensor.int32_data, np.uint8)
    codes = np.stack([stored & 15, stored >> 4], axis=1).reshape(-1)[:size]
    if tensor.data_type == TensorProto.INT4:
        codes = ((codes ^ 8).astype(np.int8) - 8).astype(np.int8)
    return codes.reshape(tuple(tensor.dims))


def _narrow(tensor: TensorProto) -> None:
    if tensor.data_type not in NARROW:
        return
    codes = numpy_helper.to_array(tensor)
    low, high = (-8, 7) if codes.dtype == np.int8 else (0, 15)
    if codes.size and not (low <= codes.min() and codes.max() <= high):
        raise ModelError(f"{tensor.name}: codes {codes.min()} to {codes.max()} do not fit into 4 bits")
    halves = np.zeros((codes.size + 1) // 2 * 2, np.uint8)
    halves[: codes.size] = codes.reshape(-1).view(np.uint8) & 15
    packed = TensorProto(name=tensor.name, data_type=NARROW[tensor.data_type], dims=tensor.dims)
    packed.raw_data = (halves[0::2] | halves[1::2] << 4).astype(np.uint8).tobytes()
    tensor.CopyFrom(packed)
