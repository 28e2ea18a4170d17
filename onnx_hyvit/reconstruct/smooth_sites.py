"""Gains in front of pointwise and depthwise convolutions (HyQ, IJCAI 2024: quantization-aware distribution scaling).

The paper divides the input of a convolution by ``alpha_c`` before it is rounded and multiplies the weights by it, and
finds alpha by 1000 steps of Adam on the error of the output. Here alpha has the closed form of SmoothQuant (arXiv
2211.10438, equation 4), ``max|x_c|^t / max|W_c|^(1 - t)``, with the t of least expected error (see ``gains``). The
paper's inputs of depthwise convolutions have ranges per channel, which is the same gain: each of their channels has
weights of its own.

The division is a Mul in float. What it reads must be float, too, so the product or sum before it leaves int8.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from ..graph import Model
from ..graph.edit import is_graph_output, producer_of
from ..graph.linear import foldable, output_channels, weight_of
from ..placement import Plan
from .channel_stats import ChannelStats
from .gain_sites import GainSite
from .gains import expected_error, input_reach, normalised, without_zeros

EXPONENTS = tuple(step / 10 for step in range(11))
_MAKERS = frozenset({"Add", "Mul"})


def find_smooth_sites(model: Model, plan: Plan) -> list[GainSite]:
    """Activations that a product, a sum or a float node makes and only such convolutions read, in graph order.

    Args:
        model: Float model that the plan was made for.
        plan: The plan.
    """
    int8, sites = set(plan.int8_nodes), []
    tensors = model.graph.tensors()
    moved = {*plan.tied, *plan.tied.values()}
    for name in plan.activations:
        tensor = tensors[name]
        maker = producer_of(tensor)
        if maker is None or name in moved or is_graph_output(model.graph, tensor) or maker.name in plan.absorbed:
            continue
        movable = maker.op in _MAKERS if maker.name in plan.on_codes else True
        if movable and tensor.outputs and all(_takes_gain(node, tensor, int8) for node in tensor.outputs):
            names = tuple(node.name for node in tensor.outputs)
            sites.append(GainSite(name, "consumer", 1, _channels(tensor.outputs[0]), names))
    return sites


def _takes_gain(node: gs.Node, tensor: gs.Tensor, int8: set[str]) -> bool:
    if node.op != "Conv" or node.name not in int8 or node.inputs[0] is not tensor or not foldable(node):
        return False
    weight = weight_of(node)
    assert weight is not None
    group = int(node.attrs.get("group", 1))
    pointwise = group == 1 and all(size == 1 for size in weight.shape[2:])
    return pointwise or (group > 1 and group == _channels(node) == output_channels(node))


def _channels(node: gs.Node) -> int:
    weight = weight_of(node)
    assert weight is not None
    return int(weight.shape[1]) * int(node.attrs.get("group", 1))


def smooth_gain(weighted: Sequence[gs.Node], stats: ChannelStats, levels: int, weight_max: int) -> np.ndarray | None:
    """The gain of least expected error, float64 [C] with largest 1; None when no gain is best.

    Args:
        weighted: The convolutions behind.
        stats: Statistics of the channels.
        levels: Steps in the activation's codes.
        weight_max: Largest weight code.
    """
    reach = np.maximum(stats.high, -stats.low)
    strength = np.maximum(without_zeros(input_reach(weighted)), 1e-12)
    best, least = None, expected_error(weighted, stats, np.ones_like(reach), levels, weight_max)
    for exponent in EXPONENTS:
        gain = normalised(reach**exponent / strength ** (1 - exponent))
        error = expected_error(weighted, stats, gain, levels, weight_max)
        if error < least:
            best, least = gain, error
    return best
