"""Give the stem convolution a number of input channels that int8 kernels like.

Before
    y = Conv(image [B, 3, H, W], W [M, 3, kh, kw])
After
    y = Conv(Pad(image, one channel of zeros), W padded by zeros)           4 input channels
Conditions
    1. the input is a graph input with a known number of channels, at most 4 and no multiple of 4;
    2. no groups, fixed weights, a kernel of at least 2x2 (its im2col is what gets faster);
    3. opset >= 13.
The products with the added channel are 0, in float and in int8, where the zero point of a padded weight is 0 as well.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ...graph.edit import add_node, dim_of, new_constant, new_variable, rank_of
from ...graph.io import Model
from ...graph.linear import weight_of
from ...graph.pattern import NearMiss
from ..infrastructure import GraphPass

MULTIPLE = 4


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Pad every convolution that reads a graph input; several readers share one Pad."""
    graph = model.graph
    padded: dict[int, gs.Tensor] = {}
    count = 0
    for node in list(graph.nodes):
        if model.opset < 13 or node.op != "Conv" or not any(node.inputs[0] is tensor for tensor in graph.inputs):
            continue
        weight, source = weight_of(node), node.inputs[0]
        missing = -(dim_of(source, 1) or 0) % MULTIPLE
        if weight is None or missing == 0 or weight.shape[1] >= MULTIPLE or int(node.attrs.get("group", 1)) != 1:
            continue
        if rank_of(source) != 4 or min(weight.shape[2:]) < 2:
            near_misses.append(NearMiss("a 1x1 kernel, or not two-dimensional", node.name))
            continue
        if id(source) not in padded:
            padded[id(source)] = _pad(graph, source, missing)
        node.inputs[0] = padded[id(source)]
        values = np.pad(weight, ((0, 0), (0, missing), (0, 0), (0, 0)))
        node.inputs[1] = new_constant(graph, f"{node.name}_weight_padded", values)
        count += 1
    return count


def _pad(graph: gs.Graph, source: gs.Tensor, missing: int) -> gs.Tensor:
    shape = [source.shape[0], source.shape[1] + missing, *source.shape[2:]]
    result = new_variable(graph, f"{source.name}_padded", source.dtype, shape)
    pads = new_constant(graph, f"{source.name}_pads", np.array([0, 0, 0, 0, 0, missing, 0, 0], np.int64))
    add_node(graph, "Pad", [source, pads], [result], stem=f"{source.name}_pad")
    return result


PASS = GraphPass("pad_stem", apply)
