"""Interpolate a small map by one matrix product.

Before
    y = Resize(x [B, C, h, w])                        linear or cubic, y [B, C, H, W]
After
    y = Reshape(Reshape(x, [B, C, h * w]) @ K, [B, C, H, W])
Conditions
    1. mode linear or cubic: each output is a fixed weighted sum of inputs, and column j of K [h * w, H * W] holds the
       weights of output j;
    2. x is float32 of rank 4, h, w, H and W are known, batch and channels keep their sizes;
    3. h * w <= 64: the general kernel takes about 1.9 ns per output, the product 0.02 ns per weight of it, and as
       int8 half of that;
    4. no region of interest, no axes but the two sides; scales or sizes are fixed.
K is the Kronecker product of the weights of rows and of columns.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ...graph.edit import add_node, dim_of, new_constant, new_variable, take_over_output
from ...graph.interpolation import matrices_of
from ...graph.io import Model
from ...graph.pattern import NearMiss
from ..infrastructure import GraphPass

MOST_POSITIONS = 64


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Rewrite every interpolation of a small map."""
    count = 0
    for node in [node for node in model.graph.nodes if node.op == "Resize"]:
        found = _matrix(node)
        if isinstance(found, str):
            near_misses.append(NearMiss(found, node.name))
            continue
        _rewrite(model.graph, node, found)
        count += 1
    return count


def _matrix(node: gs.Node) -> np.ndarray | str:
    """The matrix K, or why there is none."""
    found = matrices_of(node)
    if isinstance(found, str):
        return found
    rows, columns = found
    if rows.shape[1] * columns.shape[1] > MOST_POSITIONS:
        return f"its map has more than {MOST_POSITIONS} positions"
    return np.ascontiguousarray(np.kron(rows, columns).T)


def _rewrite(graph: gs.Graph, node: gs.Node, matrix: np.ndarray) -> None:
    source, output = node.inputs[0], node.outputs[0]
    leading, (positions, results) = list(source.shape[:2]), matrix.shape
    height, width = dim_of(output, 2), dim_of(output, 3)
    rows = new_variable(graph, f"{node.name}_positions", np.float32, [*leading, positions])
    target = new_constant(graph, f"{node.name}_into_positions", np.array([0, 0, -1], np.int64))
    add_node(graph, "Reshape", [source, target], [rows], stem=f"{node.name}_positions")
    product = new_variable(graph, f"{node.name}_interpolated", np.float32, [*leading, results])
    weights = new_constant(graph, f"{node.name}_weights", matrix)
    add_node(graph, "MatMul", [rows, weights], [product], stem=f"{node.name}_interpolate")
    target = new_constant(graph, f"{node.name}_into_map", np.array([0, 0, height, width], np.int64))
    back = gs.Node("Reshape", name=f"{node.name}_map", inputs=[product, target])
    graph.nodes.append(back)
    take_over_output(back, output)


PASS = GraphPass("resize_to_matmul", apply)
