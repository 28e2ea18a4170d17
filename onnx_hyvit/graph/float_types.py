"""Layers whose codes are of types that ONNX Runtime's CPU has no int8 kernels for: INT4 weights, 16-bit activations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from .int4 import is_int4
from .lookup import Lookup

WIDE_CODES = (TensorProto.INT16, TensorProto.UINT16)
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class FloatTypes:
    """What runs in float because of how it is stored.

    Args:
        layers: Names of layers that read INT4 weights or 16-bit activations.
        tensors: Names of initializers that they read through DequantizeLinear, and of those with 16-bit codes.
        pairs: Names of QuantizeLinear nodes that write 16-bit codes, or that stand in front of or behind such a layer.
    """

    layers: frozenset[str]
    tensors: frozenset[str]
    pairs: frozenset[str]


def find_float_types(graph: onnx.GraphProto) -> FloatTypes:
    """Find them in a QDQ graph."""
    view = _View(graph)
    layers, tensors, pairs = set(), set(), set()
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and view.is_wide(node):
            pairs.add(node.name)
        elif node.op_type == "DequantizeLinear" and view.is_wide(node) and node.input[0] in view.constants:
            tensors.add(node.input[0])
        if node.op_type not in LAYERS or not any(view.is_float_type(name) for name in node.input[:2]):
            continue
        layers.add(node.name)
        stored = [view.makers[name].input[0] for name in node.input if view.is_dequantized(name)]
        tensors.update(name for name in stored if name in view.constants)
        pairs.update(view.quantizer(name) for name in stored)
        pairs.update(view.quantizers(node.output[0]))
    return FloatTypes(frozenset(layers), frozenset(tensors), frozenset(pairs))


class _View(Lookup):
    """Tables of a graph, and what its codes are."""

    def is_wide(self, node: onnx.NodeProto) -> bool:
        """Whether a Q or DQ has 16-bit codes, by its zero point."""
        zero_point = self.constants.get(node.input[2]) if len(node.input) > 2 else None
        return zero_point is not None and zero_point.data_type in WIDE_CODES

    def is_dequantized(self, name: str) -> bool:
        """Whether a DequantizeLinear makes the tensor."""
        return name in self.makers and self.makers[name].op_type == "DequantizeLinear"

    def is_float_type(self, name: str) -> bool:
        """Whether the tensor is dequantized from INT4 or 16-bit codes."""
        if not self.is_dequantized(name):
            return False
        maker = self.makers[name]
        codes = self.constants.get(maker.input[0])
        return self.is_wide(maker) or (codes is not None and is_int4(codes))

    def quantizer(self, codes: str) -> str:
        """Name of the node that writes codes, in front of the Clip of codes narrower than their container."""
        maker = self.makers.get(codes)
        if maker is not None and maker.op_type == "Clip":
            maker = self.makers.get(maker.input[0])
        return "" if maker is None else maker.name

    def quantizers(self, name: str) -> Iterator[str]:
        """Names of the QuantizeLinear nodes behind a tensor, perhaps behind its bias and its Relu or Clip."""
        for reader in self.readers.get(name, []):
            if reader.op_type == "QuantizeLinear":
                yield reader.name
            elif reader.op_type in ("Add", "Relu", "Clip"):
                yield from self.quantizers(reader.output[0])
