"""The graph under construction: rules emit nodes and constants onto it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ..errors import ModelError
from .static_values import find_static_values

MIN_OPSET = 13
_BOOLEAN = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or"})
_REDUCE_AXES_INPUT = {"ReduceSum": 13}  # the other reductions read their axes from an input since opset 18


class Tape:
    """Emits nodes behind a forward graph whose shapes are all known.

    Args:
        proto: Forward model; not changed.
        shapes: Concrete shape of every tensor.

    Attributes:
        opset: Default-domain opset of the model.
        nodes: Emitted nodes, in order.
        initializers: Emitted constants.

    Raises:
        ModelError: The opset is below 13.
    """

    def __init__(self, proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
        if self.opset < MIN_OPSET:
            raise ModelError(f"gradients need opset {MIN_OPSET} or higher, found {self.opset}; raise the model's opset")
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._shapes = dict(shapes)
        self._values = find_static_values(proto, shapes)
        self._dtypes = _element_types(proto)
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._used = _used_names(proto)
        self._count = 0

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Concrete shape of a forward tensor.

        Raises:
            ModelError: The shape was not given.
        """
        try:
            return self._shapes[tensor]
        except KeyError as error:
            value = self._values.get(tensor)
            if value is not None:
                return value.shape
            raise ModelError(f"gradients need the shape of tensor {tensor!r}, which was not given") from error

    def value(self, tensor: str) -> np.ndarray | None:
        """Value of a forward tensor that does not depend on the input's values, else None."""
        return self._values.get(tensor)

    def dtype(self, tensor: str) -> np.dtype:
        """Element type of a forward or emitted tensor; float32 where ONNX cannot infer it."""
        return self._dtypes.get(tensor, np.dtype(np.float32))

    def fresh(self, stem: str) -> str:
        """A tensor name that nothing uses yet."""
        while True:
            self._count += 1
            name = f"vjp/{stem}_{self._count}"
            if name not in self._used:
                self._used.add(name)
                return name

    def const(self, value: np.ndarray) -> str:
        """An initializer; equal ones are shared."""
        value = np.ascontiguousarray(value)
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            name = self.fresh("const")
            self.initializers.append(numpy_helper.from_array(value, name))
            self._constants[key] = name
            self._dtypes[name] = value.dtype
        return self._constants[key]

    def ints(self, values: Sequence[int]) -> str:
        """An int64 vector as an initializer."""
        return self.const(np.asarray(values, np.int64).reshape(-1))

    def op(self, op: str, *inputs: str | float, **attrs: Any) -> str:
        """Emit a node with one output.

        Args:
            op: Operator of the default domain.
            inputs: Tensor names; numbers become scalars of the first named tensor's element type.
            attrs: Attributes; None ones are left out.

        Returns:
            Name of the output.
        """
        return self.ops(op, 1, *inputs, **attrs)[0]

    def ops(self, op: str, count: int, *inputs: str | float, **attrs: Any) -> list[str]:
        """Emit a node with ``count`` outputs; see ``op``."""
        like = next((value for value in inputs if isinstance(value, str) and value), "")
        if op == "Where":
            like = next(value for value in inputs[1:] if isinstance(value, str))
        dtype = self.dtype(like)
        names = [value if isinstance(value, str) else self.const(np.asarray(value, dtype)) for value in inputs]
        outputs = [self.fresh(op) for _ in range(count)]
        attrs = {key: value for key, value in attrs.items() if value is not None}
        self.nodes.append(onnx.helper.make_node(op, names, outputs, name=outputs[0], **attrs))
        for output in outputs:
            self._dtypes[output] = np.dtype(bool) if op in _BOOLEAN else dtype
        return outputs

    def cast(self, tensor: str, dtype: np.dtype) -> str:
        """``tensor`` with another element type; itself when it has it already."""
        if self.dtype(tensor) == dtype:
            return tensor
        output = self.op("Cast", tensor, to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
        self._dtypes[output] = np.dtype(dtype)
        return output

    def reshape(self, tensor: str, shape: Sequence[int]) -> str:
        """``tensor`` in another shape."""
        return self.op("Reshape", tensor, self.ints(shape))

    def transpose(self, tensor: str, perm: Sequence[int]) -> str:
        """``tensor`` with its axes permuted; itself for the identity."""
        return tensor if list(perm) == list(range(len(perm))) else self.op("Transpose", tensor, perm=list(perm))

    def reduce(self, op: str, tensor: str, axes: Sequence[int], keepdims: bool = True) -> str:
        """A reduction over constant axes, in the form that the opset wants; ``tensor`` itself for no axes."""
        if not axes:
            return tensor
        if self.opset >= _REDUCE_AXES_INPUT.get(op, 18):
            return self.op(op, tensor, self.ints(axes), keepdims=int(keepdims))
        return self.op(op, tensor, axes=list(axes), keepdims=int(keepdims))

    def pad(self, tensor: str, before: Sequence[int], after: Sequence[int]) -> str:
        """Zeros around ``tensor``; negative amounts crop. ``tensor`` itself when all are 0."""
        if not any(before) and not any(after):
            return tensor
        return self.op("Pad", tensor, self.ints([*before, *after]), mode="constant")

    def unbroadcast(self, gradient: str, source: Sequence[int], target: Sequence[int]) -> str:
        """Sum a gradient of shape ``source`` over the axes along which ``target`` was broadcast to it."""
        if tuple(source) == tuple(target):
            return gradient
        lead = len(source) - len(target)
        axes = [axis for axis in range(len(source)) if axis < lead or target[axis - lead] != source[axis]]
        gradient = self.reduce("ReduceSum", gradient, axes)
        return self.reshape(gradient, target) if lead else gradient

    def zeros(self, tensor: str) -> str:
        """Zeros of a forward tensor's shape, not stored in the file."""
        value = numpy_helper.from_array(np.zeros(1, self.dtype(tensor)))
        output = self.op("ConstantOfShape", self.ints(self.shape(tensor)), value=value)
        self._dtypes[output] = self.dtype(tensor)
        return output

    def contract(self, tensor: str, rank: int, axis: int, matrix: str | np.ndarray) -> str:
        """Linear map along one axis: ``y[.., j, ..] = sum_i x[.., i, ..] matrix[i, j]``, as one MatMul.

        Args:
            tensor: Input of ``rank`` axes.
            rank: Number of axes.
            axis: Axis to map, >= 0.
            matrix: ``[from, to]``, an array or a tensor name.
        """
        if axis == rank - 2:
            name = self.const(matrix.T) if isinstance(matrix, np.ndarray) else self.transpose(matrix, [1, 0])
            return self.op("MatMul", name, tensor)
        name = self.const(matrix) if isinstance(matrix, np.ndarray) else matrix
        perm = [other for other in range(rank) if other != axis] + [axis]
        mapped = self.op("MatMul", self.transpose(tensor, perm), name)
        return self.transpose(mapped, [perm.index(other) for other in range(rank)])


def _element_types(proto: onnx.ModelProto) -> dict[str, np.dtype]:
    with contextlib.suppress(Exception):  # above the protobuf limit, or an unknown operator: float32 is assumed
        proto = onnx.shape_inference.infer_shapes(proto)
    types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    for info in [*proto.graph.input, *proto.graph.value_info, *proto.graph.output]:
        if info.type.tensor_type.elem_type:
            types[info.name] = info.type.tensor_type.elem_type
    return {name: onnx.helper.tensor_dtype_to_np_dtype(kind) for name, kind in types.items()}


def _used_names(proto: onnx.ModelProto) -> set[str]:
    names = {tensor.name for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        names.update(node.input, node.output, [node.name])
    return names
