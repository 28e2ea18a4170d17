"""The pipeline's step that gives convolutions more channels where their int8 kernels are faster with whole blocks.

The int8 kernels of x86 work on 16 channels of a depthwise convolution at once, and on 4 of any other one; what is left
over is slow: 40 channels take longer than 48. Whether a padded region pays depends on what is int8 then, so each is
decided by the predicted time of the whole model, everything in int8 or float as is best for it, with and without.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from .config import QuantConfig
from .costs import LEAST_SHARE, Profile, choose_float, node_us, weight_shape
from .graph import Model, model_to_proto
from .graph.channel_regions import ChannelRegion, find_channel_regions
from .mixed_precision import Fitted
from .numerics import QParams
from .passes import run_passes
from .passes.layout import pad_channels, padded_sizes, resize_channels
from .placement import Plan
from .planning import plan_by_rules, profile_for
from .prepared import Prepared
from .runtime import observe
from .scales import Scales
from .targets import Target

LEAST_OF_ALL = 1e-3  # of the model's time: nobody could measure a smaller saving
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class PaddedRegion:
    """A region that got more channels.

    Args:
        convolutions: Names of the convolutions that make, read or have its channels.
        before: Number of its channels.
        after: The same, padded.
        saved_us: Predicted microseconds that this saves.
    """

    convolutions: tuple[str, ...]
    before: int
    after: int
    saved_us: float


@dataclass(frozen=True)
class ChannelPadding:
    """What was padded.

    Args:
        found: Number of regions whose channels are no whole blocks.
        regions: Those that are now.
        sizes: The same as the pass takes them.
    """

    found: int
    regions: tuple[PaddedRegion, ...]
    sizes: Mapping[ChannelRegion, int] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the report."""
        return {
            "found": self.found,
            "convolutions": len({name for region in self.regions for name in region.convolutions}),
            "saved_us": round(sum(region.saved_us for region in self.regions), 1),
            "regions": [
                {
                    "convolutions": list(region.convolutions),
                    "channels": [region.before, region.after],
                    "saved_us": round(region.saved_us, 2),
                }
                for region in self.regions
            ],
        }


def choose_padding(model: Model, shapes: Shapes, plan: Plan, profile: Profile, config: QuantConfig) -> ChannelPadding:
    """Find the regions that are worth padding; the model is not changed.

    All are padded at first. Then each is tried without, in graph order, and stays so unless padding saves time.

    Args:
        model: Float model after the exact rewrites.
        shapes: Concrete shapes of all tensors.
        plan: Its plan by the target's rules.
        profile: Costs of kernels.
        config: The objective.
    """
    regions = [region for region in find_channel_regions(model.graph, shapes) if padded_sizes(region)]
    if not regions:
        return ChannelPadding(0, (), {})
    trial = _Trial(model, shapes, plan, profile, config.objective, regions)
    try:
        plain = trial.cost({})
        sizes = {region: max(padded_sizes(region)) for region in regions}
        saved = dict.fromkeys(regions, 0.0)
        for region in regions:
            without = trial.cost({key: size for key, size in sizes.items() if key is not region})
            costs = {size: trial.cost({**sizes, region: size}) for size in padded_sizes(region)}
            size = min(costs, key=lambda size: (costs[size].weighed, size))
            saved[region] = without.us - costs[size].us
            least = max(LEAST_SHARE * trial.own_us[region], LEAST_OF_ALL * plain.us)
            if without.weighed - costs[size].weighed > least:
                sizes[region] = size
            else:
                del sizes[region]
        if trial.cost(sizes).weighed >= plain.weighed:  # each is of use to another one only
            sizes = {}
    finally:
        trial.take_back()
    padded = tuple(
        PaddedRegion(tuple(node.name for node in region.convolutions), region.channels, size, saved[region])
        for region, size in sizes.items()
    )
    return ChannelPadding(len(regions), padded, sizes)


def with_padding(
    prepared: Prepared, target: Target, config: QuantConfig, float_nodes: Collection[str]
) -> tuple[Prepared, ChannelPadding | None]:
    """Pad what pays, where there are costs that say so.

    Args:
        prepared: The float model after the exact rewrites; its graph is edited in place.
        target: Rules.
        config: Settings; nothing is padded for the objective ``size``.
        float_nodes: Names of nodes that must stay float.

    Returns:
        The model, and what was padded; None where there was nothing to weigh.
    """
    model, shapes = prepared.model, prepared.shapes
    if config.objective == "size" or not config.rewrite_layout:
        return prepared, None
    profile = profile_for(target, config)
    if profile is None:
        return prepared, None
    plan = plan_by_rules(model, shapes, target, config, float_nodes)
    padding = choose_padding(model, shapes, plan, profile, config)
    if not padding.regions:
        return prepared, padding if padding.found else None
    results = run_passes(model, [pad_channels(padding.sizes)])
    observed = observe(model_to_proto(model), prepared.inputs)
    return replace(prepared, shapes=dict(observed.shapes), passes=(*prepared.passes, *results)), padding


def without_useless(
    prepared: Prepared, padding: ChannelPadding, planned: Plan, fitted: Fitted
) -> tuple[Prepared, ChannelPadding, Scales] | None:
    """Take padding back where all convolutions that it was for went back to float, for accuracy.

    Args:
        prepared: The model; its graph is edited in place.
        padding: What was padded.
        planned: The plan before; what is float in it was so when padding was found to pay.
        fitted: Its plan now and its numbers; not changed.

    Returns:
        The model, what is still padded, and the numbers; None where nothing was taken back.
    """
    floats = set(fitted.decision.plan.float_nodes)
    regions = {}
    for region, before in _padded(prepared, padding).items():
        slow = {node.name for node in region.depthwise or region.convolutions}
        if slow <= floats and not slow <= set(planned.float_nodes):
            regions[region] = before
    if not regions:
        return None
    shapes, qparams, parameters = prepared.shapes, dict(fitted.scales.qparams), dict(fitted.scales.parameters)
    gone = set()
    for region, before in regions.items():
        gone |= {node.name for node in region.convolutions}
        for part in region.parts:
            name, kept = part.node.inputs[part.index].name, np.arange(before)
            if name in parameters:
                parameters[name] = np.take(parameters[name], kept, axis=part.axis)
            if name in qparams and qparams[name].spec.axis == part.axis:
                qparams[name] = _of_channels(qparams[name], kept)
        shapes = _resized_shapes(shapes, {resize_channels(region, before): before})
    left = tuple(region for region in padding.regions if not gone.issuperset(region.convolutions))
    scales = replace(fitted.scales, qparams=qparams, parameters=parameters)
    return replace(prepared, shapes=shapes), replace(padding, regions=left), scales


def unpadded_proto(prepared: Prepared, padding: ChannelPadding | None) -> onnx.ModelProto:
    """The float model without any padding of channels; ``prepared`` stays as it is."""
    regions = _padded(prepared, padding)
    before = _inputs(regions)
    for region, channels in regions.items():
        resize_channels(region, channels)
    proto = model_to_proto(prepared.model)
    _put_back(regions, before)
    return proto


def _padded(prepared: Prepared, padding: ChannelPadding | None) -> dict[ChannelRegion, int]:
    """Regions that are padded, perhaps after other exact rewrites, with the number of channels before."""
    known = {frozenset(region.convolutions): region for region in (padding.regions if padding else ())}
    found = {}
    for region in find_channel_regions(prepared.model.graph, prepared.shapes) if known else ():
        padded = known.get(frozenset(node.name for node in region.convolutions))
        if padded is not None and padded.after == region.channels:
            found[region] = padded.before
    return found


def _of_channels(qparams: QParams, kept: np.ndarray) -> QParams:
    scale, zero_point = (np.asarray(values) for values in (qparams.scale, qparams.zero_point))
    return QParams(scale[kept], zero_point[kept] if zero_point.ndim else zero_point, qparams.spec)


class _Cost(NamedTuple):
    """Microseconds, and the same with the bytes of the weights as time where the objective counts them."""

    us: float
    weighed: float


class _Trial:
    """A model whose regions have other numbers of channels for a while, and what it would take then."""

    def __init__(
        self,
        model: Model,
        shapes: Shapes,
        plan: Plan,
        profile: Profile,
        objective: str,
        regions: Sequence[ChannelRegion],
    ) -> None:
        self._model, self._shapes, self._plan = model, shapes, plan
        self._profile, self._objective, self._regions = profile, objective, regions
        self._inputs = _inputs(regions)
        self._around = {id(node): node for region in regions for node in _nodes_of(region)}
        self.own_us = {
            region: sum(node_us(node, True, shapes, profile) or 0.0 for node in _nodes_of(region)) for region in regions
        }
        self._us_per_weight = 0.0
        if objective == "balanced":  # all weights are worth all of the time, as in the choice of float nodes
            self._us_per_weight = self.cost({}).us / max(1, self._weights())

    def cost(self, sizes: Mapping[ChannelRegion, int]) -> _Cost:
        """What the model costs with these numbers of channels."""
        self.take_back()
        for region, channels in sizes.items():
            resize_channels(region, channels)
        shapes = _resized_shapes(self._shapes, sizes)
        choice = choose_float(self._model, self._plan, shapes, self._profile, self._objective)
        kept = (node for node in self._around.values() if node.name in self._plan.float_nodes)
        us = choice.chosen_us + sum(node_us(node, False, shapes, self._profile) or 0.0 for node in kept)
        return _Cost(us, us + self._us_per_weight * self._weights())

    def take_back(self) -> None:
        """Give every region the channels that it had."""
        _put_back(self._regions, self._inputs)

    def _weights(self) -> int:
        return sum(prod(weight_shape(node) or (0,)) for node in self._model.graph.nodes)


def _inputs(regions: Iterable[ChannelRegion]) -> list[tuple[gs.Node, list[gs.Tensor]]]:
    return [(part.node, list(part.node.inputs)) for region in regions for part in region.parts]


def _put_back(regions: Iterable[ChannelRegion], inputs: Sequence[tuple[gs.Node, list[gs.Tensor]]]) -> None:
    for region in regions:
        resize_channels(region, region.channels)
    for node, tensors in inputs:
        node.inputs = tensors


def _resized_shapes(shapes: Shapes, sizes: Mapping[ChannelRegion, int]) -> dict[str, tuple[int, ...]]:
    resized = dict(shapes)
    for region, channels in sizes.items():
        for tensor in region.tensors:
            count, _, *space = resized[tensor.name]
            resized[tensor.name] = (count, channels, *space)
    return resized


def _nodes_of(region: ChannelRegion) -> list[gs.Node]:
    """The nodes that make or read its maps."""
    return list({id(node): node for tensor in region.tensors for node in (*tensor.inputs, *tensor.outputs)}.values())
