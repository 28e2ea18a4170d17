"""Fold a product by a positive number into the scale of a DequantizeLinear.

Before
    DequantizeLinear(codes; scale, zero_point) -> Mul(c) [-> QuantizeLinear -> DequantizeLinear]
After
    DequantizeLinear(codes; c * scale, zero_point)
Conditions
    1. c is one fixed number above 0 and below infinity, and the codes have one scale;
    2. the second pair, when there is one, is the only reader of the product; no codes are clipped between;
    3. the product absorbed no Relu or Clip: where zero is the lowest code, the second Q does its work.
One node and one rounding less: the codes stay, only what they stand for changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.edit import (
    add_node,
    constant_of,
    is_graph_output,
    new_constant,
    only_consumer_of,
    producer_of,
    scalar_of,
    take_over_output,
)
from ..numerics import QParams
from ..placement import Plan


def fold_scales(graph: gs.Graph, plan: Plan) -> int:
    """Fold every such product in ``graph``, which is edited in place; returns how many."""
    products = [node for node in graph.nodes if node.op == "Mul" and not node.domain]
    return sum(_fold(graph, node) for node in products if node.name not in plan.absorbed.values())


def product_scales(graph: gs.Graph, plan: Plan, scales: Mapping[str, QParams]) -> dict[str, QParams]:
    """Scales of activations once products are folded: that of a product follows from its factor.

    What is derived from an activation's scale (that of a bias, by a layer that reads the product) must know that.

    Args:
        graph: The float graph.
        plan: Its plan.
        scales: Scales of all activations of the plan.
    """
    found, on_codes = dict(scales), plan.on_codes
    for node in graph.nodes:
        if node.op != "Mul" or node.domain or node.name not in on_codes or node.name in plan.absorbed.values():
            continue
        for source, other in (node.inputs, node.inputs[::-1]):
            factor, result = _number(other), node.outputs[0].name
            if source.name not in found or result not in found or factor is None or not 0 < factor < np.inf:
                continue
            before, spec = found[source.name], found[result].spec
            if before.spec == spec and spec.axis is None and spec.is_full_container:
                product = replace(before, scale=np.array(before.scale * np.float32(factor), before.scale.dtype))
                found |= {name: product for name in found if plan.source_of(name) == plan.source_of(result)}
            break
    return found


def _fold(graph: gs.Graph, node: gs.Node) -> int:
    for source, other in (node.inputs, node.inputs[::-1]):
        factor, dequantize = _number(other), producer_of(source)
        if dequantize is None or dequantize.op != "DequantizeLinear" or factor is None or not 0 < factor < np.inf:
            continue
        scale = constant_of(dequantize.inputs[1])
        if scale is None or scale.ndim or constant_of(dequantize.inputs[0]) is not None:
            continue
        new_scale = new_constant(graph, f"{node.name}_scale", np.array(scale * np.float32(factor), scale.dtype))
        inputs = [dequantize.inputs[0], new_scale, *dequantize.inputs[2:]]
        folded = add_node(graph, "DequantizeLinear", inputs, [], stem=f"{node.name}_DequantizeLinear")
        take_over_output(folded, _last(graph, node))
        return 1
    return 0


def _number(tensor: gs.Tensor) -> float | None:
    """Value of a fixed tensor of one element and rank 0 or 1; it may be stored as codes behind a DequantizeLinear."""
    node = producer_of(tensor)
    if node is None or node.op != "DequantizeLinear":
        value = constant_of(tensor)
        return scalar_of(tensor) if value is not None and value.ndim <= 1 else None
    codes = constant_of(node.inputs[0])
    parts = [scalar_of(operand) for operand in node.inputs]
    if codes is None or codes.ndim > 1 or any(part is None for part in parts):
        return None
    code, scale, zero_point = (*(part or 0.0 for part in parts), 0.0)[:3]
    return (code - zero_point) * scale


def _last(graph: gs.Graph, node: gs.Node) -> gs.Tensor:
    """The product, or what a Q/DQ pair behind it makes of it."""
    product = node.outputs[0]
    quantize = only_consumer_of(graph, product)
    if quantize is None or quantize.op != "QuantizeLinear" or is_graph_output(graph, quantize.outputs[0]):
        return product
    dequantize = only_consumer_of(graph, quantize.outputs[0])
    return product if dequantize is None or dequantize.op != "DequantizeLinear" else dequantize.outputs[0]
