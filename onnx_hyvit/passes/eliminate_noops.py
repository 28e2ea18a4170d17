"""Remove nodes that return their input unchanged, and merge adjacent Transposes and Reshapes.

Before
    Identity, Dropout (inference), Cast to the same type, Reshape/Expand/Slice/Pad/Tile/Resize that change nothing,
    Concat/Sum/Max/Min of one tensor, Mul or Div by 1, Add or Sub of 0, Transpose(Transpose(x)), Reshape(Reshape(x))
After
    x, or one Transpose / Reshape
Conditions
    1. "unchanged" is proven from constants and static dimensions, never assumed;
    2. a neutral scalar may not raise the rank of the other operand;
    3. merged Reshapes: every 0 of the outer target is resolved, so that it does not copy from another tensor.
    4. the inner node has no other consumer, or the two cancel: otherwise nothing would be saved.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from ..graph.edit import (
    bypass,
    constant_of,
    dim_of,
    has_input,
    has_subgraph,
    ints_of,
    new_constant,
    only_consumer_of,
    producer_of,
    rank_of,
    same_shape,
    scalar_of,
    static_shape,
)
from ..graph.io import Model
from ..graph.pattern import NearMiss
from .infrastructure import GraphPass

FAR = 1 << 30
SHAPE_ONLY = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Repeat until nothing changes: a merge often makes the next node neutral."""
    total = 0
    while True:
        model.graph.toposort()
        count = sum(_visit(model, node) for node in list(model.graph.nodes))
        if not count:
            return total
        total += count
        model.graph.cleanup()


def _visit(model: Model, node: gs.Node) -> int:
    if node.domain not in (None, "", "ai.onnx") or has_subgraph(node) or not node.outputs or not node.inputs:
        return 0
    if any(tensor.outputs for tensor in node.outputs[1:]):
        return 0
    if node.op == "Reshape":
        _drop_allowzero(node)
    test = NEUTRAL.get(node.op)
    index = test(node) if test is not None else None
    if index is not None and bypass(model.graph, node, index):
        return 1
    if node.op == "Transpose":
        return _merge_transpose(model.graph, node)
    if node.op == "Reshape":
        return _merge_reshape(model.graph, node)
    return 0


def _drop_allowzero(node: gs.Node) -> None:
    """``allowzero`` says nothing about a target without zeros."""
    target = ints_of(node, "shape", 1)
    if target is not None and 0 not in target:
        node.attrs.pop("allowzero", None)


def _merge_transpose(graph: gs.Graph, node: gs.Node) -> int:
    inner = producer_of(node.inputs[0])
    if inner is None or inner.op != "Transpose" or "perm" not in inner.attrs or "perm" not in node.attrs:
        return 0
    merged = [int(inner.attrs["perm"][axis]) for axis in node.attrs["perm"]]
    if merged != sorted(merged) and only_consumer_of(graph, inner.outputs[0]) is None:
        return 0
    node.attrs["perm"] = merged
    node.inputs[0] = inner.inputs[0]
    return 1


def _merge_reshape(graph: gs.Graph, node: gs.Node) -> int:
    inner, target = producer_of(node.inputs[0]), constant_of(node.inputs[1])
    if inner is None or target is None or inner.op not in SHAPE_ONLY or node.attrs.get("allowzero", 0):
        return 0
    if only_consumer_of(graph, inner.outputs[0]) is None and not same_shape(inner.inputs[0], node.outputs[0]):
        return 0
    resolved = [int(dim) for dim in target.reshape(-1)]
    for axis, dim in enumerate(resolved):
        if dim == 0:
            known = _resolve_zero(inner, axis, resolved)
            if known is None:
                return 0
            resolved[axis] = known
    if resolved != [int(dim) for dim in target.reshape(-1)]:
        node.inputs[1] = new_constant(graph, f"{node.name}_shape", np.array(resolved, np.int64))
    node.inputs[0] = inner.inputs[0]
    return 1


def _resolve_zero(inner: gs.Node, axis: int, outer: list[int]) -> int | None:
    """What a 0 at ``axis`` of the outer target means in terms of the inner node's input."""
    dim = dim_of(inner.outputs[0], axis)
    if dim is not None and dim > 0:
        return dim
    target = ints_of(inner, "shape", 1) if inner.op == "Reshape" and not inner.attrs.get("allowzero", 0) else None
    if target is None or axis >= len(target):
        return None
    if target[axis] > 0 or target[axis] == 0:
        return target[axis]
    return -1 if -1 not in outer else None


def _identity(node: gs.Node) -> int | None:
    return 0


def _dropout(node: gs.Node) -> int | None:
    if not has_input(node, 2):
        return 0
    training = scalar_of(node.inputs[2])
    return 0 if training == 0 else None


def _cast(node: gs.Node) -> int | None:
    source, to = node.inputs[0].dtype, node.attrs.get("to")
    if source is None or to is None:
        return None
    try:
        target = onnx.helper.tensor_dtype_to_np_dtype(to) if isinstance(to, int) else np.dtype(to)
    except (TypeError, KeyError):
        return None
    return 0 if np.dtype(source) == target else None


def _transpose(node: gs.Node) -> int | None:
    perm = node.attrs.get("perm")
    return 0 if perm is not None and list(perm) == sorted(perm) else None


def _reshape(node: gs.Node) -> int | None:
    target, rank = ints_of(node, "shape", 1), rank_of(node.inputs[0])
    if target is None or rank != len(target) or (node.attrs.get("allowzero", 0) and 0 in target):
        return None
    same = [dim == 0 or dim == dim_of(node.inputs[0], axis) for axis, dim in enumerate(target)]
    free = [axis for axis, equal in enumerate(same) if not equal]
    return 0 if not free or (len(free) == 1 and target[free[0]] == -1) else None


def _flatten(node: gs.Node) -> int | None:
    return 0 if rank_of(node.inputs[0]) == 2 and node.attrs.get("axis", 1) in (1, -1) else None


def _expand(node: gs.Node) -> int | None:
    target, rank = ints_of(node, "shape", 1), rank_of(node.inputs[0])
    if target is None or rank is None or len(target) > rank:
        return None
    dims = [dim_of(node.inputs[0], axis - len(target)) for axis in range(len(target))]
    return 0 if all(want in (1, have) for want, have in zip(target, dims, strict=True)) else None


def _tile(node: gs.Node) -> int | None:
    repeats = ints_of(node, "repeats", 1)
    return 0 if repeats is not None and all(repeat == 1 for repeat in repeats) else None


def _slice(node: gs.Node) -> int | None:
    starts, ends = ints_of(node, "starts", 1), ints_of(node, "ends", 2)
    if starts is None or ends is None:
        return None
    axes = ints_of(node, "axes", 3)
    if axes is None:
        if has_input(node, 3):
            return None
        axes = tuple(range(len(starts)))
    steps = ints_of(node, "steps", 4) or (() if has_input(node, 4) else (1,) * len(starts))
    if len(steps) != len(starts):
        return None
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        dim = dim_of(node.inputs[0], axis)
        if start != 0 or step != 1 or not (end >= FAR or (dim is not None and end >= dim)):
            return None
    return 0


def _pad(node: gs.Node) -> int | None:
    pads = ints_of(node, "pads", 1)
    return 0 if pads is not None and not any(pads) else None


def _single(node: gs.Node) -> int | None:
    return 0 if len(node.inputs) == 1 else None


def _resize(node: gs.Node) -> int | None:
    before, after = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    exact = node.attrs.get("coordinate_transformation_mode", "half_pixel") in (
        "half_pixel",
        "asymmetric",
        "align_corners",
    )
    return 0 if before is not None and before == after and exact and node.attrs.get("mode") != "cubic" else None


def _neutral_scalar(value: float, commutes: bool) -> Callable[[gs.Node], int | None]:
    def test(node: gs.Node) -> int | None:
        for index in (0, 1) if commutes else (0,):
            other = constant_of(node.inputs[1 - index])
            if other is None or other.size == 0 or not np.all(other == value):
                continue
            if other.size == 1 and other.ndim <= (rank_of(node.inputs[index]) or 0):
                return index
            shape = static_shape(node.inputs[index])
            if shape is not None and np.broadcast_shapes(shape, other.shape) == shape:
                return index
        return None

    return test


NEUTRAL: dict[str, Callable[[gs.Node], int | None]] = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Expand": _expand,
    "Tile": _tile,
    "Slice": _slice,
    "Pad": _pad,
    "Resize": _resize,
    "Concat": _single,
    "Sum": _single,
    "Max": _single,
    "Min": _single,
    "Mul": _neutral_scalar(1.0, commutes=True),
    "Div": _neutral_scalar(1.0, commutes=False),
    "Add": _neutral_scalar(0.0, commutes=True),
    "Sub": _neutral_scalar(0.0, commutes=False),
}

PASS = GraphPass("eliminate_noops", apply)
