"""A copy of a model whose outputs are what calibration wants: whole tensors, or their extremes reduced in the graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

from ..inference import propagate_shapes
from .session import RuntimeFailure

_PREFIX = "onnx_hyvit_calibration"
# ReduceMin and ReduceMax of ONNX Runtime pass over NaN, its ReduceSum does not. From finite inputs and weights these
# are the operators that make the first NaN; an overflow shows as Inf in the extremes.
_NAN_MAKERS = frozenset({"Log", "Sqrt", "Div", "Pow", "Reciprocal", "Acos", "Asin", "Acosh", "Atanh", "Mod", "Softmax"})
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


def tensor_types(proto: onnx.ModelProto, feeds: Mapping[str, Sequence[int]]) -> dict[str, onnx.TypeProto.Tensor]:
    """Element type and shape of the tensors that shape inference reaches, with the inputs set to concrete shapes.

    Args:
        proto: The model; unchanged.
        feeds: Input name to shape.
    """
    concrete = onnx.ModelProto()
    concrete.CopyFrom(proto)
    for value in concrete.graph.input:
        if value.name in feeds:
            value.type.tensor_type.ClearField("shape")
            for size in feeds[value.name]:
                value.type.tensor_type.shape.dim.add().dim_value = size
    del concrete.graph.value_info[:]
    for value in concrete.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        graph = propagate_shapes(concrete).graph
    except Exception:  # above protobuf's limit, or an operator that inference does not know: nothing is known
        graph = proto.graph
    values = [*graph.input, *graph.value_info, *graph.output]
    return {value.name: value.type.tensor_type for value in values if value.type.HasField("tensor_type")}


def concrete_shape(kind: onnx.TypeProto.Tensor | None) -> tuple[int, ...] | None:
    """The shape, or None when a dimension or the rank is unknown."""
    if kind is None or not kind.HasField("shape"):
        return None
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    return None if None in dims else tuple(dim for dim in dims if dim is not None)


def check_tensors(proto: onnx.ModelProto, tensors: Iterable[str], types: Mapping[str, onnx.TypeProto.Tensor]) -> None:
    """Refuse tensors that the main graph does not make, or that are no floats.

    Raises:
        RuntimeFailure: Names the first such tensor.
    """
    graph = proto.graph
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    known.update(name for node in graph.node for name in node.output)
    for name in tensors:
        if name not in known:
            raise RuntimeFailure(f"tensor {name!r} is not in the main graph, so it cannot be observed")
        kind = types[name].elem_type if name in types else TensorProto.FLOAT
        if kind and kind not in _FLOATS:
            raise RuntimeFailure(
                f"tensor {name!r} is {TensorProto.DataType.Name(kind)}; only float tensors can be observed"
            )


def expose(
    proto: onnx.ModelProto,
    fetched: Sequence[str],
    reduced: Mapping[str, Sequence[int] | None],
    types: Mapping[str, onnx.TypeProto.Tensor],
) -> tuple[onnx.ModelProto, dict[str, tuple[str, str]]]:
    """A copy of ``proto`` with other outputs.

    Args:
        proto: The model; unchanged.
        fetched: Tensors to output whole.
        reduced: Tensor to the axes over which its minimum and maximum are taken; None is all axes.
        types: From ``tensor_types``; float16 tensors are widened before they are reduced.

    Returns:
        The copy, whose outputs are ``fetched`` and then the extremes; and for each reduced tensor the names of the
        outputs that are its minimum and its maximum.
    """
    exposed = onnx.ModelProto()
    exposed.CopyFrom(proto)
    graph = exposed.graph
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)
    del graph.output[:]
    graph.output.extend(helper.make_empty_tensor_value_info(name) for name in fetched)
    for value in graph.output:
        value.CopyFrom(helper.make_tensor_value_info(value.name, _element(types, value.name), None))
    names: dict[str, tuple[str, str]] = {}
    for index, (tensor, axes) in enumerate(reduced.items()):
        names[tensor] = _reduce(graph, tensor, axes, f"{_PREFIX}_{index}", opset, _element(types, tensor))
    return exposed, names


def watch_for_nan(exposed: onnx.ModelProto, outputs: Sequence[str], types: Mapping[str, onnx.TypeProto.Tensor]) -> dict:
    """Add to ``exposed`` a sum, NaN if a value is NaN, of everything that can become NaN first, and of ``outputs``.

    Args:
        exposed: A model from ``expose``; gets more outputs.
        outputs: Outputs of the original model.
        types: From ``tensor_types``; only tensors known to be float32 are watched.

    Returns:
        Tensor to the name of the output that is its sum.
    """
    graph = exposed.graph
    makers = [node.output[0] for node in graph.node if node.op_type in _NAN_MAKERS]
    names: dict[str, str] = {}
    for tensor in dict.fromkeys([*makers, *outputs]):
        if tensor in types and types[tensor].elem_type == TensorProto.FLOAT:
            name = names[tensor] = f"{_PREFIX}_sum_{len(names)}"
            graph.node.append(helper.make_node("ReduceSum", [tensor], [name], name, keepdims=0))
            graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return names


def _element(types: Mapping[str, onnx.TypeProto.Tensor], name: str) -> int:
    return (types[name].elem_type if name in types else 0) or TensorProto.FLOAT


def _reduce(
    graph: onnx.GraphProto, tensor: str, axes: Sequence[int] | None, prefix: str, opset: int, element: int
) -> tuple[str, str]:
    """Append the reduction of one tensor; returns the names of its minimum and maximum."""
    if element != TensorProto.FLOAT:
        graph.node.append(helper.make_node("Cast", [tensor], [f"{prefix}_float"], f"{prefix}_cast", to=1))
        tensor = f"{prefix}_float"
    inputs: list[str] = [tensor]
    attributes: dict[str, Any] = {"keepdims": 0}
    if axes is not None and opset >= 18:
        inputs.append(f"{prefix}_axes")
        graph.initializer.append(helper.make_tensor(inputs[1], TensorProto.INT64, [len(axes)], list(axes)))
    elif axes is not None:
        attributes["axes"] = list(axes)
    made = []
    for op, suffix in (("ReduceMin", "low"), ("ReduceMax", "high")):
        name = f"{prefix}_{suffix}"
        graph.node.append(helper.make_node(op, inputs, [name], name, **attributes))
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        made.append(name)
    return made[0], made[1]
