"""Give free dimensions of graph inputs fixed sizes, and every tensor behind them its shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx
import onnx.shape_inference

from ..errors import ConfigError, ModelError


def free_inputs(proto: onnx.ModelProto) -> dict[str, list[int | str]]:
    """Inputs with free dimensions -> their shape; a free dimension is its name, or ``?``."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    shapes = {value.name: _shape(value) for value in proto.graph.input if value.name not in constants}
    return {name: shape for name, shape in shapes.items() if any(isinstance(size, str) for size in shape)}


def fix_shapes(
    proto: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], batch: int | None = None
) -> onnx.ModelProto:
    """A copy of ``proto`` whose inputs have fixed sizes.

    Args:
        proto: The model; not changed.
        shapes: Input name -> its whole shape, all sizes 1 or more.
        batch: Size of a free first dimension of the other inputs; None leaves them as they are.

    Returns:
        The model, with shapes inferred anew. A dimension that two inputs share by name is fixed in both.

    Raises:
        ConfigError: There is no such input, the rank differs, or a fixed dimension is asked to change.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    constants = {tensor.name for tensor in fixed.graph.initializer}
    inputs = {value.name: value for value in fixed.graph.input if value.name not in constants}
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in inputs:
            raise ConfigError(f"fixed shape: there is no input {name!r}; the model takes {', '.join(inputs)}")
        _set_shape(inputs[name], shape, sizes)
    for value in inputs.values():
        dims = value.type.tensor_type.shape.dim
        if batch is not None and value.name not in shapes and dims and not dims[0].dim_value:
            _set_dim(dims[0], batch, sizes)
    _replace_names(fixed.graph, sizes)
    return _inferred(fixed)


def _set_shape(value: onnx.ValueInfoProto, shape: Sequence[int], sizes: dict[str, int]) -> None:
    dims = value.type.tensor_type.shape.dim
    found, asked = "x".join(map(str, _shape(value))), "x".join(map(str, shape))
    if len(dims) != len(shape) or any(size < 1 for size in shape):
        raise ConfigError(f"fixed shape: input {value.name!r} is {found}, {asked} does not fit it")
    for dim, size in zip(dims, shape, strict=True):
        if (dim.dim_value or size) != size or sizes.get(dim.dim_param, size) != size:
            raise ConfigError(f"fixed shape: input {value.name!r} is {found}, which {asked} contradicts")
        _set_dim(dim, size, sizes)


def _set_dim(dim: onnx.TensorShapeProto.Dimension, size: int, sizes: dict[str, int]) -> None:
    name = dim.dim_param
    dim.Clear()
    dim.dim_value = sizes.setdefault(name, size) if name else size


def _replace_names(graph: onnx.GraphProto, sizes: Mapping[str, int]) -> None:
    """Fix named dimensions everywhere, and drop what was inferred with free ones."""
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                _set_dim(dim, sizes[dim.dim_param], {})
    kept = [value for value in graph.value_info if not any(isinstance(size, str) for size in _shape(value))]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for body in _bodies(graph):
        _replace_names(body, sizes)


def _bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield attribute.g
            yield from attribute.graphs


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    """``proto`` with inferred shapes; an output whose free dimensions became known is fixed as well."""
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception as error:
        raise ModelError(f"the model has no valid shapes with these inputs ({' '.join(str(error).split())})") from error
    return inferred if inferred.graph.node else proto  # above protobuf's limit inference gives nothing


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_value or dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim]
