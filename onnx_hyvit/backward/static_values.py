"""Values of tensors that are fixed once the shapes are: initializers, constants, and the shape arithmetic on them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

MAX_COMPUTED = 4096  # elements; shape arithmetic is small, anything larger is data

_FOLDABLE = frozenset(
    [
        "Add",
        "Cast",
        "Ceil",
        "Concat",
        "ConstantOfShape",
        "Div",
        "Equal",
        "Expand",
        "Flatten",
        "Floor",
        "Gather",
        "Identity",
        "Less",
        "Greater",
        "Max",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "Range",
        "ReduceProd",
        "ReduceSum",
        "Reshape",
        "ScatterND",
        "Slice",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    ]
)


def find_static_values(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Evaluate what depends on shapes only.

    Args:
        proto: Model, topologically sorted.
        shapes: Concrete shape of every tensor.

    Returns:
        Value of every initializer, Constant, Shape and Size output, and of small computations on these.
    """
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "Constant":
            value = _constant(node)
            if value is not None:
                values[node.output[0]] = value
        elif node.op_type in ("Shape", "Size") and node.input[0] in shapes:
            values[node.output[0]] = _shape_of(node, shapes[node.input[0]])
        elif node.op_type in _FOLDABLE:
            values.update(_fold(node, values, proto))
    return values


def _constant(node: onnx.NodeProto) -> np.ndarray | None:
    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return numpy_helper.to_array(value)
    if attribute.name in ("value_float", "value_floats"):
        return np.asarray(value, np.float32)
    return np.asarray(value, np.int64) if attribute.name in ("value_int", "value_ints") else None


def _shape_of(node: onnx.NodeProto, shape: tuple[int, ...]) -> np.ndarray:
    if node.op_type == "Size":
        return np.asarray(int(np.prod(shape)), np.int64)
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    return np.asarray(shape[slice(bounds.get("start", 0), bounds.get("end", len(shape)))], np.int64)


def _fold(node: onnx.NodeProto, values: dict[str, np.ndarray], proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    inputs = [name for name in node.input if name]
    if any(name not in values for name in inputs) or sum(values[name].size for name in inputs) > MAX_COMPUTED:
        return {}
    graph = onnx.helper.make_graph(
        [node],
        "fold",
        [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(values[name].dtype), values[name].shape
            )
            for name in dict.fromkeys(inputs)
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
    )
    model = onnx.helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    try:
        results = ReferenceEvaluator(model).run(None, {name: values[name] for name in inputs})
    except Exception:  # the value stays unknown, and rules that need it say so
        return {}
    return {
        name: np.asarray(result)
        for name, result in zip([name for name in node.output if name], results, strict=True)
        if np.asarray(result).size <= MAX_COMPUTED
    }
