"""Write decomposed layer normalization as one LayerNormalization node.

Before
    (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * gamma + beta        any spelling, see graph.recognise.layer_norm
After
    LayerNormalization(x, gamma, beta)                                      axes are the trailing ones
    Transpose(LayerNormalization(Transpose(x), gamma, beta))                axis 1 of [N, C, ...] (LayerNorm2d)
Conditions
    1. opset >= 17;
    2. all means run over the same axes, either the trailing ones or axis 1;
    3. gamma and beta are fixed and vary along the normalized axes only (an absent gamma is ones);
    4. no inner tensor but the mean is read from outside.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.edit import add_node, dim_of, new_constant, new_variable, rank_of, take_over_output
from ..graph.io import Model
from ..graph.pattern import NearMiss
from ..graph.recognise.layer_norm import LayerNormMatch, iter_layer_norms
from .infrastructure import GraphPass


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Rewrite every decomposed layer normalization over trailing axes or over channels."""
    graph = model.graph
    count = 0
    for found in list(iter_layer_norms(graph, near_misses)):
        reason = _refuse(found, model.opset)
        if reason is not None:
            near_misses.append(NearMiss(reason, found.match.root.name))
            continue
        if is_trailing(found.axes):
            _rewrite(graph, found, found.source, found.output)
        else:
            _rewrite_channels_first(graph, found)
        count += 1
    return count


def is_trailing(axes: tuple[int, ...]) -> bool:
    """Whether the (negative, sorted) axes are the last ones without a gap."""
    return axes == tuple(range(-len(axes), 0))


def _refuse(found: LayerNormMatch, opset: int) -> str | None:
    if opset < 17:
        return f"LayerNormalization needs opset 17, the model has {opset}"
    rank = rank_of(found.source)
    if not is_trailing(found.axes) and not (rank is not None and rank >= 3 and found.axes == (1 - rank,)):
        return f"layer normalization over axes {found.axes} is neither trailing nor over channels"
    if found.gamma is None and any(dim_of(found.source, axis) is None for axis in found.axes):
        return "layer normalization without scale over an axis of unknown size"
    return None


def _rewrite(graph: gs.Graph, found: LayerNormMatch, source: gs.Tensor, output: gs.Tensor) -> None:
    dtype = source.dtype or np.float32
    gamma = found.gamma
    if gamma is None:
        gamma = np.ones([dim_of(found.source, axis) or 1 for axis in found.axes])
    stem = found.match.root.name
    inputs = [source, new_constant(graph, f"{stem}_gamma", gamma.astype(dtype))]
    if found.beta is not None:
        inputs.append(new_constant(graph, f"{stem}_beta", found.beta.astype(dtype)))
    attrs = {"axis": -len(found.axes), "epsilon": float(found.eps)}
    node = add_node(graph, "LayerNormalization", inputs, [new_variable(graph, f"{stem}_ln")], stem=stem, attrs=attrs)
    take_over_output(node, output)


def _rewrite_channels_first(graph: gs.Graph, found: LayerNormMatch) -> None:
    rank = rank_of(found.source)
    assert rank is not None
    forth = [0, *range(2, rank), 1]
    back = [0, rank - 1, *range(1, rank - 1)]
    stem = found.match.root.name
    dims = list(found.source.shape)
    last = new_variable(graph, f"{stem}_last", dtype=found.source.dtype, shape=[dims[axis] for axis in forth])
    normed = new_variable(graph, f"{stem}_normed", dtype=found.source.dtype, shape=[dims[axis] for axis in forth])
    add_node(graph, "Transpose", [found.source], [last], stem=f"{stem}_to_last", attrs={"perm": forth})
    _rewrite(graph, found, last, normed)
    node = add_node(
        graph,
        "Transpose",
        [normed],
        [new_variable(graph, f"{stem}_first")],
        stem=f"{stem}_to_first",
        attrs={"perm": back},
    )
    take_over_output(node, found.output)


PASS = GraphPass("fuse_layer_norm", apply)
