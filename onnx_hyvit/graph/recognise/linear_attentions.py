"""Attentions without a matrix of weights for pairs of tokens: separable and ReLU linear attention."""

from __future__ import annotations

from collections.abc import Callable, Set

import onnx_graphsurgeon as gs

from ..edit import producer_of
from .products import LAYOUT, PASSING, is_product
from .results import Attention

POSITIVE = frozenset({"Relu", "Elu", "Exp", "Softplus", "Clip"})


def find_separable(softmax: gs.Node) -> Attention | None:
    """MobileViTv2, around its softmax: ``sum_tokens(key * softmax(score)) * relu(value)``."""
    for weighted in softmax.outputs[0].outputs:
        if weighted.op != "Mul" or not weighted.outputs[0].outputs:
            continue
        total = weighted.outputs[0].outputs[0]
        if total.op not in ("ReduceSum", "ReduceMean"):
            continue
        nodes, tensor = [softmax, weighted, total], total.outputs[0]
        for _ in range(4):
            user = tensor.outputs[0] if len(tensor.outputs) == 1 else None
            if user is None or user.op not in PASSING or user.inputs[0] is not tensor:
                break
            nodes.append(user)
            tensor = user.outputs[0]
        last = next((user for user in tensor.outputs if user.op == "Mul"), None)
        if last is None:
            continue
        key = next(operand for operand in weighted.inputs if operand is not softmax.outputs[0])
        value = next(operand for operand in last.inputs if operand is not tensor)
        names = tuple(node.name for node in (*nodes, last))
        query, probabilities, output = softmax.inputs[0].name, softmax.outputs[0].name, last.outputs[0].name
        return Attention("separable", names, query, key.name, value.name, output, probabilities, bias=None)
    return None


def find_relu_linear(graph: gs.Graph, taken: Set[str]) -> list[Attention]:
    """EfficientViT: ``q (k^T v)`` with positive q and k, divided by ``q (k^T 1)``.

    Args:
        graph: Graph to search.
        taken: Names of nodes that are part of other attentions.
    """
    found = []
    for node in graph.nodes:
        if not is_product(node) or node.name in taken:
            continue
        for index in (0, 1):
            path, inner = _layout_back(node.inputs[index], is_product, 5)
            if inner is None or inner.name in taken:
                continue
            query = node.inputs[1 - index]
            sides = [_layout_back(tensor, lambda n: n.op in POSITIVE, 6)[1] for tensor in (query, *inner.inputs)]
            if sides[0] is None or (sides[1] is None and sides[2] is None):
                continue
            key, value = inner.inputs if sides[1] is not None else reversed(inner.inputs)
            nodes, output = _normaliser(node)
            names = tuple(member.name for member in (inner, *path, node, *nodes))
            kind, total = "relu_linear", output.name
            found.append(Attention(kind, names, query.name, key.name, value.name, total, node.outputs[0].name))
            break
    return found


def _layout_back(
    tensor: gs.Tensor, accepts: Callable[[gs.Node], bool], depth: int
) -> tuple[list[gs.Node], gs.Node | None]:
    path: list[gs.Node] = []
    for _ in range(depth):
        node = producer_of(tensor)
        if node is None:
            return path, None
        if accepts(node):
            return path, node
        if node.op not in LAYOUT:
            return path, None
        path.append(node)
        tensor = node.inputs[0]
    return path, None


def _normaliser(product: gs.Node) -> tuple[list[gs.Node], gs.Tensor]:
    """Slices and Div that follow the product, and the tensor after the Div."""
    reached: dict[int, gs.Node] = {}
    frontier, division = [product], None
    for _ in range(5):
        users = [user for node in frontier for output in node.outputs for user in output.outputs]
        division = next((user for user in users if user.op == "Div"), None)
        if division is not None:
            break
        frontier = [user for user in users if user.op in LAYOUT or user.op in ("Add", "Pad", "Reciprocal")]
        reached.update((id(node), node) for node in frontier)
    if division is None:
        return [], product.outputs[0]
    inside = [node for node in reached.values() if _feeds(node, division, 4)]
    return [*inside, division], division.outputs[0]


def _feeds(node: gs.Node, target: gs.Node, depth: int) -> bool:
    if node is target:
        return True
    return depth > 0 and any(_feeds(user, target, depth - 1) for output in node.outputs for user in output.outputs)
