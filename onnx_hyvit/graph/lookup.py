"""Who makes and who reads a tensor of a graph, which tensors are fixed, and whose name another name continues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import onnx
from onnx import numpy_helper

from .int4 import int4_codes, is_int4
from .region import names_read_by_bodies

Value = TypeVar("Value")


class Lookup:
    """Tables of a graph, read once.

    Args:
        graph: Not changed; the tables hold its nodes and tensors.

    Attributes:
        constants: Initializers and the values of Constant nodes, by name.
        makers: Tensor -> the node that makes it.
        readers: Tensor -> the nodes that read it, each once, in graph order; bodies of If, Loop and Scan count.
        outputs: Names of the graph's outputs.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.makers: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        self.outputs = frozenset(value.name for value in graph.output)
        for node in graph.node:
            self.makers.update((name, node) for name in node.output if name)
            for name in {*node.input, *names_read_by_bodies(node)}:
                self.readers.setdefault(name, []).append(node)
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t

    def value(self, name: str) -> np.ndarray | None:
        """The constant of that name, INT4 as int8 and UINT4 as uint8; None for any other tensor."""
        tensor = self.constants.get(name)
        if tensor is None:
            return None
        return int4_codes(tensor) if is_int4(tensor) else numpy_helper.to_array(tensor)

    def operand(self, node: onnx.NodeProto, index: int) -> np.ndarray | None:
        """What ``node`` reads there, where that is a constant; None, too, where it reads nothing."""
        return self.value(node.input[index]) if len(node.input) > index else None


def by_longest_name(name: str, known: Mapping[str, Value]) -> Value | None:
    """What is known under ``name``, or under the longest known name that it continues after an underscore.

    Rewrites name a new node after the one that they make it from, with an ending: ``/MatMul_1_gemm`` is made from
    ``/MatMul_1``, not from ``/MatMul``, where the model has both.

    Args:
        name: Of a node or tensor.
        known: By name.

    Returns:
        None when no known name fits.
    """
    while name:
        if name in known:
            return known[name]
        name = name.rpartition("_")[0]
    return None
