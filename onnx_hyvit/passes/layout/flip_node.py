"""One node of a channels-first region, and the same computation with the channels last ([B, C, P, N] -> [B, P, N, C]).

``can_flip`` says whether it can be done, ``flip`` does it; both are tables over the operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_graphsurgeon as gs

from ...graph.edit import (
    add_node,
    constant_of,
    dim_of,
    has_input,
    ints_of,
    new_constant,
    only_consumer_of,
    producer_of,
    take_over_output,
)
from ...graph.elementwise import ARITHMETIC, UNARY
from ...graph.linear import weight_of

PERM = (0, 2, 3, 1)
AXIS = {0: 0, 1: 3, 2: 1, 3: 2}
Flipped = Mapping[int, gs.Tensor]


def whole_sample_norm(node: gs.Node | None) -> tuple[gs.Node, gs.Node, gs.Node] | None:
    """Reshape, InstanceNormalization and Reshape that normalize all elements of a sample alike, by any of the three.

    The first Reshape is [B, 1, -1], the second restores the shape, and the normalization scales by 1 and adds 0 (or
    any other single number): so the order of the elements does not matter.
    """
    if node is None or node.op not in ("Reshape", "InstanceNormalization"):
        return None
    before = producer_of(node.inputs[0])
    after = node.outputs[0].outputs[0] if len(node.outputs[0].outputs) == 1 else None
    if node.op == "InstanceNormalization":
        trio = (before, node, after)
    elif before is not None and before.op == "InstanceNormalization":
        trio = (producer_of(before.inputs[0]), before, node)
    else:
        trio = (node, after, after.outputs[0].outputs[0] if after and len(after.outputs[0].outputs) == 1 else None)
    first, norm, last = trio
    if first is None or norm is None or last is None or (first.op, norm.op, last.op) != _TRIO:
        return None
    shapes = [list(tensor.shape or []) for tensor in (first.inputs[0], norm.inputs[0], last.outputs[0])]
    if len(shapes[1]) != 3 or shapes[1][1] != 1 or not shapes[0] or shapes[0] != shapes[2]:
        return None
    same_batch = shapes[0][0] == shapes[1][0]
    scales = [constant_of(tensor) for tensor in norm.inputs[1:]]
    return (first, norm, last) if same_batch and all(s is not None and s.size == 1 for s in scales) else None


_TRIO = ("Reshape", "InstanceNormalization", "Reshape")


def can_flip(node: gs.Node) -> str | None:
    """Reason why ``node`` cannot work with the channels last, or None."""
    if node.domain not in (None, "", "ai.onnx"):
        return "not a plain ONNX operator"
    if node.op in UNARY:
        return None
    if node.op in ARITHMETIC:
        return None if all(_constant_fits(tensor) for tensor in node.inputs) else "a constant varies over pixels"
    check = _CHECKS.get(node.op)
    return f"{node.op} is not pixel-wise" if check is None else None if check(node) else f"this {node.op} is special"


def _constant_fits(tensor: gs.Tensor) -> bool:
    value = constant_of(tensor)
    return value is None or value.size == 1 or (value.ndim >= 3 and value.shape[-3] == value.size)


def _is_pixelwise(node: gs.Node) -> bool:
    weight = weight_of(node)
    if weight is None or weight.ndim != 4 or weight.shape[2:] != (1, 1) or int(node.attrs.get("group", 1)) != 1:
        return False
    plain = all(value == 1 for value in node.attrs.get("strides", [1])) and not any(node.attrs.get("pads", [0]))
    return plain and (not has_input(node, 2) or constant_of(node.inputs[2]) is not None)


def _is_fixed_split(node: gs.Node) -> bool:
    return not has_input(node, 1) or constant_of(node.inputs[1]) is not None


def _is_reduction(node: gs.Node) -> bool:
    axes = ints_of(node, "axes", 1)
    return axes is not None and len(axes) == 1 and bool(node.attrs.get("keepdims", 1))


def _is_broadcast(node: gs.Node) -> bool:
    """An Expand whose readers broadcast by themselves."""
    users = node.outputs[0].outputs
    return bool(users) and all(user.op in ARITHMETIC and _has_full_operand(user, node.outputs[0]) for user in users)


def _has_full_operand(user: gs.Node, expanded: gs.Tensor) -> bool:
    others = [tensor for tensor in user.inputs if tensor is not expanded]
    return bool(others) and others[0].shape is not None and list(others[0].shape) == list(user.outputs[0].shape or [])


_CHECKS: dict[str, Callable[[gs.Node], bool]] = {
    "Conv": _is_pixelwise,
    "Split": _is_fixed_split,
    "Softmax": lambda node: True,
    "ReduceSum": _is_reduction,
    "Expand": _is_broadcast,
}


def flip(graph: gs.Graph, node: gs.Node, flipped: Flipped) -> None:
    """Make ``node`` read and write the flipped tensors; ``flipped`` maps ``id`` of a tensor to its twin."""
    norm = whole_sample_norm(node)
    if norm is not None:
        _flip_norm(graph, norm, flipped)
    elif node.op in _FLIPS:
        _FLIPS[node.op](graph, node, flipped)
    else:
        node.inputs = [flipped.get(id(tensor)) or _channel_constant(graph, tensor) for tensor in node.inputs]
        node.outputs = [flipped[id(tensor)] for tensor in node.outputs]


def _channel_constant(graph: gs.Graph, tensor: gs.Tensor) -> gs.Tensor:
    value = constant_of(tensor)
    return tensor if value is None or value.size == 1 else new_constant(graph, f"{tensor.name}_last", value.reshape(-1))


def _flip_norm(graph: gs.Graph, norm: tuple[gs.Node, gs.Node, gs.Node], flipped: Flipped) -> None:
    first, middle, last = norm
    source, result = flipped[id(first.inputs[0])], flipped[id(last.outputs[0])]
    target = [dim if isinstance(dim, int) else -1 for dim in result.shape]
    flat = add_node(graph, "Reshape", [source, first.inputs[1]], stem=f"{first.name}_nhwc").outputs[0]
    flat.shape = list(middle.inputs[0].shape)
    value = add_node(
        graph, "InstanceNormalization", [flat, *middle.inputs[1:]], stem=f"{middle.name}_nhwc", attrs=dict(middle.attrs)
    ).outputs[0]
    value.shape = list(flat.shape)
    shape = new_constant(graph, f"{last.name}_shape", np.array(target, np.int64))
    add_node(graph, "Reshape", [value, shape], [result], stem=f"{last.name}_nhwc")


def _flip_conv(graph: gs.Graph, node: gs.Node, flipped: Flipped) -> None:
    weight = weight_of(node)
    assert weight is not None
    matrix = new_constant(graph, f"{node.name}_matrix", weight[:, :, 0, 0].T)
    result = flipped[id(node.outputs[0])]
    last = add_node(graph, "MatMul", [flipped[id(node.inputs[0])], matrix], stem=f"{node.name}_matmul")
    if has_input(node, 2):
        last.outputs[0].shape = list(result.shape)
        last = add_node(graph, "Add", [last.outputs[0], node.inputs[2]], stem=f"{node.name}_bias")
    take_over_output(last, result)


def _flip_axis(graph: gs.Graph, node: gs.Node, flipped: Flipped) -> None:
    node.attrs["axis"] = AXIS[int(node.attrs.get("axis", -1 if node.op == "Softmax" else 0)) % 4]
    node.inputs = [flipped.get(id(tensor), tensor) for tensor in node.inputs]
    node.outputs = [flipped[id(tensor)] for tensor in node.outputs]


def _flip_softmax(graph: gs.Graph, node: gs.Node, flipped: Flipped) -> None:
    """Over the pixels of a single channel: [B, P, N, 1] is normalized as [B, P, 1, N], whose last axis is fast."""
    axis, length = int(node.attrs.get("axis", -1)) % 4, dim_of(node.inputs[0], 3)
    if axis != 3 or dim_of(node.inputs[0], 1) != 1 or length is None:
        _flip_axis(graph, node, flipped)
        return
    row = _reshaped(graph, flipped[id(node.inputs[0])], 1, length)
    value = add_node(graph, "Softmax", [row], stem=f"{node.name}_row", attrs={"axis": -1}).outputs[0]
    value.shape = list(row.shape)
    column = _reshaped(graph, value, length, 1)
    take_over_output(column.inputs[0], flipped[id(node.outputs[0])])


def _reshaped(graph: gs.Graph, tensor: gs.Tensor, rows: int, columns: int) -> gs.Tensor:
    shape = new_constant(graph, "matrix_shape", np.array([0, 0, rows, columns], np.int64))
    result = add_node(graph, "Reshape", [tensor, shape], stem="as_matrix").outputs[0]
    result.shape = [*tensor.shape[:2], rows, columns]
    return result


def _flip_reduce(graph: gs.Graph, node: gs.Node, flipped: Flipped) -> None:
    """The sum over pixels of ``k * s``, one channel in ``s``, is the product of the row ``s`` and the matrix ``k``."""
    axes = ints_of(node, "axes", 1)
    assert axes is not None
    axis, result = AXIS[axes[0] % 4], flipped[id(node.outputs[0])]
    product = producer_of(node.inputs[0]) or producer_of(flipped[id(node.inputs[0])])
    operands = [] if product is None or product.op != "Mul" else [_twin(tensor, flipped) for tensor in product.inputs]
    weights = next((t for t in operands if t is not None and dim_of(t, 3) == 1), None)
    values = next((t for t in operands if t is not None and t is not weights), None)
    length = None if values is None else dim_of(values, 2)
    alone = only_consumer_of(graph, node.inputs[0]) is node
    if axis == 2 and weights is not None and values is not None and length is not None and alone:
        row = _reshaped(graph, weights, 1, length)
        add_node(graph, "MatMul", [row, values], [result], stem=f"{node.name}_matmul")
        return
    reduce_axes = new_constant(graph, f"{node.name}_axes", np.array([axis], np.int64))
    inputs = [flipped[id(node.inputs[0])], reduce_axes]
    add_node(graph, "ReduceSum", inputs, [result], stem=f"{node.name}_nhwc", attrs={"keepdims": 1})


def _twin(tensor: gs.Tensor, flipped: Flipped) -> gs.Tensor | None:
    """The flipped form of ``tensor``, which may be flipped already."""
    if id(tensor) in flipped:
        return flipped[id(tensor)]
    return tensor if any(tensor is other for other in flipped.values()) else None


def _flip_expand(graph: gs.Graph, node: gs.Node, flipped: Flipped) -> None:
    """Dropped: its readers, which all broadcast, take the input."""
    source = flipped[id(node.inputs[0])]
    for tensor in (node.outputs[0], flipped[id(node.outputs[0])]):
        for user in list(tensor.outputs):
            user.inputs = [source if given is tensor else given for given in user.inputs]


_FLIPS: dict[str, Callable[[gs.Graph, gs.Node, Flipped], None]] = {
    "Conv": _flip_conv,
    "Split": _flip_axis,
    "Softmax": _flip_softmax,
    "ReduceSum": _flip_reduce,
    "Expand": _flip_expand,
}
