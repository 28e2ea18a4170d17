"""Evaluate one node on fixed inputs with ONNX's reference implementation: what constant folding is made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx.reference
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from .edit import has_subgraph

RANDOM_OPS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
KEPT_OPS = frozenset({"QuantizeLinear", "DequantizeLinear", "Optional", "SequenceConstruct", "SequenceEmpty"})


def is_evaluable(node: gs.Node) -> bool:
    """Whether the node's value is a function of its inputs that the reference implementation can compute."""
    return (
        node.domain in (None, "", "ai.onnx")
        and node.op not in RANDOM_OPS
        and node.op not in KEPT_OPS
        and not has_subgraph(node)
        and not any(isinstance(value, gs.Node.AttributeRef) for value in node.attrs.values())
    )


def evaluate_node(node: gs.Node, inputs: Sequence[np.ndarray | None], opset: int) -> list[np.ndarray] | None:
    """Outputs of ``node`` for given inputs.

    Args:
        node: An evaluable node (``is_evaluable``).
        inputs: One array per node input, None for an omitted one.
        opset: Default-domain opset whose semantics apply.

    Returns:
        One array per node output, or None when the reference implementation cannot compute it.
    """
    names = ["" if array is None else f"i{index}" for index, array in enumerate(inputs)]
    outputs = [f"o{index}" for index in range(len(node.outputs))]
    proto = onnx.helper.make_node(node.op, names, outputs)
    try:
        proto.attribute.extend(OnnxExporter.export_attributes(node.attrs))
        graph = onnx.helper.make_graph(
            [proto],
            "node",
            [onnx.ValueInfoProto(name=name) for name in names if name],
            [onnx.ValueInfoProto(name=name) for name in outputs],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
        feeds = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
        results = onnx.reference.ReferenceEvaluator(model).run(outputs, feeds)
    except Exception:  # an operator that the reference lacks or refuses simply stays in the graph
        return None
    arrays = [np.asarray(result) for result in results]
    return arrays if all(array.dtype != object for array in arrays) else None
