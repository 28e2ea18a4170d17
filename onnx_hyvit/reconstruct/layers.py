"""The int8 layers of a plan as rows of weights, whatever operator they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from ..graph import Model
from ..graph.edit import constant_of, has_input
from ..graph.linear import output_channels, set_bias, weight_of
from ..numerics import QuantSpec
from ..numerics.moments import ConvGeometry
from ..placement import Plan


@dataclass(frozen=True)
class Layer:
    """An int8 layer whose rounding can be chosen.

    Args:
        node: Name of its Conv, Gemm or MatMul.
        activation: The tensor that it reads, as the float graph calls it.
        weight: Name of its weight.
        bias: Name of its bias; None when it has none (a MatMul without a fixed addition behind it).
        spec: Codes of the weight.
        geometry: How a Conv reads its input, None for a linear layer.
        transposed: Whether a linear weight is stored ``[in, out]``.
        output: The tensor that it writes, bias included.
    """

    node: str
    activation: str
    weight: str
    bias: str | None
    spec: QuantSpec
    geometry: ConvGeometry | None
    transposed: bool
    output: str

    @property
    def group(self) -> int:
        """Groups of the convolution, 1 for a linear layer."""
        return self.geometry.group if self.geometry else 1

    def rows(self, weight: np.ndarray) -> np.ndarray:
        """The weight as float64 rows ``[group, out / group, in]``."""
        wide = weight.astype(np.float64)
        if self.geometry is None and self.transposed:
            wide = wide.T
        return wide.reshape(self.group, wide.shape[0] // self.group, -1)

    def weight_of_rows(self, rows: np.ndarray, like: np.ndarray) -> np.ndarray:
        """The inverse of ``rows``: float32, stored as ``like`` is."""
        flat = rows.reshape(-1, rows.shape[-1])
        if self.geometry is None:
            flat = flat.T if self.transposed else flat
        return flat.reshape(like.shape).astype(np.float32)

    def over_positions(self, weights: np.ndarray, inputs: np.ndarray) -> np.ndarray | None:
        """Weights of the positions of one sample for all those that inputs of this shape have.

        Args:
            weights: Weight of each output position of a sample, ``[1, *output space]`` for a Conv, else ``[...]``.
            inputs: What the layer reads, a whole number of samples.

        Returns:
            As ``GramAccumulator`` takes them: ``[B, *output space]`` for a Conv, else ``[...]``; None when they do not
            fit.
        """
        counts = inputs.shape[:-1] if self.geometry is None else (inputs.shape[0], *weights.shape[1:])
        samples, rest = divmod(math.prod(counts), max(1, weights.size))
        return None if rest else np.tile(weights.reshape(-1), samples).reshape(counts)


def give_biases(model: Model, plan: Plan) -> int:
    """Give every int8 Conv and Gemm a bias (zeros), so that it can be corrected; returns how many got one.

    The integer kernel adds it for free. Make the plan again afterwards.
    """
    count = 0
    for node in model.graph.nodes:
        bare = node.op in ("Conv", "Gemm") and weight_of(node) is not None and not has_input(node, 2)
        if bare and node.name in plan.int8_nodes:
            set_bias(model.graph, node, np.zeros(output_channels(node), np.float32))
            count += 1
    return count


def find_layers(model: Model, plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> list[Layer]:
    """Layers of ``plan`` in graph order; those that share a weight or a bias with another node are left out.

    Args:
        model: The float model.
        plan: Its plan.
        shapes: Concrete shapes, needed for convolutions whose padding depends on the size of the input.
    """
    readers: dict[str, int] = {}
    for node in model.graph.nodes:
        for tensor in node.inputs:
            readers[tensor.name] = readers.get(tensor.name, 0) + 1
    behind = {into: name for name, into in plan.absorbed.items()}
    nodes = {node.name: node for node in model.graph.nodes}
    layers = []
    for node in model.graph.nodes:
        if node.name not in plan.int8_nodes or node.name in plan.absorbed or weight_of(node) is None:
            continue
        if node.op == "ConvTranspose" or node.inputs[1].name not in plan.weights:
            continue
        layer = _layer(node, plan, nodes.get(behind.get(node.name, "")), shapes)
        if readers[layer.weight] == 1 and (layer.bias is None or readers[layer.bias] == 1):
            layers.append(layer)
    return layers


def _layer(node: gs.Node, plan: Plan, follower: gs.Node | None, shapes: Mapping[str, tuple[int, ...]]) -> Layer:
    bias = node.inputs[2].name if node.op != "MatMul" and has_input(node, 2) else None
    output = node.outputs[0].name
    if node.op == "MatMul" and follower is not None and follower.op == "Add":
        bias = next(tensor.name for tensor in follower.inputs if constant_of(tensor) is not None)
        output = follower.outputs[0].name
    return Layer(
        node=node.name,
        activation=node.inputs[0].name,
        weight=node.inputs[1].name,
        bias=bias,
        spec=plan.weights[node.inputs[1].name],
        geometry=_geometry(node, shapes) if node.op == "Conv" else None,
        transposed=node.op == "MatMul" or not node.attrs.get("transB", 0),
        output=output,
    )


def _geometry(node: gs.Node, shapes: Mapping[str, tuple[int, ...]]) -> ConvGeometry:
    weight = weight_of(node)
    assert weight is not None, node.name
    kernel = tuple(weight.shape[2:])
    rank = len(kernel)
    strides = tuple(node.attrs.get("strides", [1] * rank))
    dilations = tuple(node.attrs.get("dilations", [1] * rank))
    pads = tuple(node.attrs.get("pads", [0] * 2 * rank))
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = _same_pads(shapes[node.inputs[0].name][2:], kernel, strides, dilations, auto == "SAME_UPPER")
    return ConvGeometry(kernel, strides, pads, dilations, int(node.attrs.get("group", 1)))


def _same_pads(
    size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], upper: bool
) -> tuple[int, ...]:
    """Begins, then ends, of ONNX's SAME padding: ``ceil(size / stride)`` outputs, an odd pixel at the end if upper."""
    begins, ends = [], []
    for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if upper else large)
        ends.append(large if upper else small)
    return (*begins, *ends)


def parameters_of(layers: list[Layer]) -> list[str]:
    """Names of the weights and biases of ``layers``."""
    return [name for layer in layers for name in (layer.weight, layer.bias) if name is not None]
