"""Replace computed shapes by constants where that is exact for every size of the free dimensions.

Before
    Reshape(x, Concat(Mul(Gather(Shape(x), 0), 4), 64, ...))        also Expand, Slice, Resize, Tile, Split, Range ...
After
    Reshape(x, [-1, 64, ...]);  0 where a dimension is copied from the same axis
    any tensor of shape arithmetic without free dimensions becomes an initializer
    Reshape, Expand and Slice that provably change nothing disappear; Flatten before the last axis becomes Reshape
Conditions
    1. dimensions are numbers or products ``c * N * ...`` of free dimensions (graph.symbolic); anything else is unknown
       and blocks the rewrite;
    2. Reshape: at most one entry is neither a number nor a copy of the same axis; it becomes -1;
    3. Expand: entries that copy the input's own axis become 1; all others are numbers;
    4. Slice: an end that is the whole free axis becomes INT64_MAX;
    5. Resize (opset >= 18): sizes of axes that keep their size are dropped with the ``axes`` attribute.
Bodies of If/Loop/Scan are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.edit import (
    bypass,
    constant_of,
    has_input,
    has_subgraph,
    is_graph_output,
    new_constant,
    replace_uses,
)
from ..graph.io import Model
from ..graph.pattern import NearMiss
from ..graph.symbolic import Inferred, Monomial, infer
from ..graph.symbolic.values import is_numeric
from . import fold_constants, infer_shapes
from .infrastructure import GraphPass

FAR = np.iinfo(np.int64).max
ROUNDS = 8


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Alternate between symbolic and ONNX inference until nothing new is known."""
    total = 0
    for _ in range(ROUNDS):
        model.graph.cleanup().toposort()
        known = infer(model.graph, model.opset)
        count = sum(_visit(model, known, node) for node in list(model.graph.nodes))
        if count:
            count += fold_constants.apply(model, near_misses)
            model.graph.cleanup().toposort()
        _write_shapes(model.graph, known)
        total += count
        if not count or not infer_shapes.apply(model, near_misses):
            break
    _write_shapes(model.graph, infer(model.graph.toposort(), model.opset))
    _report(model.graph, near_misses)
    return total


def _visit(model: Model, known: Inferred, node: gs.Node) -> int:
    graph = model.graph
    if node.domain not in (None, "", "ai.onnx") or has_subgraph(node) or not node.outputs:
        return 0
    if _fix_output(graph, known, node):
        return 1
    if node.op in ("Reshape", "Expand", "Slice") and _changes_nothing(known, node) and bypass(graph, node):
        return 1
    if node.op in ("Reshape", "Expand") and constant_of(node.inputs[1]) is None:
        target = _reshape_target(known, node) if node.op == "Reshape" else _expand_target(known, node)
        if target is not None:
            node.attrs.pop("allowzero", None)
        return _set_input(graph, node, 1, target)
    if node.op == "Flatten":
        return _flatten_as_reshape(graph, known, node)
    if node.op == "Slice":
        return _fix_slice(graph, known, node)
    if node.op == "Resize":
        return _fix_resize(model, known, node)
    return 0


def _set_input(graph: gs.Graph, node: gs.Node, index: int, values: Sequence[int] | None) -> int:
    if values is None:
        return 0
    node.inputs[index] = new_constant(graph, f"{node.name}_{node.op.lower()}", np.array(values, np.int64))
    return 1


def _fix_output(graph: gs.Graph, known: Inferred, node: gs.Node) -> int:
    output = node.outputs[0]
    value = known.values.get(output.name)
    if value is None or not is_numeric(value) or not output.outputs or is_graph_output(graph, output):
        return 0
    dtype = np.int64 if node.op in ("Shape", "Size") else output.dtype
    if dtype is None or node.op == "Constant" or len(node.outputs) != 1:
        return 0
    replace_uses(graph, output, new_constant(graph, f"{output.name}_value", value.astype(dtype)))
    return 1


def _changes_nothing(known: Inferred, node: gs.Node) -> bool:
    before, after = known.shape(node.inputs[0]), known.shapes.get(node.outputs[0].name)
    return before is not None and None not in before and before == after and _forward(node)


def _forward(node: gs.Node) -> bool:
    """A Slice of the whole axis with a negative step reverses it."""
    if node.op != "Slice" or not has_input(node, 4):
        return True
    steps = constant_of(node.inputs[4])
    return steps is not None and bool(np.all(steps > 0))


def _reshape_target(known: Inferred, node: gs.Node) -> list[int] | None:
    value, shape = known.value(node.inputs[1]), known.shape(node.inputs[0])
    if value is None or (node.attrs.get("allowzero", 0) and 0 in value):
        return None
    wanted, resolved = list(value.reshape(-1)), known.shapes.get(node.outputs[0].name)
    if -1 in wanted and resolved is not None and len(resolved) == len(wanted):
        wanted = [there if dim == -1 else dim for dim, there in zip(wanted, resolved, strict=True)]
    target: list[int] = []
    for axis, dim in enumerate(wanted):
        copied = shape is not None and axis < len(shape) and dim is not None and dim == shape[axis]
        if isinstance(dim, int) and not isinstance(dim, bool):
            target.append(dim)
        elif copied and isinstance(dim, Monomial):
            target.append(0)
        else:
            target.append(-1)
    return target if target.count(-1) <= 1 else None


def _flatten_as_reshape(graph: gs.Graph, known: Inferred, node: gs.Node) -> int:
    """Flatten to rows of a fixed width, so that it merges with its neighbours."""
    shape = known.shapes.get(node.outputs[0].name)
    if node.attrs.get("axis", 1) in (0, 1) or shape is None or not isinstance(shape[1], int) or shape[1] == 0:
        return 0
    node.op = "Reshape"
    node.attrs.clear()
    node.inputs.append(new_constant(graph, f"{node.name}_shape", np.array([-1, shape[1]], np.int64)))
    return 1


def _expand_target(known: Inferred, node: gs.Node) -> list[int] | None:
    value, shape = known.value(node.inputs[1]), known.shape(node.inputs[0])
    if value is None or shape is None:
        return None
    wanted = list(value.reshape(-1))
    target: list[int] = []
    for index, dim in enumerate(wanted):
        axis = index - len(wanted)
        if isinstance(dim, int):
            target.append(dim)
        elif dim is not None and -axis <= len(shape) and shape[axis] == dim:
            target.append(1)
        else:
            return None
    return target


def _fix_slice(graph: gs.Graph, known: Inferred, node: gs.Node) -> int:
    if len(node.inputs) < 3 or constant_of(node.inputs[2]) is not None:
        return 0
    ends, shape = known.value(node.inputs[2]), known.shape(node.inputs[0])
    axes = constant_of(node.inputs[3]) if has_input(node, 3) else None
    if ends is None or shape is None or (has_input(node, 3) and axes is None) or not _forward(node):
        return 0
    flat = list(ends.reshape(-1))
    positions = range(len(flat)) if axes is None else [int(axis) for axis in axes.reshape(-1)]
    fixed: list[int] = []
    for dim, axis in zip(flat, positions, strict=True):
        if isinstance(dim, int):
            fixed.append(dim)
        elif dim is not None and dim == shape[axis]:
            fixed.append(int(FAR))
        else:
            return 0
    return _set_input(graph, node, 2, fixed)


def _fix_resize(model: Model, known: Inferred, node: gs.Node) -> int:
    if not has_input(node, 3) or constant_of(node.inputs[3]) is not None or model.opset < 18:
        return 0
    sizes, shape = known.value(node.inputs[3]), known.shape(node.inputs[0])
    plain = node.attrs.get("keep_aspect_ratio_policy", "stretch") == "stretch" and not has_input(node, 1)
    if sizes is None or shape is None or not plain:
        return 0
    given = node.attrs.get("axes")
    axes = list(range(len(shape))) if given is None else [int(axis) for axis in given]
    kept: list[tuple[int, int]] = []
    for axis, dim in zip(axes, sizes.reshape(-1), strict=True):
        if dim is not None and dim == shape[axis]:
            continue
        if not isinstance(dim, int):
            return 0
        kept.append((axis, dim))
    if not kept:
        return int(bypass(model.graph, node))
    node.attrs["axes"] = [axis for axis, _ in kept]
    return _set_input(model.graph, node, 3, [dim for _, dim in kept])


def _write_shapes(graph: gs.Graph, known: Inferred) -> None:
    """Keep what is known on the tensors, so that later passes see it."""
    declared = {tensor.name for tensor in [*graph.inputs, *graph.outputs]}
    for node in graph.nodes:
        for tensor in node.outputs:
            shape = known.shapes.get(tensor.name)
            if shape is None or tensor.name in declared or isinstance(tensor, gs.Constant):
                continue
            tensor.shape = [
                dim if isinstance(dim, int) else f"unk__{tensor.name}_{axis}" if dim is None else str(dim)
                for axis, dim in enumerate(shape)
            ]


def _report(graph: gs.Graph, near_misses: list[NearMiss]) -> None:
    for node in graph.nodes:
        if node.op in ("Reshape", "Expand") and len(node.inputs) > 1 and constant_of(node.inputs[1]) is None:
            near_misses.append(NearMiss(f"the target shape of {node.op} depends on several free dimensions", node.name))


PASS = GraphPass("simplify_shape_arithmetic", apply)
