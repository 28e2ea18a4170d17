"""Interpolate a small map by one matrix product.

Before
    y = Resize(x [B, C, h, w])                        linear or cubic, y [B, C, H, W]
After
    y = Reshape(Reshape(x, [B, C, h * w]) @ K, [B, C, H, W])
Conditions
    1. mode linear or cubic without antialias: each output is a fixed weighted sum of inputs, and column j of K
       [h * w, H * W] holds the weights of output j;
    2. x is float32 of rank 4, h, w, H and W are known, batch and channels keep their sizes;
    3. h * w <= 64: the general kernel takes about 1.9 ns per output, the product 0.02 ns per weight of it, and as
       int8 half of that;
    4. no region of interest, no axes; scales or sizes are fixed.
K is what the operator makes of the identity matrix, so every coordinate mode is covered.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ...graph.edit import (
    add_node,
    constant_of,
    dim_of,
    has_input,
    new_constant,
    new_variable,
    rank_of,
    take_over_output,
)
from ...graph.evaluate import evaluate_node
from ...graph.io import Model
from ...graph.pattern import NearMiss
from ..infrastructure import GraphPass

MOST_POSITIONS = 64
SCALES, SIZES = 2, 3


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Rewrite every interpolation of a small map."""
    count = 0
    for node in [node for node in model.graph.nodes if node.op == "Resize"]:
        found = _interpolation(node, model.opset)
        if isinstance(found, str):
            near_misses.append(NearMiss(found, node.name))
            continue
        _rewrite(model.graph, node, found)
        count += 1
    return count


def _interpolation(node: gs.Node, opset: int) -> np.ndarray | str:
    """The matrix K, or why there is none."""
    source, output = node.inputs[0], node.outputs[0]
    if node.attrs.get("mode", "nearest") not in ("linear", "cubic") or node.attrs.get("antialias", 0):
        return "copies or smooths, does not interpolate"
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize" or node.attrs.get("axes"):
        return "has a region of interest or axes"
    if rank_of(source) != 4 or source.dtype != np.float32:
        return "its input is not a float32 map"
    before = tuple(dim_of(source, axis) for axis in (2, 3))
    after = tuple(dim_of(output, axis) for axis in (2, 3))
    if None in before or None in after or not 0 < before[0] * before[1] <= MOST_POSITIONS:  # type: ignore[operator]
        return f"its map is unknown or has more than {MOST_POSITIONS} positions"
    return _matrix(node, before, after, opset)  # type: ignore[arg-type]


def _matrix(node: gs.Node, before: tuple[int, int], after: tuple[int, int], opset: int) -> np.ndarray | str:
    positions = before[0] * before[1]
    inputs: list[np.ndarray | None] = [np.eye(positions, dtype=np.float32).reshape(positions, 1, *before), None]
    if has_input(node, SIZES):
        sizes = constant_of(node.inputs[SIZES])
        if sizes is None or sizes.size != 4 or not _keeps_channels(node, sizes):
            return "its sizes are not fixed, or change batch or channels"
        inputs += [None, np.array([positions, 1, *after], np.int64)]
    else:
        scales = constant_of(node.inputs[SCALES]) if has_input(node, SCALES) else None
        if scales is None or scales.size != 4 or (scales[:2] != 1).any():
            return "its scales are not fixed, or change batch or channels"
        inputs += [scales]
    results = evaluate_node(node, inputs, opset)
    if results is None or results[0].shape != (positions, 1, *after):
        return "the reference implementation cannot compute its weights"
    return results[0].reshape(positions, after[0] * after[1]).astype(np.float32)


def _keeps_channels(node: gs.Node, sizes: np.ndarray) -> bool:
    return all(dim_of(node.inputs[0], axis) == int(sizes[axis]) for axis in (0, 1))


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
