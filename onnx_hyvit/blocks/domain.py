"""Which factors of a tensor's shape are channels, and so over how many positions its features spread.

Every axis is a product of factors, each a part of the channels or not. Factors start at convolutions (axis 1 is
channels) and at products with a fixed matrix (the last axis is); transposes permute them, reshapes regroup and split
them, so the channels are followed through the unfolding of MobileViT, windows, heads and channel shuffles. A product of
two computed matrices loses them until the next linear operator.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.edit import constant_of
from .flow import Flow

RESHAPING = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
MATMULS = frozenset({"MatMul", "FusedMatMul", "Einsum"})
CONVS = frozenset({"Conv", "ConvTranspose"})
POOLS = frozenset({"MaxPool", "AveragePool", "LpPool"})
GLOBAL_POOLS = frozenset({"GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"})

Axis = tuple[tuple[int, bool], ...]
"""Factors of one axis, outermost first: length, and whether it is a part of the channels. Length 1 is left out."""
Layout = tuple[Axis, ...]


@dataclass(frozen=True)
class Domain:
    """Kind of features in a tensor.

    Args:
        kind: ``spatial`` (a map with rows and columns), ``tokens`` (a sequence, or windows or heads of one), ``vector``
            (one position) or ``unknown`` (the channels are lost, as between two products of attention).
        positions: Number of positions: elements divided by channels; 0 when unknown.
        layout: Factors of every axis; None when unknown.
    """

    kind: str
    positions: int
    layout: Layout | None = None


UNKNOWN = Domain("unknown", 0)


def find_domains(flow: Flow) -> dict[str, Domain]:
    """Domain of every data tensor, in one pass over the graph."""
    domains = {tensor.name: _image(flow.shapes.get(tensor.name, ())) for tensor in flow.graph.inputs}
    for node in flow.nodes:
        source = _main_input(flow, node, domains)
        for index, tensor in enumerate(node.outputs):
            shape = flow.shapes.get(tensor.name)
            followed = shape is not None and (index == 0 or node.op == "Split")
            domains[tensor.name] = _after(flow, node, source, domains, shape) if followed and shape else UNKNOWN
    return domains


def _image(shape: tuple[int, ...]) -> Domain:
    if len(shape) != 4:
        return UNKNOWN
    return _domain(_with_channels(shape, 3 if shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4) else 1))


def _with_channels(shape: tuple[int, ...], axis: int) -> Layout:
    return tuple(_axis(length, place == axis) for place, length in enumerate(shape))


def _axis(length: int, channels: bool) -> Axis:
    return ((length, channels),) if length > 1 else ()


def _domain(layout: Layout | None) -> Domain:
    if layout is None:
        return UNKNOWN
    lengths = [
        [length for axis in layout for length, channels in axis if channels is wanted] for wanted in (True, False)
    ]
    if not lengths[0]:
        return UNKNOWN
    positions = prod(lengths[1])
    if positions == 1:
        return Domain("vector", 1, layout)
    carrier = next((place for place, axis in enumerate(layout) if len(axis) == 1 and axis[0][1]), None)
    spatial = len(layout) == 4 and carrier in (1, 3) and not layout[0]
    return Domain("spatial" if spatial else "tokens", positions, layout)


def _main_input(flow: Flow, node: gs.Node, domains: dict[str, Domain]) -> str | None:
    """The largest data input whose channels are known."""
    known = [t.name for t in node.inputs if t.name in domains and domains[t.name].layout is not None]
    return max(known, key=flow.size, default=None)


def _after(flow: Flow, node: gs.Node, source: str | None, domains: dict[str, Domain], shape: tuple[int, ...]) -> Domain:
    if node.op in CONVS:
        return _domain(_with_channels(shape, 1))
    if node.op == "Gemm" or node.op in MATMULS:
        axis = len(shape) - 1 if node.op == "Gemm" else _product_axis(node, len(shape))
        return UNKNOWN if axis is None else _domain(_with_channels(shape, axis))
    layout = domains[source].layout if source is not None else None
    if source is None or layout is None:
        return UNKNOWN
    if node.op == "Transpose":
        order = node.attrs.get("perm", range(len(layout))[::-1])
        return _domain(tuple(layout[int(place)] for place in order))
    if node.op in RESHAPING:
        return _domain(regroup(layout, shape))
    if len(layout) > len(shape):
        removed = _removed_axes(node, len(layout))
        layout = tuple(axis for place, axis in enumerate(layout) if place not in removed)
    elif len(layout) < len(shape):
        layout = ((),) * (len(shape) - len(layout)) + layout
    return _domain(_resized(layout, shape))


def _product_axis(node: gs.Node, rank: int) -> int | None:
    """Axis of the new channels after a product with a fixed matrix; None when both sides are computed."""
    fixed = [constant_of(tensor) is not None for tensor in node.inputs[:2]]
    if not any(fixed):
        return None
    return rank - 2 if fixed[0] and node.op != "Einsum" else rank - 1


def regroup(layout: Layout, shape: tuple[int, ...]) -> Layout | None:
    """Factors of every axis after a reshape to ``shape``; None when a factor would have to be cut unevenly."""
    factors = [factor for axis in layout for factor in axis]
    axes: list[Axis] = []
    for length in shape:
        axis: list[tuple[int, bool]] = []
        while length > 1:
            if not factors:
                return None
            size, channels = factors.pop(0)
            if length % size == 0:
                axis.append((size, channels))
                length //= size
            elif size % length == 0:
                axis.append((length, channels))
                factors.insert(0, (size // length, channels))
                length = 1
            else:
                return None
        axes.append(_merged(axis))
    return tuple(axes) if not factors else None


def _merged(axis: list[tuple[int, bool]]) -> Axis:
    merged: list[tuple[int, bool]] = []
    for size, channels in axis:
        if merged and merged[-1][1] is channels:
            merged[-1] = (merged[-1][0] * size, channels)
        else:
            merged.append((size, channels))
    return tuple(merged)


def _resized(layout: Layout, shape: tuple[int, ...]) -> Layout | None:
    """The same axes with new lengths (slices, concatenations, pools, broadcasts)."""
    if len(layout) != len(shape):
        return None
    axes: list[Axis] = []
    for axis, length in zip(layout, shape, strict=True):
        if prod(size for size, _ in axis) == length:
            axes.append(axis)
        elif len(axis) > 1:
            return None
        else:
            axes.append(_axis(length, bool(axis) and axis[0][1]))
    return tuple(axes)


def _removed_axes(node: gs.Node, rank: int) -> set[int]:
    removed = node.attrs.get("axes")
    if removed is None and len(node.inputs) > 1 and node.op.startswith("Reduce"):
        removed = constant_of(node.inputs[1])
    if removed is None:
        removed = [node.attrs.get("axis", 0)]
    return {int(place) % rank for place in np.atleast_1d(np.asarray(removed))}
