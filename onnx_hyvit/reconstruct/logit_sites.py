"""Queries against keys: gains that leave their product as it is, and a shift of keys that Softmax does not see.

Before: ``Softmax(q k^T)``, q and k from rows of layers with fixed weights, through moves and fixed scalars
After:  q / g and k g per channel of the product; ``k - t`` per channel of k

``(q / g) (k g)^T = q k^T``. ``q (k - t)^T = q k^T - (q t) 1^T``: the same number in a whole row, which Softmax ignores.

Conditions:
1. Nothing but this product reads these channels; where the product mixes channels of q with several of k or the other
   way round (heads that share keys), they are one group with one gain.
2. The rows have one weight scale each, so their codes do not change; and q or k is rounded, else there is no gain.
3. shift: from the product to Softmax (last axis) the row's constant stays one: additions, factors that are the same for
   all keys, 1x1 convolutions over heads, moves that keep the last axis.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from ..graph import Model
from ..graph.channel_spread import MOVES, axis_labels, spread_channels
from ..graph.edit import constant_of, dim_of, is_graph_output, names_used_by_subgraphs, producer_of, rank_of, scalar_of
from ..graph.linear import channel_axis, foldable, output_channels
from ..graph.recognise import Attention, find_attentions
from ..placement import Plan
from .fold_sites import rows_are_free


@dataclass(frozen=True)
class Operand:
    """Rows of a layer that make the queries or the keys.

    Args:
        maker: The layer.
        tensor: Its output.
        axis: The channel axis of that.
        rows: Group of each output channel, -1 for those of others.
        rounded: Whether the channels are rounded anywhere before the product.
    """

    maker: str
    tensor: str
    axis: int
    rows: tuple[int, ...]
    rounded: bool


@dataclass(frozen=True)
class LogitSite:
    """Queries and keys of an attention; ``shift`` tells whether a shift of the keys is exact."""

    query: Operand
    key: Operand
    shift: bool

    @property
    def groups(self) -> int:
        """Number of groups: of gains."""
        return max(self.query.rows) + 1


def find_logit_sites(model: Model, plan: Plan, shift: bool = True) -> list[LogitSite]:
    """All sites of ``model`` under ``plan``, in graph order; without ``shift`` none has one.

    Args:
        model: Float model that the plan was made for, sorted.
        plan: The plan.
        shift: Whether to look for shifts.
    """
    outer = names_used_by_subgraphs(model.graph)
    sites: list[LogitSite] = []
    taken: set[tuple[str, int]] = set()
    for attention in find_attentions(model.graph, model.opset):
        site = _logit_site(model, plan, outer, attention)
        if site is None:
            continue
        used = {
            (side.maker, row) for side in (site.query, site.key) for row, group in enumerate(side.rows) if group >= 0
        }
        if not used & taken and (site.query.rounded or site.key.rounded):
            taken |= used
            sites.append(site if shift else LogitSite(site.query, site.key, False))
    return sites


def _logit_site(model: Model, plan: Plan, outer: Collection[str], attention: Attention) -> LogitSite | None:
    nodes = {node.name: node for node in model.graph.nodes}
    product = nodes[attention.nodes[0]]
    if attention.kind != "softmax" or product.op != "MatMul" or product.inputs[0] is product.inputs[1]:
        return None
    query, key = (_traced(model, product, index, outer) for index in (0, 1))
    if query is None or key is None:
        return None
    (asker, asked, first), (holder, held, second) = query, key
    pairs = _pairs(asked, held)
    if pairs is None or not all(rows_are_free(node, plan) for node in (asker, holder)):
        return None
    rows = _join(pairs, output_channels(asker), output_channels(holder))
    sides = [
        Operand(
            maker.name,
            maker.outputs[0].name,
            channel_axis(maker),
            tuple(members.tolist()),
            any(name in plan.activations for name in path),
        )
        for maker, members, path in ((asker, rows[0], first), (holder, rows[1], second))
    ]
    if asker is holder and np.any((rows[0] >= 0) & (rows[1] >= 0)):
        return None
    chain = [nodes[name] for name in attention.nodes]
    return LogitSite(sides[0], sides[1], holder.op != "MatMul" and _keeps_rows(model.graph, product, chain))


def _traced(
    model: Model, product: gs.Node, index: int, outer: Collection[str]
) -> tuple[gs.Node, np.ndarray, Collection[str]] | None:
    """The layer behind an operand, its channel per element of the operand, and the tensors between, if only that reads.

    Factors that are one fixed number are passed; they change neither gains nor that a shift is constant.
    """
    tensor, graph = product.inputs[index], model.graph
    scalars = _scalar_nodes(graph)
    source = tensor
    while (node := producer_of(source)) is not None and (node.op in MOVES or node.name in scalars):
        source = node.inputs[scalars.get(node.name, 0)]
    maker = producer_of(source)
    if maker is None or maker.op not in ("Conv", "Gemm", "MatMul") or not foldable(maker):
        return None
    labels = axis_labels(source, channel_axis(maker))
    spread = None
    if labels is not None:
        spread = spread_channels(graph, source, labels, model.opset, outer=outer, passing=frozenset(scalars))
    if spread is None or tensor.name not in spread.labels:
        return None
    mine = spread.labels[tensor.name]
    readers = [reader for reader in spread.readers if np.isin(reader.labels, mine).any()]
    if len(readers) != 1 or readers[0].node is not product or readers[0].index != index:
        return None
    carriers = [name for name, values in spread.labels.items() if np.isin(values, mine).any()]
    return maker, mine, carriers


def _scalar_nodes(graph: gs.Graph) -> dict[str, int]:
    """Multiplications and divisions by one fixed number -> the index of the other operand."""
    found = {}
    for node in graph.nodes:
        if node.op in ("Mul", "Div") and len(node.inputs) == 2:
            for index in (0, 1) if node.op == "Mul" else (0,):
                if scalar_of(node.inputs[1 - index]) not in (None, 0.0) and constant_of(node.inputs[index]) is None:
                    found[node.name] = index
    return found


def _pairs(asked: np.ndarray, held: np.ndarray) -> np.ndarray | None:
    """Pairs of channels of q [.., T, d] and k [.., d, S] that meet in the product, [n, 2]; None when tokens differ."""
    if (asked != asked[..., :1, :]).any() or (held != held[..., :1]).any():
        return None
    left, right = np.broadcast_arrays(asked[..., 0, :], held[..., 0])
    return np.unique(np.stack([left.reshape(-1), right.reshape(-1)], 1), axis=0)


def _join(pairs: np.ndarray, asking: int, holding: int) -> tuple[np.ndarray, np.ndarray]:
    """Groups of the channels of q and of k, -1 where unused: channels that are multiplied are in one group."""
    left, right = np.full(asking, -1), np.full(holding, -1)
    groups = np.arange(len(pairs))
    changed = True
    while changed:
        changed = False
        for side in (0, 1):
            for channel in np.unique(pairs[:, side]):
                members = pairs[:, side] == channel
                if len(set(groups[members])) > 1:
                    groups[np.isin(groups, groups[members])] = groups[members].min()
                    changed = True
    groups = np.unique(groups, return_inverse=True)[1]
    left[pairs[:, 0]], right[pairs[:, 1]] = groups, groups
    return left, right


def _keeps_rows(graph: gs.Graph, product: gs.Node, chain: list[gs.Node]) -> bool:
    """Whether a constant added to a row of the product is one in front of Softmax over the last axis."""
    inside = {node.name for node in chain}
    tensor = product.outputs[0]
    while len(tensor.outputs) == 1 and tensor.outputs[0].name in inside and not is_graph_output(graph, tensor):
        node = tensor.outputs[0]
        if node.op == "Softmax":
            return int(node.attrs.get("axis", -1)) in (-1, (rank_of(tensor) or 0) - 1)
        if not _passes_row(node, tensor):
            return False
        tensor = node.outputs[0]
    return False


def _passes_row(node: gs.Node, tensor: gs.Tensor) -> bool:
    result = node.outputs[0]
    if node.op in ("Add", "Identity", "Cast"):
        return True
    if node.op in ("Mul", "Div") and node.inputs[0] is tensor:
        factor = constant_of(node.inputs[1])
        return factor is not None and (factor.ndim == 0 or factor.shape[-1] == 1)
    if node.op == "Reshape":
        sizes = [dim_of(each, (rank_of(each) or 1) - 1) for each in (tensor, result)]
        return sizes[0] is not None and sizes[0] == sizes[1]
    if node.op == "Conv":
        weight = constant_of(node.inputs[1])
        plain = not any(node.attrs.get("pads", ())) and all(step == 1 for step in node.attrs.get("strides", (1,)))
        return plain and node.inputs[0] is tensor and weight is not None and set(weight.shape[2:]) == {1}
    return False
