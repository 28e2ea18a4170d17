"""Normalizations and activation functions in a graph."""

from __future__ import annotations

from ..graph.recognise import Activation, Norm
from .flow import Flow

NORM_KINDS = {
    "LayerNormalization": "layer_norm",
    "BatchNormalization": "batch_norm",
    "InstanceNormalization": "instance_norm",
    "GroupNormalization": "group_norm",
    "RMSNormalization": "rms_norm",
    "SimplifiedLayerNormalization": "rms_norm",
    "LpNormalization": "l2_norm",
}
ACTIVATION_KINDS = {
    "Relu": "relu",
    "Gelu": "gelu",
    "HardSwish": "hard_swish",
    "HardSigmoid": "hard_sigmoid",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "LeakyRelu": "leaky_relu",
    "PRelu": "prelu",
    "Elu": "elu",
    "Selu": "selu",
    "Softplus": "softplus",
    "Mish": "mish",
    "Clip": "clip",
}


def find_norms(flow: Flow) -> list[Norm]:
    """Normalizations that are one operator."""
    return [
        Norm(NORM_KINDS[node.op], (node.name,), node.inputs[0].name, node.outputs[0].name)
        for node in flow.nodes
        if node.op in NORM_KINDS
    ]


def find_activations(flow: Flow) -> list[Activation]:
    """Activation functions that are one operator, and SiLU as a product with its own sigmoid."""
    found: list[Activation] = []
    for position, node in enumerate(flow.nodes):
        kind = ACTIVATION_KINDS.get(node.op)
        if kind is None:
            continue
        source, output = node.inputs[0].name, node.outputs[0].name
        nodes: tuple[str, ...] = (node.name,)
        gate = [place for place in flow.consumers(position) if flow.nodes[place].op == "Mul"]
        if kind in ("sigmoid", "hard_sigmoid") and gate and source in flow.inputs(gate[0]):
            kind = "silu" if kind == "sigmoid" else "hard_swish"
            nodes, output = (node.name, flow.nodes[gate[0]].name), flow.outputs(gate[0])[0]
        found.append(Activation(kind, nodes, source, output))
    return found
