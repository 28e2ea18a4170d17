"""Operators that attentions are made of."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from ..edit import constant_of

PRODUCTS = ("MatMul", "Einsum")
LAYOUT = frozenset(
    {"Identity", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Split", "Slice", "Gather"}
)
PASSING = frozenset(
    {"Identity", "Cast", "Dropout", "Reshape", "Transpose", "Clip", "Squeeze", "Unsqueeze", "Expand", "Flatten"}
)


def is_product(node: gs.Node) -> bool:
    """Whether ``node`` is a product of two computed tensors."""
    return node.op in PRODUCTS and len(node.inputs) == 2 and all(constant_of(tensor) is None for tensor in node.inputs)
