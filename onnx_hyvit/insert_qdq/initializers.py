"""Weights, biases and constant operands as codes behind DequantizeLinear."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.edit import add_node, constant_of, new_constant, new_variable
from ..numerics import QParams, qparams_from_range, quantize
from ..numerics.weights import fit_scale_to_bias, quantize_bias, weight_qparams
from ..placement import Plan

Nodes = Mapping[str, gs.Node]
Tensors = Mapping[str, gs.Tensor]


def insert_weights(
    graph: gs.Graph,
    nodes: Nodes,
    tensors: Tensors,
    plan: Plan,
    given: Mapping[str, QParams],
    activations: Mapping[str, QParams],
) -> dict[str, QParams]:
    """Store the plan's weights as codes; a weight that several nodes share is stored once.

    Args:
        graph: Graph to edit.
        nodes: Its nodes by name.
        tensors: Its tensors by name.
        plan: The plan.
        given: Scales of weights that are already chosen; the others come from the weight's extremes.
        activations: Scales of activations; a weight scale grows where a bias would not fit into int32.

    Returns:
        The scales in use, by weight name.
    """
    biases = defaultdict(list)
    for bias in plan.biases.values():
        biases[bias.weight].append(bias)
    readers = _readers(nodes, plan)
    chosen: dict[str, QParams] = {}
    for name, spec in plan.weights.items():
        values = _value(tensors[name])
        qparams = given[name] if name in given else weight_qparams(values, spec)
        for bias in biases[name]:
            vector = _value(tensors[bias.tensor]).reshape(-1)
            qparams = fit_scale_to_bias(vector, activations[bias.activation].scale, qparams)
        result = _dequantized(graph, name, quantize(values, qparams), qparams.scale, qparams.zero_point, spec.axis)
        for node in readers[name]:
            node.inputs[1] = result
        chosen[name] = qparams
    return chosen


def insert_biases(
    graph: gs.Graph,
    nodes: Nodes,
    tensors: Tensors,
    plan: Plan,
    activations: Mapping[str, QParams],
    weights: Mapping[str, QParams],
) -> None:
    """Store the plan's biases as int32 codes, with the scale that the integer kernel implies."""
    made: dict[tuple[str, str, str], gs.Variable] = {}
    for bias in plan.biases.values():
        key = (bias.tensor, plan.source_of(bias.activation), bias.weight)
        if key not in made:
            vector = _value(tensors[bias.tensor]).reshape(-1)
            codes, scale = quantize_bias(vector, activations[bias.activation].scale, weights[bias.weight].scale)
            made[key] = _dequantized(graph, bias.tensor, codes, scale, None, 0)
        node = nodes[bias.node]
        for index, tensor in enumerate(node.inputs):
            if tensor.name == bias.tensor:
                node.inputs[index] = made[key]


def insert_constants(graph: gs.Graph, nodes: Nodes, tensors: Tensors, plan: Plan) -> None:
    """Store the constant operands of int8 additions, products and concatenations as codes."""
    made: dict[tuple[str, int], gs.Variable] = {}
    for name in plan.int8_nodes:
        node = nodes[name]
        if name in plan.absorbed:
            continue
        for index, tensor in enumerate(node.inputs):
            if tensor.name not in plan.constants:
                continue
            spec = plan.constant_spec(tensor.name, name)
            key = (tensor.name, spec.bits)
            if key not in made:
                values = _value(tensors[tensor.name])
                qparams = qparams_from_range(values.min(), values.max(), spec)
                codes = quantize(values, qparams)
                made[key] = _dequantized(graph, tensor.name, codes, qparams.scale, qparams.zero_point, None)
            node.inputs[index] = made[key]


def _readers(nodes: Nodes, plan: Plan) -> dict[str, list[gs.Node]]:
    """Int8 nodes that read each weight of the plan."""
    readers: dict[str, list[gs.Node]] = defaultdict(list)
    for name in plan.int8_nodes:
        node = nodes[name]
        if name not in plan.absorbed and len(node.inputs) > 1 and node.inputs[1].name in plan.weights:
            readers[node.inputs[1].name].append(node)
    return readers


def _value(tensor: gs.Tensor) -> np.ndarray:
    value = constant_of(tensor)
    assert value is not None, tensor.name
    return value


def _dequantized(
    graph: gs.Graph,
    stem: str,
    codes: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray | None,
    axis: int | None,
) -> gs.Variable:
    """Initializer ``codes`` behind a DequantizeLinear; returns its output."""
    inputs = [new_constant(graph, f"{stem}_quantized", codes), new_constant(graph, f"{stem}_scale", scale)]
    if zero_point is not None:
        inputs.append(new_constant(graph, f"{stem}_zero_point", zero_point))
    attrs: dict[str, object] = {} if scale.ndim == 0 or axis is None else {"axis": axis}
    result = new_variable(graph, f"{stem}_DequantizeLinear_Output", np.float32, codes.shape)
    add_node(graph, "DequantizeLinear", inputs, [result], stem=f"{stem}_DequantizeLinear", attrs=attrs)
    return result
