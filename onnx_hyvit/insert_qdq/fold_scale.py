"""Fold a product by a positive number into the scale of a DequantizeLinear.

Before
    DequantizeLinear(codes; scale, zero_point) -> Mul(c) [-> QuantizeLinear -> DequantizeLinear]
After
    DequantizeLinear(codes; c * scale, zero_point)
Conditions
    1. c is one fixed number above 0 and below infinity, and the codes have one scale;
    2. the product absorbed no Relu or Clip: where zero is the lowest code, the second Q does its work;
    3. the second pair goes where the plan has the Mul on codes and both tensors have one scale and one container, all
       of which the product may use; any other pair stays behind the product, with the scale that it has.
One node and one rounding less: the codes stay, only what they stand for changes. What is folded is decided once, on the
float graph: scales that follow from that of a product (of a bias, of moved codes) must agree with the Q/DQ graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.edit import add_node, constant_of, new_constant, producer_of, scalar_of, take_over_output
from ..numerics import QParams
from ..placement import Plan


@dataclass(frozen=True)
class Product:
    """A Mul by a number that becomes part of a scale.

    Args:
        factor: The number.
        operand: Which input of the Mul is not the number.
        same_codes: Whether the codes that the Mul reads are those of its result, too, so that no pair is behind it.
    """

    factor: float
    operand: int
    same_codes: bool


def find_products(graph: gs.Graph, plan: Plan, scales: Mapping[str, QParams]) -> dict[str, Product]:
    """The products to fold, by the name of their Mul.

    Args:
        graph: The float graph.
        plan: Its plan.
        scales: Scales of all activations of the plan.
    """
    products: dict[str, Product] = {}
    on_codes, limited = plan.on_codes, set(plan.absorbed.values())
    for node in graph.nodes:
        if node.op != "Mul" or node.domain or node.name in limited:
            continue
        for operand, source in enumerate(node.inputs):
            factor, maker = _number(node.inputs[1 - operand]), producer_of(source)
            if factor is None or not 0 < factor < np.inf:
                continue
            made_by = "" if maker is None else maker.name
            if source.name in scales and (node.name in on_codes or made_by in on_codes):
                if source.name in plan.log_codes or scales[source.name].spec.axis is not None:
                    continue
                result = scales.get(node.outputs[0].name) if node.name in on_codes else None
                same = result is not None and _takes_codes(result, scales[source.name])
                products[node.name] = Product(factor, operand, same)
            elif made_by in products:
                products[node.name] = Product(factor, operand, same_codes=False)
    return products


def product_scales(
    graph: gs.Graph, products: Mapping[str, Product], plan: Plan, scales: Mapping[str, QParams]
) -> dict[str, QParams]:
    """Scales of activations once products are folded: that of a product on the same codes follows from its factor.

    Args:
        graph: The float graph.
        products: What ``find_products`` found in it.
        plan: Its plan.
        scales: Scales of all activations of the plan.
    """
    found = dict(scales)
    for node in graph.nodes:
        product = products.get(node.name)
        if product is None or not product.same_codes:
            continue
        before, result = found[node.inputs[product.operand].name], node.outputs[0].name
        scale = np.array(before.scale * np.float32(product.factor), before.scale.dtype)
        changed = replace(found[result], scale=scale, zero_point=before.zero_point)
        found |= {name: changed for name in found if plan.source_of(name) == plan.source_of(result)}
    return found


def fold_scales(graph: gs.Graph, products: Mapping[str, Product]) -> None:
    """Fold ``products``.

    Args:
        graph: The graph with Q/DQ pairs, edited in place.
        products: What ``find_products`` found in the float graph.
    """
    for node in [node for node in graph.nodes if node.name in products]:
        product = products[node.name]
        dequantize = node.inputs[product.operand].inputs[0]
        scale = dequantize.inputs[1].values
        new_scale = new_constant(graph, f"{node.name}_scale", np.array(scale * np.float32(product.factor), scale.dtype))
        inputs = [dequantize.inputs[0], new_scale, *dequantize.inputs[2:]]
        folded = add_node(graph, "DequantizeLinear", inputs, [], stem=f"{node.name}_DequantizeLinear")
        last = node.outputs[0]
        if product.same_codes:
            quantize = last.outputs[0]
            last = quantize.outputs[0].outputs[0].outputs[0]
        take_over_output(folded, last)


def _takes_codes(result: QParams, source: QParams) -> bool:
    """Whether all codes of ``source`` may be codes of ``result``, which has one scale."""
    spec = result.spec
    return spec.axis is None and spec.is_full_container and spec.dtype == source.spec.dtype


def _number(tensor: gs.Tensor) -> float | None:
    """Value of a fixed tensor of one element and rank 0 or 1."""
    value = constant_of(tensor)
    return scalar_of(tensor) if value is not None and value.ndim <= 1 else None
