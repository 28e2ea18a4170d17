"""Evaluate one node on fixed inputs with ONNX's reference implementation: what constant folding is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.reference
import onnx.shape_inference
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from .edit import has_subgraph

RANDOM_OPS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
KEPT_OPS = frozenset({"QuantizeLinear", "DequantizeLinear", "Optional", "SequenceConstruct", "SequenceEmpty"})

MAX_BYTES = 256 << 20
_READ_BY_INFERENCE = 4096  # bytes: shapes, axes, scales and the like


def is_evaluable(node: gs.Node) -> bool:
    """Whether the node's value is a function of its inputs that the reference implementation can compute."""
    return (
        node.domain in (None, "", "ai.onnx")
        and node.op not in RANDOM_OPS
        and node.op not in KEPT_OPS
        and not has_subgraph(node)
        and not any(isinstance(value, gs.Node.AttributeRef) for value in node.attrs.values())
    )


def evaluate_node(
    node: gs.Node, inputs: Sequence[np.ndarray | None], opset: int, max_bytes: int = MAX_BYTES
) -> list[np.ndarray] | None:
    """Outputs of ``node`` for given inputs.

    Args:
        node: An evaluable node (``is_evaluable``).
        inputs: One array per node input, None for an omitted one.
        opset: Default-domain opset whose semantics apply.
        max_bytes: Larger outputs are not computed (8 bytes an element); their size is known from the inputs.

    Returns:
        One array per node output, or None when they are too large or the reference implementation cannot compute them.
    """
    names = ["" if array is None else f"i{index}" for index, array in enumerate(inputs)]
    outputs = [f"o{index}" for index in range(len(node.outputs))]
    proto = onnx.helper.make_node(node.op, names, outputs)
    try:
        proto.attribute.extend(OnnxExporter.export_attributes(node.attrs))
        graph = onnx.helper.make_graph(
            [proto],
            "node",
            [_value_info(name, array) for name, array in zip(names, inputs, strict=True) if array is not None],
            [onnx.ValueInfoProto(name=name) for name in outputs],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
        feeds = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
        if _output_bytes(model, feeds) > max_bytes:
            return None
        results = onnx.reference.ReferenceEvaluator(model).run(outputs, feeds)
    except Exception:  # an operator that the reference lacks or refuses simply stays in the graph
        return None
    arrays = [np.asarray(result) for result in results]
    return arrays if all(array.dtype != object for array in arrays) else None


def _value_info(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def _output_bytes(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> int:
    """Size of all outputs, from shape inference; where that knows nothing, of an outer product of the inputs."""
    with_values = onnx.ModelProto()
    with_values.CopyFrom(model)
    for name, array in feeds.items():
        if array.nbytes <= _READ_BY_INFERENCE:
            with_values.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array, order="C"), name))
    inferred = onnx.shape_inference.infer_shapes(with_values)
    total = 0
    for value in inferred.graph.output:
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            total += 8 * math.prod(dim.dim_value for dim in dims)
        elif len(feeds) > 1:
            total += 8 * math.prod(max(1, array.size) for array in feeds.values())
    return total
