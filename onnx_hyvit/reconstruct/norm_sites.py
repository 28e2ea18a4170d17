"""LayerNorm reparametrisation (RepQ-ViT, arXiv 2212.08254, section 3.2): ranges per channel become one range, exactly.

Channel c of a LayerNormalization's output has scale ``s_c`` and zero point ``z_c``. With their means ``s`` and ``z``,
``r1 = s_c / s`` and ``r2 = z_c - z``, the affine becomes ``gamma / r1`` and ``(beta + s_c r2) / r1``, and the layers
behind take ``W r1`` and ``b - W (s_c r2)``. The float model computes the same; all channels fill one range.

Unlike ``gain_sites``, this passes through nodes between the two that move channels, if they end on the last axis. The
mean zero point is rounded, for ONNX has whole ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from ..graph import Model
from ..graph.channel_spread import along_axis, axis_labels, spread_channels
from ..graph.edit import constant_of, names_used_by_subgraphs, new_constant
from ..graph.linear import bias_of, foldable, output_channels, set_bias, weight_of
from ..placement import Plan
from .channel_stats import ChannelMoments
from .gain_sites import GainSite, takes_division
from .gains import LIMIT


def find_norm_sites(model: Model, plan: Plan) -> list[GainSite]:
    """LayerNormalizations that only int8 Gemm and MatMul nodes read; in graph order.

    Args:
        model: Float model that the plan was made for.
        plan: The plan.
    """
    int8, outer = set(plan.int8_nodes), names_used_by_subgraphs(model.graph)
    sites = []
    for node in model.graph.nodes:
        if node.op != "LayerNormalization" or len(node.inputs) < 2 or len(node.outputs) != 1:
            continue
        readers = _linear_readers(model, node.outputs[0], int8, outer)
        scale = constant_of(node.inputs[1])
        if readers and scale is not None and takes_division(model.graph, node.outputs[0], -1, ()):
            names = tuple(reader.name for reader in readers)
            sites.append(GainSite(node.outputs[0].name, "consumer", -1, scale.size, names, "affine"))
    return sites


def _linear_readers(
    model: Model, tensor: gs.Tensor, int8: Collection[str], outer: Collection[str]
) -> list[gs.Node] | None:
    """The layers that read ``tensor`` along its last axis, behind nodes that move it; None when anything else does."""
    labels = axis_labels(tensor, -1)
    spread = None if labels is None else spread_channels(model.graph, tensor, labels, model.opset, outer=outer)
    if labels is None or spread is None:
        return None
    for reader in spread.readers:
        node, channels = reader.node, along_axis(reader.labels, -1)
        if node.op not in ("Gemm", "MatMul") or node.name not in int8 or reader.index or not foldable(node):
            return None
        if channels is None or not np.array_equal(channels, np.arange(labels.shape[-1])):
            return None
    return [reader.node for reader in spread.readers]


def norm_gain(moments: ChannelMoments, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Gain ``r1`` and shift ``s_c r2`` of each channel: float64 [C] each (equations 8 and 9 of the paper).

    Args:
        moments: Extremes of the channels, as they are: a channel on one side of 0 has its zero point out of the codes.
        levels: Steps in the codes, ``2**bits - 1``.
    """
    spread = moments.high - moments.low
    step = np.where(spread > 0, spread, spread.mean() or 1.0) / levels
    zero = np.rint(-moments.low / step)
    return np.clip(step / step.mean(), LIMIT, 1 / LIMIT), step * (zero - np.rint(zero.mean()))


def shift_norms(model: Model, sites: Sequence[GainSite], shifts: Mapping[str, np.ndarray]) -> None:
    """Add ``shifts`` to the outputs of LayerNormalizations and take them away again in the biases behind.

    A site with a MatMul behind, which has no bias, or without a fixed beta is left alone.

    Args:
        model: Model to edit; it computes the same function afterwards.
        sites: The sites.
        shifts: Tensor name -> float64 [C].
    """
    graph = model.graph
    nodes, tensors = {node.name: node for node in graph.nodes}, graph.tensors()
    for site in sites:
        norm, layers = tensors[site.tensor].inputs[0], [nodes[name] for name in site.weighted]
        beta = constant_of(norm.inputs[2]) if len(norm.inputs) > 2 else None
        if beta is None or any(layer.op != "Gemm" for layer in layers):
            continue
        shift = shifts[site.tensor]
        norm.inputs[2] = new_constant(graph, f"{norm.name}_shifted", (beta + shift).astype(beta.dtype))
        for layer in layers:
            weight = weight_of(layer)
            assert weight is not None, layer.name
            rows = weight.astype(np.float64) if layer.attrs.get("transB", 0) else weight.astype(np.float64).T
            bias = bias_of(layer)
            set_bias(graph, layer, (np.zeros(output_channels(layer)) if bias is None else bias) - rows @ shift)
