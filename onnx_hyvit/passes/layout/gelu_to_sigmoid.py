"""Approximate GELU by a scaled sigmoid, which has int8 kernels.

Before
    y = Gelu(x)
After
    y = x * Sigmoid(c * x)
Conditions
    none on the graph, but that the values are float32; not exact (with c = 1.702 the largest error is 0.0203, near
    x = +-2.2), so it runs only where accuracy allows it, see ``onnx_hyvit.gelus``.
The factor costs nothing in int8: it goes into the scale of a second DequantizeLinear of the codes of x, so GELU is
QLinearSigmoid and QLinearMul instead of DequantizeLinear, float Gelu and QuantizeLinear.
Source: Hendrycks and Gimpel, Gaussian Error Linear Units, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from ...graph.edit import add_node, new_constant, new_variable, take_over_output
from ...graph.io import Model
from ...graph.pattern import NearMiss
from ..infrastructure import GraphPass

FACTOR = 1.702
FLOAT = np.dtype(np.float32)
STANDARD = (None, "", "ai.onnx")


def gelu_to_sigmoid(factors: Mapping[str, float] | None = None) -> GraphPass:
    """The pass for the Gelu nodes that ``factors`` names, each with its c; for all with 1.702 when None."""

    def apply(model: Model, near_misses: list[NearMiss]) -> int:
        gelus = [node for node in model.graph.nodes if node.op == "Gelu" and node.domain in STANDARD]
        wanted = [node for node in gelus if factors is None or node.name in factors]
        return sum(_replace(model.graph, node, (factors or {}).get(node.name, FACTOR), near_misses) for node in wanted)

    return GraphPass("gelu_to_sigmoid", apply)


def _replace(graph: gs.Graph, node: gs.Node, factor: float, near_misses: list[NearMiss]) -> bool:
    source, output = node.inputs[0], node.outputs[0]
    if FLOAT not in (source.dtype, output.dtype):
        near_misses.append(NearMiss("not known to be float32", node.name))
        return False
    number = new_constant(graph, f"{node.name}_factor", np.array(factor, np.float32))
    scaled, sigmoid = [
        new_variable(graph, f"{node.name}_{word}", FLOAT, output.shape) for word in ("scaled", "sigmoid")
    ]
    add_node(graph, "Mul", [source, number], [scaled], stem=f"{node.name}_scale")
    add_node(graph, "Sigmoid", [scaled], [sigmoid], stem=f"{node.name}_sigmoid")
    product = add_node(graph, "Mul", [source, sigmoid], [], stem=f"{node.name}_product")
    take_over_output(product, output)
    return True
