"""Where channels can be divided and shifted in weights that are there anyway, and be restored in others, at no node.

Before: ``maker -> moves -> (attention's product with the values -> moves) -> int8 layers``
After:  the same nodes; ``x' = (x - t) / k`` is what is rounded: rows of the maker's weights and its bias (gamma and
beta of a LayerNormalization) give x', columns of the layers' weights have the factor k, their biases ``W t``.

Kinds:
- ``norm``: the maker is a LayerNormalization.
- ``rows``: the maker is a Conv, Gemm or MatMul with fixed weights; a Relu may stand between (no shift then).
- ``values``: the maker is the value projection of a softmax attention. ``A V`` mixes tokens, not channels, so a gain of
  a channel of V is one of the output's; rows of A sum to one, so a shift of V is one of the output's, too. Where the
  product mixes channels (cross-covariance), those that it mixes share one gain and one shift.

Conditions:
1. Nothing else reads the channels: every reader behind moves is an int8 layer, each input channel of which has one of
   the maker's channels; no graph output or body of an If or Loop reads a copy.
2. gain: the layers have fixed weights; the maker's have one scale per output channel, so its codes do not change.
3. shift: the layers are Gemms, or convolutions without padding (a padded zero is none of x'); the maker has a bias, or
   can get one; for values, nothing stands between Softmax over the last axis and the product, and its output is float.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from ..graph import Model
from ..graph.channel_spread import ChannelReader, Spread, along_axis, axis_labels, spread_channels
from ..graph.channel_trace import sample_shape, trace_channels
from ..graph.edit import constant_of, names_used_by_subgraphs, producer_of
from ..graph.linear import channel_axis, foldable, output_channels
from ..graph.recognise import find_attentions
from ..placement import Plan
from ..recipes import Fold

_PLAIN = frozenset({"Identity", "Dropout", "Cast"})


@dataclass(frozen=True)
class FoldSite:
    """Channels that may have a gain and a shift.

    Args:
        kind: See the module.
        tensor: Activation that the first layer reads: what is rounded, maybe in front of moves.
        axis: Its channel axis, 1 or -1.
        maker: Name of the node that divides and shifts.
        rows: Group of each output channel of the maker, -1 for those that are none of the site's.
        layers: Names of the layers that restore, each with the group of each of its input channels.
        shift: Whether a shift is exact.
        carriers: Names of all tensors that hold the channels.
        heads: Attention head of each group, where an attention has several; else empty.
    """

    kind: Literal["norm", "rows", "values"]
    tensor: str
    axis: int
    maker: str
    rows: tuple[int, ...]
    layers: tuple[tuple[str, tuple[int, ...]], ...]
    shift: bool
    carriers: frozenset[str]
    heads: tuple[int, ...] = ()

    @property
    def groups(self) -> int:
        """Number of groups: of gains."""
        return max(self.rows) + 1


def find_fold_sites(model: Model, plan: Plan, folds: Collection[Fold]) -> list[FoldSite]:
    """All sites of ``model`` under ``plan`` of the kinds asked for, in graph order.

    Args:
        model: Float model that the plan was made for, sorted.
        plan: The plan.
        folds: Kinds of folds; without ``shift`` no site has one.
    """
    graph = model.graph
    outer = names_used_by_subgraphs(graph)
    sites = list(_value_sites(model, plan, outer)) if "values" in folds else []
    taken = {site.maker for site in sites}
    for node in graph.nodes:
        kind = _maker_kind(node)
        if kind is None or kind not in folds or node.name in taken or not rows_are_free(node, plan):
            continue
        site = _site_behind(model, node, kind, plan, outer)
        if site is not None:
            sites.append(site)
    position = {node.name: index for index, node in enumerate(graph.nodes)}
    sites.sort(key=lambda site: position[site.maker])
    return [site if "shift" in folds else replace(site, shift=False) for site in sites]


def _maker_kind(node: gs.Node) -> Literal["norm", "rows"] | None:
    if node.op == "LayerNormalization":
        fixed = len(node.inputs) > 1 and all(constant_of(tensor) is not None for tensor in node.inputs[1:])
        alone = sum(not output.is_empty() for output in node.outputs) == 1
        return "norm" if fixed and alone and _last_axis_only(node) else None
    return "rows" if node.op in ("Conv", "Gemm", "MatMul") and foldable(node) else None


def _last_axis_only(node: gs.Node) -> bool:
    gamma = constant_of(node.inputs[1])
    return gamma is not None and gamma.ndim == 1 and int(node.attrs.get("axis", -1)) == -1


def rows_are_free(node: gs.Node, plan: Plan) -> bool:
    """Whether a factor per output channel leaves the codes of the weights as they are."""
    spec = plan.weights.get(node.inputs[1].name)
    return node.name not in plan.int8_nodes or spec is None or spec.axis is not None


def _site_behind(
    model: Model, maker: gs.Node, kind: Literal["norm", "rows"], plan: Plan, outer: Collection[str]
) -> FoldSite | None:
    tensor = maker.outputs[0]
    labels = axis_labels(tensor, -1 if kind == "norm" else channel_axis(maker))
    if labels is None:
        return None
    relus = [node for node in model.graph.nodes if node.op == "Relu"] if kind == "rows" else []
    passing = {node.name for node in relus}
    spread = spread_channels(model.graph, tensor, labels, model.opset, outer=outer, passing=passing)
    layers = None if spread is None else _layers(spread.readers, plan)
    if spread is None or not layers:
        return None
    clamped = any(node.outputs[0].name in spread.labels for node in relus)
    return _site(kind, maker, np.arange(labels.max() + 1), layers, spread, not clamped)


def _layers(readers: Collection[ChannelReader], plan: Plan) -> list[tuple[gs.Node, np.ndarray]] | None:
    """The readers with the label of each input channel; None unless all are int8 layers that can restore."""
    found = []
    for reader in readers:
        node = reader.node
        usable = node.op in ("Conv", "Gemm", "MatMul") and node.name in plan.int8_nodes and foldable(node)
        channels = along_axis(reader.labels, channel_axis(node)) if usable and reader.index == 0 else None
        if channels is None:
            return None
        found.append((node, channels))
    return found


def _site(
    kind: Literal["norm", "rows", "values"],
    maker: gs.Node,
    rows: np.ndarray,
    layers: list[tuple[gs.Node, np.ndarray]],
    spread: Spread,
    shift: bool,
) -> FoldSite | None:
    first, channels = layers[0]
    if set(channels.tolist()) != set(rows[rows >= 0].tolist()):
        return None  # what is rounded in front of the first layer is not all that the factors change
    shift = shift and _takes_shift(maker) and all(_restores_shift(node) for node, _ in layers)
    return FoldSite(
        kind,
        first.inputs[0].name,
        channel_axis(first),
        maker.name,
        tuple(rows.tolist()),
        tuple((node.name, tuple(members.tolist())) for node, members in layers),
        shift,
        frozenset(spread.labels),
    )


def _takes_shift(maker: gs.Node) -> bool:
    return len(maker.inputs) > 2 if maker.op == "LayerNormalization" else maker.op != "MatMul"


def _restores_shift(node: gs.Node) -> bool:
    if node.op == "Gemm":
        return True
    unpadded = not any(node.attrs.get("pads", ())) and node.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return node.op == "Conv" and unpadded


def _value_sites(model: Model, plan: Plan, outer: Collection[str]) -> Iterator[FoldSite]:
    nodes, tensors = {node.name: node for node in model.graph.nodes}, model.graph.tensors()
    taken: set[str] = set()
    for attention in find_attentions(model.graph, model.opset):
        product = nodes[attention.nodes[-1]]
        if attention.kind not in ("softmax", "cross_covariance") or product.op != "MatMul":
            continue
        if product.inputs[1].name != attention.value:
            continue
        trace = trace_channels(tensors[attention.value], model.opset, through_pointwise=False)
        if trace is None or trace.source.name in taken or _maker_kind(trace.source) != "rows":
            continue
        if rows_are_free(trace.source, plan):
            site = _value_site(model, plan, outer, product, trace.source, trace.channels)
            if site is not None:
                taken.add(site.maker)
                yield site


def _value_site(
    model: Model, plan: Plan, outer: Collection[str], product: gs.Node, maker: gs.Node, channels: np.ndarray
) -> FoldSite | None:
    labels, result = axis_labels(maker.outputs[0], channel_axis(maker)), product.outputs[0]
    shape = sample_shape(result)
    before = (
        None if labels is None else spread_channels(model.graph, maker.outputs[0], labels, model.opset, outer=outer)
    )
    if before is None or shape is None:
        return None
    mine = np.unique(channels)
    readers = [reader for reader in before.readers if np.isin(reader.labels, mine).any()]
    if len(readers) != 1 or readers[0].node is not product or readers[0].index != 1:
        return None
    rows = np.full(output_channels(maker), -1)
    rows[mine] = _mixed_groups(channels, mine)
    groups = np.broadcast_to(rows[channels][..., :1, :], shape)
    after = spread_channels(model.graph, result, groups, model.opset, outer=outer)
    layers = None if after is None else _layers(after.readers, plan)
    if after is None or not layers:
        return None
    site = _site("values", maker, rows, layers, after, _sums_to_one(product.inputs[0], plan))
    return None if site is None else replace(site, heads=_heads(rows[channels]))


def _heads(groups: np.ndarray) -> tuple[int, ...]:
    """Head of each group of ``groups`` [.., heads, T, d]; empty where there is one head, or a group is in several."""
    if groups.ndim < 3 or groups.shape[-3] < 2:
        return ()
    heads = np.broadcast_to(np.arange(groups.shape[-3])[:, None, None], groups.shape)
    pairs = np.unique(np.stack([groups.reshape(-1), heads.reshape(-1)], 1), axis=0)
    return tuple(pairs[:, 1].tolist()) if len(pairs) == groups.max() + 1 else ()


def _mixed_groups(channels: np.ndarray, mine: np.ndarray) -> np.ndarray:
    """Group of each channel in ``mine``: a product that sums over axis -2 of ``channels`` mixes those of a group."""
    group = {int(channel): int(channel) for channel in mine}

    def root(channel: int) -> int:
        while group[channel] != channel:
            channel = group[channel]
        return channel

    columns = np.moveaxis(channels, -2, -1).reshape(-1, channels.shape[-2])
    for column in np.unique(columns, axis=0):
        for channel in np.unique(column):
            group[root(int(channel))] = root(int(column[0]))
    return np.unique([root(int(channel)) for channel in mine], return_inverse=True)[1]


def _sums_to_one(weights: gs.Tensor, plan: Plan) -> bool:
    """Whether rows of the product's first operand come from Softmax over the last axis as they are."""
    while True:
        node = producer_of(weights)
        if node is None or weights.name in plan.activations:
            return False
        if node.op == "Softmax":
            rank = len(weights.shape) if weights.shape is not None else 0
            return int(node.attrs.get("axis", -1)) in (-1, rank - 1)
        if node.op not in _PLAIN:
            return False
        weights = node.inputs[0]
