"""Approximate GELU by a scaled sigmoid, which has int8 kernels.

Before
    y = Gelu(x)
After
    y = x * Sigmoid(1.702 * x)
Conditions
    none on the graph; not exact (the largest error is 0.0203, near x = +-2.2), so it runs only when accuracy allows it.
The factor 1.702 costs nothing in int8: it goes into the scale of a second DequantizeLinear of the codes of x, so GELU
is QLinearSigmoid and QLinearMul instead of DequantizeLinear, float Gelu and QuantizeLinear.
Source: Hendrycks and Gimpel, Gaussian Error Linear Units, section 2.
"""

from __future__ import annotations

import numpy as np

from ...graph.edit import add_node, new_constant, new_variable, take_over_output
from ...graph.io import Model
from ...graph.pattern import NearMiss
from ..infrastructure import GraphPass

FACTOR = 1.702
FLOAT = np.dtype(np.float32)


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Replace every float32 Gelu."""
    graph = model.graph
    gelus = [node for node in graph.nodes if node.op == "Gelu" and node.domain in (None, "", "ai.onnx")]
    count = 0
    for node in gelus:
        source, output = node.inputs[0], node.outputs[0]
        if FLOAT not in (source.dtype, output.dtype):
            near_misses.append(NearMiss("not known to be float32", node.name))
            continue
        factor = new_constant(graph, f"{node.name}_factor", np.array(FACTOR, np.float32))
        tensors = [new_variable(graph, f"{node.name}_{word}", FLOAT, output.shape) for word in ("scaled", "sigmoid")]
        add_node(graph, "Mul", [source, factor], tensors[:1], stem=f"{node.name}_scale")
        add_node(graph, "Sigmoid", tensors[:1], tensors[1:], stem=f"{node.name}_sigmoid")
        product = add_node(graph, "Mul", [source, tensors[1]], [], stem=f"{node.name}_product")
        take_over_output(product, output)
        count += 1
    return count


PASS = GraphPass("gelu_to_sigmoid", apply)
