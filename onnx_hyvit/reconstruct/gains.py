"""Choose the gain of each site by the error that it leaves in closed form, and write it into the float graph.

The graph with gains computes the same function in float (to rounding), so calibration and insertion go on as before.

Error model (first order, activations and weights independent, as in the Gram-matrix view of a layer's error):
rounding a channel with step ``s_c`` adds ``s_c^2 / 12`` of noise, which reaches the output through ``sum_o W[o,c]^2``;
rounding a weight row with step ``u_o`` adds ``u_o^2 / 12`` per weight, which reaches it through ``E[x_c^2]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from ..graph import Model
from ..graph.edit import add_node, constant_of, new_constant, new_variable, producer_of
from ..graph.linear import scale_outputs, weight_of
from .channel_stats import ChannelStats
from .gain_sites import GainSite, constant_operand

LIMIT = 1e-3
EXPONENTS = (0.25, 0.5, 0.75, 1.0)
BALANCES = (0.0, 0.25, 0.5)
WORTH = {"affine": 0.95, "mul": 0.1}


def choose_gains(
    model: Model, sites: Sequence[GainSite], stats: Mapping[str, ChannelStats], levels: int = 255, weight_max: int = 127
) -> dict[str, np.ndarray]:
    """The gain of each site that pays.

    Args:
        model: Float model.
        sites: Sites, see ``find_gain_sites``.
        stats: Statistics of each site's tensor.
        levels: Steps in the activation's codes, ``2**bits - 1``.
        weight_max: Largest weight code, ``2**(bits-1) - 1``.

    Returns:
        Tensor name -> gain float64 [C], in ``[LIMIT, 1]``. Sites are left out whose error falls by less than 5 %, or
        by less than 90 % where the gain costs a node.
    """
    nodes = {node.name: node for node in model.graph.nodes}
    gains = {}
    for site in sites:
        weighted = [nodes[name] for name in site.weighted]
        if site.side == "producer":
            gain = _producer_gain(stats[site.tensor], WORTH[site.fold])
        else:
            gain = _consumer_gain(weighted, stats[site.tensor], levels, weight_max, WORTH[site.fold])
        if gain is not None:
            gains[site.tensor] = gain
    return gains


def normalised(gain: np.ndarray) -> np.ndarray:
    """Gains relative to the largest, dead channels 1, clamped so that folded weights stay in range."""
    gain = np.where(gain > 0, gain, gain.max(initial=0.0) or 1.0)
    return np.clip(gain / gain.max(), LIMIT, 1.0)


def without_zeros(strength: np.ndarray) -> np.ndarray:
    """Strengths of channels, the smallest one for those that nothing reads: they have no say in the step then."""
    return np.where(strength > 0, strength, strength[strength > 0].min(initial=1.0))


def _producer_gain(stats: ChannelStats, worth: float) -> np.ndarray | None:
    """Gains that let every channel fill the codes; the share of codes above zero is searched.

    With a share ``r`` of the range above zero, channel c needs the step ``max(high / r, -low / (1 - r))``.
    """
    best, best_error = None, np.inf
    for share in np.linspace(0.02, 1.0, 50):
        below = -stats.low / (1 - share) if share < 1 else np.where(stats.low < 0, np.inf, 0.0)
        needed = np.maximum(stats.high / share, below)
        error = float(np.square(needed).sum())
        if error < best_error:
            best, best_error = needed, error
    plain = float(np.square(stats.high.max() - stats.low.min()) * len(stats.low))
    return normalised(best) if best is not None and best_error < worth * plain else None


def _consumer_gain(
    weighted: Sequence[gs.Node], stats: ChannelStats, levels: int, weight_max: int, worth: float
) -> np.ndarray | None:
    (without, _), *found = rank_gains(weighted, stats, levels, weight_max)
    least, best = min(found, key=lambda entry: entry[0])
    return best if least < worth * without else None


def rank_gains(
    weighted: Sequence[gs.Node], stats: ChannelStats, levels: int, weight_max: int
) -> list[tuple[float, np.ndarray]]:
    """Gains of an activation that ``weighted`` read, with their expected error: all ones, then by several exponents."""
    reach = np.maximum(stats.high, -stats.low)
    layers = [_layer_of(node) for node in weighted]
    strength = without_zeros(np.sqrt(sum(layer.power() for layer in layers)))
    gains = [np.ones_like(reach)]
    for exponent in EXPONENTS:
        for balance in BALANCES:
            gains.append(normalised((reach / np.maximum(strength, 1e-12) ** balance) ** exponent))
    return [(_error(layers, stats, gain, levels, weight_max), gain) for gain in gains]


@dataclass(frozen=True)
class _Layer:
    """A linear node as ``weight`` [groups, outputs per group, inputs per group, taps] in float64."""

    weight: np.ndarray

    def power(self) -> np.ndarray:
        """Sum of squares of each input channel's weights, [C]."""
        return np.square(self.weight).sum((1, 3)).reshape(-1)


def expected_error(
    weighted: Sequence[gs.Node], stats: ChannelStats, gain: np.ndarray, levels: int, weight_max: int
) -> float:
    """Expected squared error at the outputs of ``weighted`` when their input has ``gain``, see the module."""
    return _error([_layer_of(node) for node in weighted], stats, gain, levels, weight_max)


def input_reach(weighted: Sequence[gs.Node]) -> np.ndarray:
    """Largest absolute weight of each input channel over all nodes, float64 [C]."""
    return np.max([np.abs(_layer_of(node).weight).max((1, 3)).reshape(-1) for node in weighted], axis=0)


def _layer_of(node: gs.Node) -> _Layer:
    weight = weight_of(node)
    assert weight is not None, node.name
    wide = weight.astype(np.float64)
    if node.op == "Conv":
        groups = int(node.attrs.get("group", 1))
        return _Layer(wide.reshape(groups, wide.shape[0] // groups, wide.shape[1], -1))
    rows = wide if node.op == "Gemm" and node.attrs.get("transB", 0) else wide.T
    return _Layer(rows[None, :, :, None])


def _error(layers: Sequence[_Layer], stats: ChannelStats, gain: np.ndarray, levels: int, weight_max: int) -> float:
    """Expected squared error of the layers' outputs, see the module."""
    step = ((stats.high / gain).max() - (stats.low / gain).min()) / levels
    noise = np.square(step * gain) / 12
    total = 0.0
    for layer in layers:
        groups = layer.weight.shape[0]
        power = layer.power()
        total += float(noise @ power)
        scaled = layer.weight * gain.reshape(groups, 1, -1, 1)
        steps = np.abs(scaled).max((2, 3)) / weight_max
        read = np.where(power > 0, stats.power, 0.0)  # a weight of 0 has no rounding error
        seen = (read / np.square(gain)).reshape(groups, -1).sum(1) * layer.weight.shape[3]
        total += float((np.square(steps).sum(1) / 12) @ seen)
    return total


def apply_gains(model: Model, sites: Sequence[GainSite], gains: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Write gains into the float graph, which is edited in place and computes the same function.

    Args:
        model: Model to edit.
        sites: The sites.
        gains: Tensor name -> gain [C]; sites without one are left alone.

    Returns:
        Names of the Mul nodes that were inserted: they must stay float in the plan.
    """
    graph = model.graph
    nodes = {node.name: node for node in graph.nodes}
    tensors = graph.tensors()
    inserted = []
    for site in sites:
        gain = gains.get(site.tensor)
        if gain is None:
            continue
        tensor, weighted = tensors[site.tensor], [nodes[name] for name in site.weighted]
        if site.side == "producer":
            scale_outputs(graph, weighted[0], 1 / gain)
            inserted.append(_multiply(graph, tensor, gain, site.axis, list(tensor.outputs)))
            continue
        for node in weighted:
            scale_inputs(graph, node, gain)
        if site.fold == "affine":
            divide(graph, tensor, gain, site.axis)
        else:
            inserted.append(_multiply(graph, tensor, 1 / gain, site.axis, weighted))
    graph.toposort()
    return tuple(inserted)


def scale_inputs(graph: gs.Graph, node: gs.Node, gain: np.ndarray) -> None:
    """Multiply the weights of each input channel by ``gain`` (float64 [C])."""
    weight = weight_of(node)
    assert weight is not None, node.name
    wide = weight.astype(np.float64)
    if node.op == "Conv":
        groups = int(node.attrs.get("group", 1))
        factors = np.repeat(gain.reshape(groups, -1), wide.shape[0] // groups, axis=0)
        wide = wide * factors.reshape(wide.shape[0], wide.shape[1], *[1] * (wide.ndim - 2))
    elif node.op == "Gemm" and node.attrs.get("transB", 0):
        wide = wide * gain[None, :]
    else:
        wide = wide * gain[:, None]
    node.inputs[1] = new_constant(graph, f"{node.name}_weight", wide.astype(weight.dtype))


def divide(graph: gs.Graph, tensor: gs.Tensor, gain: np.ndarray, axis: int) -> None:
    """Divide ``tensor`` by ``gain`` inside the nodes before it, for which ``takes_division`` holds.

    ``LN(x) g + b`` takes it as ``g / k, b / k``; ``x m`` as ``m / k``; ``x + c`` as ``x / k + c / k``.
    """
    node = producer_of(tensor)
    assert node is not None, tensor.name
    if node.op == "LayerNormalization":
        operands = list(range(1, len(node.inputs)))
    else:
        operand = constant_operand(node)
        assert operand is not None, node.name
        operands = [operand]
    shape = [1] * len(tensor.shape or (1,))
    shape[axis] = -1
    for index in operands:
        values = constant_of(node.inputs[index])
        assert values is not None, node.name
        quotient = values.astype(np.float64) / (gain if node.op == "LayerNormalization" else gain.reshape(shape))
        node.inputs[index] = new_constant(graph, f"{node.name}_divided", quotient.astype(values.dtype))
    if node.op == "Add":
        divide(graph, node.inputs[1 - operands[0]], gain, axis)


def _multiply(graph: gs.Graph, tensor: gs.Tensor, factor: np.ndarray, axis: int, readers: Sequence[gs.Node]) -> str:
    """Insert ``Mul(tensor, factor per channel)`` for ``readers``; returns the Mul's name."""
    rank = len(tensor.shape) if tensor.shape is not None else (4 if axis == 1 else 2)
    shape = [1] * rank
    shape[axis] = -1
    constant = new_constant(graph, f"{tensor.name}_gain", factor.astype(np.float32).reshape(shape))
    output = new_variable(graph, f"{tensor.name}_scaled", tensor.dtype, tensor.shape)
    for node in readers:
        for index, other in enumerate(node.inputs):
            if other is tensor:
                node.inputs[index] = output
    return add_node(graph, "Mul", [tensor, constant], [output], stem=f"{tensor.name}_gain_mul").name
