"""Where an activation can have one scale per channel although the kernels take one scale per tensor.

A *gain* k per channel divides the channels before they are rounded and multiplies them again afterwards, both inside
nodes that are there anyway (Q-HyViT's granularity choice, made deployable):

- *consumer* side: the activation is made by a float node and read by int8 nodes with weights. It is divided by k in the
  affine of a LayerNormalization or in constant Mul and Add nodes before it, else by a Mul of its own; the readers'
  weights of input channel c are multiplied by k_c.
- *producer* side: the activation is made by an int8 node with weights and read by float nodes. The weights and bias of
  output channel c are divided by k_c (their codes do not change, only their scale does); a Mul behind it multiplies.

QuantizeLinear or DequantizeLinear per channel could take the factor for free, but ONNX Runtime 1.31 runs them slowly: a
text recogniser with 31 of the former had 0.16x of its float speed, with 30 of the latter 0.79x, with as many float Mul
nodes 1.37x, and without gains 1.61x.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import onnx_graphsurgeon as gs

from ..graph import Model
from ..graph.edit import constant_of, is_graph_output, producer_of
from ..graph.linear import channel_axis, foldable, output_channels, weight_of
from ..placement import Plan

# Float nodes behind a DequantizeLinear per channel: operators that no int8 fusion of a runtime looks for.
PLAIN_FLOAT_READERS = frozenset(
    {"HardSwish", "HardSigmoid", "Gelu", "Erf", "Tanh", "LayerNormalization", "InstanceNormalization", "Elu", "Mish"}
)


@dataclass(frozen=True)
class GainSite:
    """An activation that may have a gain per channel.

    Args:
        tensor: Its name.
        side: Where the gain is hidden, see the module.
        axis: Its channel axis, 1 or -1.
        channels: Number of channels.
        weighted: Names of the nodes whose weights compensate: the readers, or the one producer.
        fold: ``affine`` when nodes that are there take the factor, ``mul`` when it costs a node.
    """

    tensor: str
    side: Literal["consumer", "producer"]
    axis: int
    channels: int
    weighted: tuple[str, ...]
    fold: Literal["affine", "mul"] = "mul"


def find_gain_sites(model: Model, plan: Plan) -> list[GainSite]:
    """All sites of ``model`` under ``plan``; each is exact in float and plain Q/DQ per tensor for every runtime.

    Args:
        model: Float model that the plan was made for.
        plan: The plan.

    Returns:
        Sites in graph order.
    """
    tensors = model.graph.tensors()
    carried_sources = set(plan.tied.values())
    sites = []
    for name in plan.activations:
        if name in plan.tied or name in carried_sources:
            continue
        site = _consumer_site(model.graph, tensors[name], plan) or _producer_site(model.graph, tensors[name], plan)
        if site is not None:
            sites.append(site)
    return sites


def _consumer_site(graph: gs.Graph, tensor: gs.Tensor, plan: Plan) -> GainSite | None:
    int8 = {*plan.int8_nodes, *plan.carried_nodes}
    producer = producer_of(tensor)
    if producer is None or producer.name in int8:
        return None
    readers = [node for node in tensor.outputs if node.name in int8]
    if not readers or any(_refuses_input_gain(node, tensor) for node in readers):
        return None
    axes = {channel_axis(node) for node in readers}
    counts = {_input_channels(node) for node in readers}
    if len(axes) != 1 or len(counts) != 1:
        return None
    axis = axes.pop()
    only = len(readers) == len(tensor.outputs) and not is_graph_output(graph, tensor)
    fold: Literal["affine", "mul"] = "affine" if only and takes_division(graph, tensor, axis, int8) else "mul"
    if fold == "mul" and producer.name in plan.paired:
        return None  # the Mul would read codes already, and be rounded again
    return GainSite(tensor.name, "consumer", axis, counts.pop(), tuple(node.name for node in readers), fold)


def _refuses_input_gain(node: gs.Node, tensor: gs.Tensor) -> bool:
    if node.op not in ("Conv", "Gemm", "MatMul") or not foldable(node):
        return True
    return node.inputs[0] is not tensor or sum(other is tensor for other in node.inputs) != 1


def _input_channels(node: gs.Node) -> int:
    weight = weight_of(node)
    assert weight is not None, node.name
    if node.op == "Conv":
        return int(weight.shape[1]) * int(node.attrs.get("group", 1))
    return int(weight.shape[1 if node.op == "Gemm" and node.attrs.get("transB", 0) else 0])


def takes_division(graph: gs.Graph, tensor: gs.Tensor, axis: int, int8: Collection[str]) -> bool:
    """Whether float nodes before ``tensor`` can absorb a division per channel: see ``gains.divide``.

    Args:
        graph: Graph of the tensor.
        tensor: A tensor that is read by the consumers of the gain only.
        axis: Its channel axis, 1 or -1.
        int8: Names of the nodes that run on codes; they absorb nothing.
    """
    node = producer_of(tensor)
    if node is None or node.name in int8:
        return False
    if node.op == "LayerNormalization":
        return axis == -1 and int(node.attrs.get("axis", -1)) == -1 and _constants(node, range(1, len(node.inputs)))
    if node.op not in ("Mul", "Add") or len(node.inputs) != 2:
        return False
    operand = constant_operand(node)
    if operand is None or tensor.shape is None or _broadcast_rank(node, operand) > len(tensor.shape):
        return False
    if node.op == "Mul":
        return True
    inner = node.inputs[1 - operand]
    return len(inner.outputs) == 1 and not is_graph_output(graph, inner) and takes_division(graph, inner, axis, int8)


def constant_operand(node: gs.Node) -> int | None:
    """Index of the only constant operand of a node with two inputs, or None."""
    found = [index for index, tensor in enumerate(node.inputs) if constant_of(tensor) is not None]
    return found[0] if len(found) == 1 else None


def _constants(node: gs.Node, indices: range) -> bool:
    return all(constant_of(node.inputs[index]) is not None for index in indices)


def _broadcast_rank(node: gs.Node, operand: int) -> int:
    value = constant_of(node.inputs[operand])
    assert value is not None, node.name
    return value.ndim


def _producer_site(graph: gs.Graph, tensor: gs.Tensor, plan: Plan) -> GainSite | None:
    producer = producer_of(tensor)
    if producer is None or producer.name not in plan.int8_nodes or is_graph_output(graph, tensor):
        return None
    if not tensor.outputs or any(node.op not in PLAIN_FLOAT_READERS for node in tensor.outputs):
        return None
    if any(node.name not in plan.float_nodes or node.inputs[0] is not tensor for node in tensor.outputs):
        return None
    if any(node.name in plan.paired for node in tensor.outputs):
        return None
    weighted = _weighted_of(producer, plan.absorbed)
    if weighted is None:
        return None
    return GainSite(tensor.name, "producer", channel_axis(weighted), output_channels(weighted), (weighted.name,))


def _weighted_of(producer: gs.Node, absorbed: Collection[str]) -> gs.Node | None:
    """The node with weights behind ``producer``, which may be itself or a Relu that the node absorbed."""
    if producer.op == "Relu" and producer.name in absorbed:
        inner = producer_of(producer.inputs[0])
        return _weighted_of(inner, ()) if inner is not None and len(producer.inputs[0].outputs) == 1 else None
    usable = producer.op in ("Conv", "Gemm") and foldable(producer)
    return producer if usable else None
