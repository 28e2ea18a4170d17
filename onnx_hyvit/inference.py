"""ONNX shape inference with data propagation, made safe for models that are not to be trusted."""

from __future__ import annotations

import onnx
import onnx.shape_inference

MAX_RANGE = 1 << 20
_HIDDEN = "onnx_hyvit.hidden"


def propagate_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Shape inference that also follows the values of shapes.

    ONNX's propagation writes out every element of a Range, whatever its length, which a tiny model can make larger than
    any memory. A Range that is not known to be short is hidden from it.

    Args:
        proto: Model; not changed.

    Returns:
        A copy with ``value_info``.

    Raises:
        Exception: Whatever the inference raises on a model that it does not understand.
    """
    long = [index for index, node in enumerate(proto.graph.node) if _may_be_long(node, proto.graph)]
    if not long:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    hidden = onnx.ModelProto()
    hidden.CopyFrom(proto)
    hidden.opset_import.append(onnx.helper.make_opsetid(_HIDDEN, 1))
    for index in long:
        hidden.graph.node[index].domain = _HIDDEN
    inferred = onnx.shape_inference.infer_shapes(hidden, data_prop=True)
    inferred.opset_import.pop()
    for index in long:
        inferred.graph.node[index].domain = proto.graph.node[index].domain
    return inferred


def _may_be_long(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    """Whether the node is, or holds in a body, a Range that is not known to be short."""
    bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    if any(_may_be_long(inner, body) for body in bodies for inner in body.node):
        return True
    if node.op_type != "Range":
        return False
    ends = [_scalar(name, graph) for name in node.input]
    if len(ends) != 3 or None in ends:
        return True
    start, limit, step = (float(end) for end in ends if end is not None)
    return not (step and abs(limit - start) / abs(step) <= MAX_RANGE)


def _scalar(name: str, graph: onnx.GraphProto) -> float | None:
    tensors = [tensor for tensor in graph.initializer if tensor.name == name]
    for node in graph.node:
        if node.op_type == "Constant" and name in node.output:
            tensors += [attribute.t for attribute in node.attribute if attribute.name == "value"]
    try:
        return float(onnx.numpy_helper.to_array(tensors[0]).item()) if tensors else None
    except Exception:  # damaged, or of many elements
        return None
