"""Parameters and multiply-accumulate operations (MACs) of nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

import onnx_graphsurgeon as gs

Shapes = Mapping[str, tuple[int, ...]]


def count_macs(node: gs.Node, shapes: Shapes) -> int:
    """Multiply-accumulate operations of one node, batch included.

    Counted are convolutions, matrix products (with a fixed or a computed right side), Einsum and the fused attention
    operators; everything else counts 0.

    Args:
        node: A node of the main graph.
        shapes: Concrete shapes of its tensors.

    Returns:
        The count; 0 where a shape is missing.
    """
    counter = _COUNTERS.get(node.op)
    if counter is None or not node.outputs or any(t.name and t.name not in shapes for t in node.inputs[:3]):
        return 0
    if node.outputs[0].name not in shapes:
        return 0
    return counter(node, [shapes.get(tensor.name, ()) for tensor in node.inputs], shapes[node.outputs[0].name])


def _conv(node: gs.Node, inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> int:
    return prod(output) * prod(inputs[1][1:])


def _conv_transpose(node: gs.Node, inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> int:
    return prod(inputs[0]) * prod(inputs[1][1:])


def _gemm(node: gs.Node, inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> int:
    return prod(output) * inputs[0][0 if node.attrs.get("transA", 0) else 1]


def _matmul(node: gs.Node, inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> int:
    return prod(output) * (inputs[0][-2] if node.attrs.get("transA", 0) else inputs[0][-1])


def _einsum(node: gs.Node, inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> int:
    equation = str(node.attrs.get("equation", "")).replace(" ", "")
    if "." in equation or len(inputs) < 2:
        return 0
    terms = equation.split("->")[0].split(",")
    lengths: dict[str, int] = {}
    for term, shape in zip(terms, inputs, strict=True):
        lengths.update(zip(term, shape, strict=True))
    return prod(lengths.values())


def _attention(node: gs.Node, inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> int:
    if len(inputs) < 3 or len(inputs[0]) < 3 or not inputs[1] or not inputs[2]:
        return 0
    keys = inputs[1][-2]
    return prod(inputs[0]) * keys + prod(output) * keys


_COUNTERS = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "FusedMatMul": _matmul,
    "Einsum": _einsum,
    "Attention": _attention,
    "MultiHeadAttention": _attention,
}


def count_params(nodes: Iterable[gs.Node], counted: set[str]) -> int:
    """Elements of the floating-point initializers that ``nodes`` read.

    Args:
        nodes: Nodes of one block.
        counted: Names of initializers that are already counted; extended by those found here.
    """
    total = 0
    for node in nodes:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant) and tensor.name not in counted:
                counted.add(tensor.name)
                if tensor.dtype is not None and getattr(tensor.dtype, "kind", "f") == "f":
                    total += prod(tensor.shape)
    return total
