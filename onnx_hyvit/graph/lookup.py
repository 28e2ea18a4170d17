"""Who makes and who reads a tensor of a graph, and which tensors are fixed."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from .int4 import int4_codes, is_int4
from .region import names_read_by_bodies


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
