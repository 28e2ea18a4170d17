"""Spell SiLU as Sigmoid and Mul, the form that quantizes to two int8 kernels.

Before
    Swish(x; alpha) (opset 24)        x / (1 + exp(-x))
After
    x * Sigmoid(alpha * x)            x * Sigmoid(x)
Conditions
    1. for the second form nobody else reads an inner tensor (closed).
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.edit import add_node, new_constant, new_variable, take_over_output
from ..graph.io import Model
from ..graph.pattern import NearMiss
from ..graph.recognise.activations import iter_activations
from .infrastructure import GraphPass


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Rewrite every SiLU that is not already Sigmoid and Mul."""
    graph = model.graph
    count = 0
    for node in [node for node in graph.nodes if node.op == "Swish" and node.domain in (None, "", "ai.onnx")]:
        _spell(graph, node.name, node.inputs[0], node.outputs[0], float(node.attrs.get("alpha", 1.0)))
        count += 1
    for _, match in list(iter_activations(graph, ("silu",))):
        if match.root.op == "Div":
            _spell(graph, match.root.name, match.tensor("x"), match.output, 1.0)
            count += 1
    return count


def _spell(graph: gs.Graph, stem: str, x: gs.Tensor, output: gs.Tensor, alpha: float) -> None:
    gate = x
    if alpha != 1.0:
        factor = new_constant(graph, f"{stem}_alpha", np.array(alpha, x.dtype or np.float32))
        gate = add_node(graph, "Mul", [x, factor], stem=f"{stem}_scaled").outputs[0]
        gate.shape = x.shape
    sigmoid = add_node(graph, "Sigmoid", [gate], stem=f"{stem}_sigmoid")
    sigmoid.outputs[0].shape = x.shape
    node = add_node(graph, "Mul", [x, sigmoid.outputs[0]], [new_variable(graph, f"{stem}_silu")], stem=f"{stem}_silu")
    take_over_output(node, output)


PASS = GraphPass("canonicalise_silu", apply)
