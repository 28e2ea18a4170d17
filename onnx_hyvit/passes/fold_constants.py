"""Fold nodes whose inputs are all fixed.

Before
    y = Op(constant, ...)          Shape(x) of a fully static x
After
    y is an initializer
Conditions
    1. the operator is deterministic, of the default domain, and has no body;
    2. no output is a graph output (its name would be lost with its producer);
    3. the result is not larger than both 1 MiB and the node's inputs, so that Expand, Tile, ConstantOfShape or Range
       do not blow up the file.
The values are those of ONNX's reference implementation. Bodies of If/Loop/Scan and local functions are left alone;
outer constants that they read keep being visible, since they are replaced in the consumers.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.edit import constant_of, is_graph_output, names_used_by_subgraphs, replace_uses
from ..graph.evaluate import evaluate_node, is_evaluable
from ..graph.io import Model
from ..graph.pattern import NearMiss
from .infrastructure import GraphPass

SIZE_LIMIT = 1 << 20


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Fold in graph order, so that whole chains collapse in one run."""
    graph = model.graph
    graph.toposort()
    in_bodies = names_used_by_subgraphs(graph)
    count = 0
    for node in list(graph.nodes):
        if any(output.name in in_bodies or is_graph_output(graph, output) for output in node.outputs):
            continue
        values = _fold(node, model.opset)
        if values is None:
            continue
        for output, value in zip(list(node.outputs), values, strict=True):
            if output.outputs:
                replace_uses(graph, output, gs.Constant(output.name, np.asarray(value, order="C")))
        node.outputs.clear()
        count += 1
    return count


def _fold(node: gs.Node, opset: int) -> list[np.ndarray] | None:
    if not node.outputs or not is_evaluable(node):
        return None
    if node.op == "Constant":
        value = constant_of(node.outputs[0])
        return None if value is None or value.dtype.kind not in "biufc" else [value]
    if node.op == "Shape":
        return _static_shape(node)
    inputs = [None if tensor.is_empty() else constant_of(tensor) for tensor in node.inputs]
    if not inputs or any(v is None and not t.is_empty() for v, t in zip(inputs, node.inputs, strict=True)):
        return None
    limit = max([SIZE_LIMIT, *(value.nbytes for value in inputs if value is not None)])
    if _expected_bytes(node) > limit:
        return None
    values = evaluate_node(node, inputs, opset, max_bytes=2 * limit)  # it counts 8 bytes for every element
    if values is None or sum(value.nbytes for value in values) > limit:
        return None
    return values


def _static_shape(node: gs.Node) -> list[np.ndarray] | None:
    value = constant_of(node.inputs[0])
    shape = value.shape if value is not None else node.inputs[0].shape
    if shape is None:
        return None
    part = list(shape)[node.attrs.get("start", 0) : node.attrs.get("end", None)]
    if not all(isinstance(dim, int) and dim >= 0 for dim in part):
        return None
    return [np.array(part, np.int64)]


def _expected_bytes(node: gs.Node) -> int:
    total = 0
    for output in node.outputs:
        shape = output.shape
        if shape is not None and all(isinstance(dim, int) and dim >= 0 for dim in shape):
            total += int(np.prod(shape, dtype=np.int64)) * 4
    return total


PASS = GraphPass("fold_constants", apply)
