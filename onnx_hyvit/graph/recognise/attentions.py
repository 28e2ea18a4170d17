"""Attentions: softmax attention in all its spellings, cross-covariance; the others are in ``linear_attentions``."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from ..channel_trace import trace_channels, varies_along
from ..edit import constant_of, producer_of, rank_of, scalar_of
from ..pattern import NearMiss
from .linear_attentions import find_relu_linear, find_separable
from .products import LAYOUT, PASSING, PRODUCTS, is_product
from .results import Attention

MIXING = frozenset({"Conv", "MatMul", "Einsum", "BatchNormalization", "Gemm"})
DEPTH = 14


@dataclass(frozen=True)
class _Chain:
    """A path between Softmax and a product."""

    product: gs.Node
    nodes: tuple[gs.Node, ...]
    scale: float | None = 1.0
    bias: str | None = None
    mixes: bool = False


def find_attentions(graph: gs.Graph, opset: int = 20, near_misses: list[NearMiss] | None = None) -> list[Attention]:
    """Every attention of the graph, in graph order.

    Args:
        graph: Graph to search.
        opset: Its opset, for following layouts.
        near_misses: Filled with Softmax nodes that have only one of the two products, and why.

    Returns:
        One ``Attention`` each; a Softmax of a classifier or of a gate is none.
    """
    position = {node.name: index for index, node in enumerate(graph.nodes)}
    found: list[Attention] = []
    for node in graph.nodes:
        if node.op in ("Attention", "MultiHeadAttention"):
            found.append(_operator(node))
        elif node.op == "Softmax" and node.domain in (None, "", "ai.onnx"):
            attention = _around_softmax(node, opset)
            if isinstance(attention, Attention):
                found.append(attention)
            elif attention is not None and near_misses is not None:
                near_misses.append(NearMiss(attention, node.name))
    taken = {name for attention in found for name in attention.nodes}
    found.extend(find_relu_linear(graph, taken))
    ordered = [
        replace(attention, nodes=tuple(sorted(set(attention.nodes), key=position.__getitem__))) for attention in found
    ]
    return sorted(ordered, key=lambda attention: position[attention.nodes[-1]])


def _operator(node: gs.Node) -> Attention:
    names = [tensor.name for tensor in node.inputs]
    heads = node.attrs.get("q_num_heads", node.attrs.get("num_heads"))
    query = node.inputs[0]
    if heads is None and rank_of(query) == 4 and isinstance(query.shape[1], int):
        heads = query.shape[1]
    bias = names[3] if len(names) > 3 and names[3] else None
    scale = node.attrs.get("scale")
    return Attention(
        "softmax",
        (node.name,),
        names[0],
        names[1] if len(names) > 1 else names[0],
        names[2] if len(names) > 2 else names[0],
        node.outputs[0].name,
        heads=None if heads is None else int(heads),
        scale=None if scale is None else float(scale),
        bias=bias,
    )


def _around_softmax(softmax: gs.Node, opset: int) -> Attention | str | None:
    logits = _back(softmax.inputs[0], DEPTH)
    context = _ahead(softmax.outputs[0], DEPTH)
    if logits is None:
        separable = find_separable(softmax)
        if separable is not None or context is None:
            return separable
        logits = _back(softmax.inputs[0], DEPTH, fixed_queries=True)
    if logits is None or context is None:
        if logits is not None:
            return f"the product {logits.product.name} feeds Softmax, but no product with values follows"
        assert context is not None
        return f"Softmax feeds the product {context.product.name}, but no product of two computed tensors feeds it"
    inner = (*logits.nodes, softmax, *context.nodes)
    weights = context.nodes[-2].outputs[0] if len(context.nodes) > 1 else softmax.outputs[0]
    first, second = context.product.inputs
    value = second if first is weights else first
    query, key = logits.product.inputs
    return Attention(
        _kind(logits.product, opset),
        tuple(node.name for node in inner),
        query.name,
        key.name,
        value.name,
        context.product.outputs[0].name,
        softmax.outputs[0].name,
        _heads(softmax),
        _total_scale(logits.scale, query, key),
        logits.bias,
        logits.mixes or context.mixes,
    )


def _back(tensor: gs.Tensor, depth: int, fixed_queries: bool = False) -> _Chain | None:
    """From Softmax's input back to the product of queries and keys; nodes in graph order, the product first.

    ``fixed_queries`` accepts the nearest product with one fixed side: learned tokens, whose queries were folded.
    """
    node = producer_of(tensor)
    if node is None or depth == 0:
        return None
    if is_product(node) or (fixed_queries and node.op in PRODUCTS and len(node.inputs) == 2):
        return _Chain(node, (node,))
    if node.op in ("Mul", "Div", "Add", "Sub", "Where"):
        return _back_through_binary(node, depth, fixed_queries)
    if node.op in PASSING:
        chain = _back(node.inputs[0], depth - 1, fixed_queries)
        return None if chain is None else replace(chain, nodes=(*chain.nodes, node))
    if node.op in MIXING:
        variable = next((operand for operand in node.inputs if constant_of(operand) is None), None)
        chain = None if variable is None else _back(variable, depth - 1)
        if chain is None or len(chain.nodes) > 6:
            return None
        return replace(chain, nodes=(*chain.nodes, node), mixes=True)
    return None


def _back_through_binary(node: gs.Node, depth: int, fixed_queries: bool) -> _Chain | None:
    operands = node.inputs[1:] if node.op == "Where" else node.inputs
    for operand in operands:
        chain = None if constant_of(operand) is not None else _back(operand, depth - 1, fixed_queries)
        if chain is None:
            continue
        other = next((tensor for tensor in operands if tensor is not operand), operand)
        chain = replace(chain, nodes=(*chain.nodes, node))
        if node.op in ("Mul", "Div"):
            number = scalar_of(other)
            factor = None if number is None else number if node.op == "Mul" else 1.0 / number if number else None
            known = factor is not None and chain.scale is not None
            return replace(chain, scale=chain.scale * factor if known else None)  # type: ignore[operator]
        return replace(chain, bias=other.name)
    return None


def _ahead(tensor: gs.Tensor, depth: int, mixes: bool = False) -> _Chain | None:
    """From Softmax's output to the product with the values; nodes in graph order, the product last."""
    if depth == 0:
        return None
    for node in tensor.outputs:
        if is_product(node):
            return _Chain(node, (node,), mixes=mixes)
    for node in tensor.outputs:
        mixing = node.op in MIXING
        fixed = node.op in ("Mul", "Add", "Div") and any(constant_of(operand) is not None for operand in node.inputs)
        if ((node.op in PASSING or mixing or fixed) and node.inputs[0] is tensor) or fixed:
            chain = _ahead(node.outputs[0], depth - 1, mixes or mixing)
            if chain is not None and not (mixing and len(chain.nodes) > 6):
                return replace(chain, nodes=(node, *chain.nodes))
    return None


def _heads(softmax: gs.Node) -> int | None:
    tensor = softmax.inputs[0]
    if rank_of(tensor) != 4:
        return None
    heads = tensor.shape[1]
    return heads if isinstance(heads, int) else None


def _total_scale(scale: float | None, query: gs.Tensor, key: gs.Tensor) -> float | None:
    """Scale of the logits times the fixed scalars on queries and keys."""
    for tensor in (query, key):
        for _ in range(6):
            node = producer_of(tensor)
            if node is None or scale is None:
                break
            if node.op in ("Mul", "Div"):
                number = scalar_of(node.inputs[1])
                index = 0
                if number is None and node.op == "Mul":
                    number, index = scalar_of(node.inputs[0]), 1
                if number is None or number == 0:
                    break
                scale *= number if node.op == "Mul" else 1.0 / number
                tensor = node.inputs[index]
            elif node.op in LAYOUT and len(node.outputs) == 1:
                tensor = node.inputs[0]
            else:
                break
    return scale


def _kind(product: gs.Node, opset: int) -> str:
    """Cross-covariance when the contracted axis holds positions instead of channels."""
    if product.op != "MatMul":
        return "softmax"
    votes = []
    for tensor, axis in ((product.inputs[0], -1), (product.inputs[1], -2)):
        trace = trace_channels(tensor, opset)
        if trace is not None and trace.channels.ndim >= 2 and trace.channels.shape[axis] > 1:
            votes.append(varies_along(trace.channels, axis))
    return "cross_covariance" if votes and not any(votes) else "softmax"
