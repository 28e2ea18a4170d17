"""Give each part of a split linear output its own operator with a part of the weights.

Before
    a, b, ... = Split(linear(x), axis=channels)             linear: Conv without groups, Gemm, MatMul (then Add of bias)
After
    a = linear_a(x);  b = linear_b(x);  ...                 with the rows of W and b that make each part
Conditions
    1. the weights and the bias are fixed, and the sizes of the parts are known;
    2. nobody else reads the output of linear, and it is no graph output;
    3. at most LIMIT parts, each used.
Each part is computed where it is needed: no copy, each part has its own scale in int8, and odd totals (1 + 2 C channels
of the separable attention) become sizes that the kernels like.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ...graph.edit import (
    add_node,
    constant_of,
    ints_of,
    is_graph_output,
    new_constant,
    only_consumer_of,
    rank_of,
    take_over_output,
)
from ...graph.io import Model
from ...graph.linear import has_fixed_bias, output_axis, weight_of
from ...graph.pattern import NearMiss
from ..infrastructure import GraphPass

LIMIT = 4


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Split every linear operator whose only reader is a Split of its channels."""
    graph = model.graph
    count = 0
    for node in list(graph.nodes):
        if node.op not in ("Conv", "Gemm", "MatMul") or weight_of(node) is None or not has_fixed_bias(node):
            continue
        add = _bias_add(graph, node)
        split = only_consumer_of(graph, (add or node).outputs[0])
        sizes = None if split is None or split.op != "Split" else _sizes(node, split)
        if split is None or sizes is None:
            continue
        unused = any(not tensor.outputs and not is_graph_output(graph, tensor) for tensor in split.outputs)
        if unused or int(node.attrs.get("group", 1)) != 1:
            near_misses.append(NearMiss("a part is unused, or the convolution has groups", node.name))
            continue
        _rewrite(graph, node, add, split, sizes)
        count += 1
    return count


def _bias_add(graph: gs.Graph, node: gs.Node) -> gs.Node | None:
    add = only_consumer_of(graph, node.outputs[0]) if node.op == "MatMul" else None
    if add is None or add.op != "Add":
        return None
    values = [constant_of(tensor) for tensor in add.inputs]
    fixed = next((value for value in values if value is not None), None)
    weight = weight_of(node)
    return add if fixed is not None and weight is not None and fixed.shape == weight.shape[1:] else None


def _sizes(node: gs.Node, split: gs.Node) -> list[int] | None:
    """Channels of each part, or None when ``split`` does not cut the channel axis into known parts."""
    rank, weight = rank_of(split.inputs[0]), weight_of(node)
    if rank is None or weight is None or not 1 < len(split.outputs) <= LIMIT:
        return None
    axis = int(split.attrs.get("axis", 0)) % rank
    if axis != (1 if node.op == "Conv" else rank - 1):
        return None
    total, parts = weight.shape[output_axis(node)], len(split.outputs)
    given = ints_of(split, "split", 1)
    sizes = list(given) if given is not None else [total // parts] * parts
    return sizes if sum(sizes) == total and all(sizes) else None


def _rewrite(graph: gs.Graph, node: gs.Node, add: gs.Node | None, split: gs.Node, sizes: list[int]) -> None:
    weight, axis = weight_of(node), output_axis(node)
    assert weight is not None
    bias_from = add if add is not None else node
    bias = next((value for value in map(constant_of, bias_from.inputs[0 if add else 2 :]) if value is not None), None)
    edges = np.cumsum(sizes)[:-1]
    weights = np.split(weight, edges, axis=axis)
    biases = [None] * len(sizes) if bias is None else np.split(np.broadcast_to(bias, (sum(sizes),)), edges)
    for index, (part, output) in enumerate(zip(weights, list(split.outputs), strict=True)):
        stem = f"{node.name}_part{index}"
        inputs = [node.inputs[0], new_constant(graph, f"{stem}_weight", part)]
        offset = biases[index]
        if offset is not None and add is None:
            inputs.append(new_constant(graph, f"{stem}_bias", offset))
        last = add_node(graph, node.op, inputs, stem=stem, attrs=dict(node.attrs))
        if offset is not None and add is not None:
            product = last.outputs[0]
            product.shape = None if output.shape is None else list(output.shape)
            last = add_node(
                graph, "Add", [product, new_constant(graph, f"{stem}_bias", offset)], stem=f"{stem}_bias_add"
            )
        take_over_output(last, output)


PASS = GraphPass("split_linear", apply)
