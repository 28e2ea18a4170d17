"""Choose the gains and shifts of ``fold_sites`` by their expected error, and write them.

All are free of nodes, and exact in float: calibration and insertion go on as before. The error model is that of
``gains``: rounding with one step for the whole tensor, which is set by its widest channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from ..graph import Model
from ..graph.edit import constant_of, new_constant
from ..graph.linear import bias_of, output_channels, scale_outputs, set_bias, weight_of
from .channel_stats import ChannelMoments, ChannelStats
from .fold_sites import FoldSite
from .gains import LIMIT, WORTH, expected_error, scale_inputs

EXPONENTS = (0.25, 0.5, 0.75, 1.0)
BALANCES = (0.0, 0.25, 0.5)


@dataclass(frozen=True)
class ChannelFold:
    """What is rounded of each group of channels: ``(x - shift) / gain``; float64 [groups] each."""

    gain: np.ndarray
    shift: np.ndarray

    @property
    def shifts(self) -> bool:
        """Whether any channel is shifted."""
        return bool(self.shift.any())


@dataclass(frozen=True)
class RoundedValues:
    """Values of an attention that are rounded before the product, too.

    Args:
        moments: Of the value projection's channels, by group.
        rest: Width of the range of the other rows that share their scale; 0 when there are none.
        kept: Share of the values' power that averaging over tokens leaves: that of their noise, too.
    """

    moments: ChannelMoments
    rest: float
    kept: float

    def width(self, gain: np.ndarray, shift: np.ndarray) -> float:
        """Width of the range that the values need."""
        stats = self.moments.shifted(shift)
        return float((stats.high / gain).max() - (stats.low / gain).min())

    def filled(self, gain: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """The gain times the one number that gives values and other rows one range: free, for all that follows."""
        width = self.width(gain, shift)
        return gain * width / self.rest if self.rest > 0 and width > 0 else gain

    def error(self, gain: np.ndarray, shift: np.ndarray, strength: np.ndarray, levels: int) -> float:
        """Expected squared error that the rounding of values leaves at the outputs of the layers."""
        step = max(self.width(gain, shift), self.rest) / levels
        return float(np.square(step * gain) / 12 @ strength) * self.kept


def choose_fold(
    model: Model,
    site: FoldSite,
    moments: ChannelMoments,
    levels: int,
    weight_max: int,
    values: RoundedValues | None = None,
) -> ChannelFold | None:
    """The fold of least expected error at the outputs of the layers; None when it is not 5 % less than without.

    Args:
        model: Float model.
        site: A site of it.
        moments: Those of the site's tensor, [C].
        levels: Steps in the activation's codes, ``2**bits - 1``.
        weight_max: Largest weight code, ``2**(bits-1) - 1``.
        values: The values, where they are rounded before an attention's product.
    """
    (without, _), *found = rank_folds(model, site, moments, levels, weight_max, values)
    least, best = min(found, key=lambda entry: entry[0])
    return best if least < WORTH["affine"] * without else None


def rank_folds(
    model: Model,
    site: FoldSite,
    moments: ChannelMoments,
    levels: int,
    weight_max: int,
    values: RoundedValues | None = None,
    groups: np.ndarray | None = None,
) -> list[tuple[float, ChannelFold]]:
    """Folds with their expected error: none at all, then gains by several exponents, with shifts and without.

    Args:
        model: Float model.
        site: A site of it.
        moments: Those of the site's tensor, [C].
        levels: Steps in the activation's codes, ``2**bits - 1``.
        weight_max: Largest weight code, ``2**(bits-1) - 1``.
        values: The values, where they are rounded before an attention's product.
        groups: Which of the site's groups have one gain, int [groups] (all those of a head); None gives each its own.
    """
    layers = _layers_of(model, site)
    grouped = moments.expected(deviations(levels)).grouped(layers[0][1], site.groups)
    none = np.zeros(site.groups)
    strength = _strength(layers, site.groups)

    def ranked(gain: np.ndarray, shift: np.ndarray) -> tuple[float, ChannelFold]:
        error = _error(layers, grouped.shifted(shift), gain, levels, weight_max)
        error += float(_clipped(grouped, gain, shift) @ strength)
        error += values.error(gain, shift, strength, levels) if values else 0.0
        return error, ChannelFold(gain, shift)

    found = [ranked(np.ones(site.groups), none)]
    for shift in [none, grouped.mean] if site.shift else [none]:
        stats = grouped.shifted(shift)
        reach, power = np.maximum(stats.high, -stats.low), np.sqrt(strength)
        if groups is not None:
            reach, power = (largest(each, groups, groups.max() + 1)[groups] for each in (reach, power))
        candidates = [np.ones(site.groups)]
        for exponent in EXPONENTS:
            weights = [np.maximum(power, 1e-12) ** balance for balance in BALANCES]
            candidates += [(reach / weight) ** exponent for weight in weights]
        for gain in map(centred, candidates):
            found.append(ranked(values.filled(gain, shift) if values else gain, shift))
    return found


def _clipped(moments: ChannelMoments, gain: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Expected squared error of each channel where other samples leave the range, as a Laplace distribution does.

    Beyond the distance L from the mean, ``E[(x - L)^2]`` is ``sigma^2 / 2 exp(-sqrt(2) L / sigma)``. Channels that do
    not fill the codes have room; gains take it away. For codes of 8 bits that weighs more than rounding.
    """
    stats, mean = moments.shifted(shift), moments.mean - shift
    sigma = np.sqrt(np.maximum(moments.power - np.square(moments.mean), 1e-24))
    above, below = gain * (stats.high / gain).max() - mean, mean - gain * (stats.low / gain).min()
    tails = sum(np.exp(-np.sqrt(2) * np.maximum(room, 0) / sigma) for room in (above, below))
    return np.square(sigma) / 2 * tails


def deviations(levels: int) -> float:
    """Standard deviations that codes should reach: 4 of 4 bits, 6 of 8; narrower codes gain by clipping more."""
    return 2 + float(np.log2(levels + 1)) / 2


def centred(gain: np.ndarray) -> np.ndarray:
    """Gains around 1 (their geometric mean), dead channels 1, so that folded weights and biases stay in range."""
    alive = gain > 0
    if not alive.any():
        return np.ones_like(gain)
    mean = np.exp(np.log(gain[alive]).mean())
    return np.clip(np.where(alive, gain / mean, 1.0), LIMIT, 1 / LIMIT)


Layers = Sequence[tuple[gs.Node, np.ndarray]]


def _layers_of(model: Model, site: FoldSite) -> Layers:
    nodes = {node.name: node for node in model.graph.nodes}
    return [(nodes[name], np.array(groups)) for name, groups in site.layers]


def _strength(layers: Layers, count: int) -> np.ndarray:
    """Sum of squares of the weights that read each group, [count]."""
    total = np.zeros(count)
    for node, groups in layers:
        weight = weight_of(node)
        assert weight is not None, node.name
        squares = np.square(weight.astype(np.float64))
        if node.op == "Conv" and int(node.attrs.get("group", 1)) > 1:
            parts = squares.reshape(int(node.attrs["group"]), -1, *squares.shape[1:])
            channels = parts.sum((1, *range(3, parts.ndim))).reshape(-1)
        else:
            axis = 1 if node.op == "Conv" or node.attrs.get("transB", 0) else 0
            channels = squares.sum(tuple(index for index in range(squares.ndim) if index != axis))
        np.add.at(total, groups, channels)
    return total


def _error(layers: Layers, stats: ChannelStats, gain: np.ndarray, levels: int, weight_max: int) -> float:
    total = 0.0
    for node, groups in layers:
        spread = ChannelStats(stats.low[groups], stats.high[groups], stats.power[groups])
        total += expected_error([node], spread, gain[groups], levels, weight_max)
    return total


def largest(values: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Largest value of each of ``count`` groups, 0 where there is none; group -1 is left out."""
    found = np.zeros(count)
    used = groups >= 0
    np.maximum.at(found, groups[used], values[used])
    return found


def apply_fold(model: Model, site: FoldSite, fold: ChannelFold) -> None:
    """Write a fold into the float model, which computes the same function afterwards."""
    graph, nodes = model.graph, {node.name: node for node in model.graph.nodes}
    for node, groups in _layers_of(model, site):
        if fold.shifts:
            _add_product(graph, node, fold.shift[groups])
        scale_inputs(graph, node, fold.gain[groups])
    divide_rows(graph, nodes[site.maker], np.array(site.rows), fold)


def divide_rows(graph: gs.Graph, maker: gs.Node, rows: np.ndarray, fold: ChannelFold) -> None:
    """Make ``maker`` give ``(x - shift) / gain`` of the group of each output channel; group -1 stays."""
    mine = rows >= 0
    factors, shift = np.where(mine, 1 / fold.gain[rows], 1.0), np.where(mine, -fold.shift[rows], 0.0)
    if maker.op != "LayerNormalization":
        scale_outputs(graph, maker, factors, shift * factors if fold.shifts else None)
        return
    for index, moved in ((1, 0.0), (2, shift)):
        if index < len(maker.inputs):
            values = constant_of(maker.inputs[index])
            assert values is not None, maker.name
            wide = (values.astype(np.float64) + moved) * factors
            maker.inputs[index] = new_constant(graph, f"{maker.name}_divided", wide.astype(values.dtype))


def _add_product(graph: gs.Graph, node: gs.Node, shift: np.ndarray) -> None:
    """Add ``W shift`` to the bias of a Gemm or of a convolution without padding, shift [input channels]."""
    weight, bias = weight_of(node), bias_of(node)
    assert weight is not None, node.name
    wide = weight.astype(np.float64)
    if node.op == "Gemm":
        more = (wide if node.attrs.get("transB", 0) else wide.T) @ shift
    else:
        taps = wide.reshape(*wide.shape[:2], -1).sum(2)
        groups = int(node.attrs.get("group", 1))
        parts = np.repeat(shift.reshape(groups, -1), wide.shape[0] // groups, axis=0)
        more = (taps * parts).sum(1)
    set_bias(graph, node, (np.zeros(output_channels(node)) if bias is None else bias) + more)
