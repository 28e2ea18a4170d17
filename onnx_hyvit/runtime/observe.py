"""Concrete shapes of every tensor, and how large its values are, observed in one run of the model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from ..errors import ModelError

CHANNELS = frozenset({1, 3, 4})
SQUARE_SIZES = (224, 256, 64, 32)
TEXT_WIDTH = 320
TEXT_HEIGHTS = (48, 32)
MAX_INPUT_BYTES = 1 << 30
_SUFFIX = "::observed_shape"
_POWER = "::observed_power"
_NO_SHAPE = ("Sequence", "Optional")


@dataclass(frozen=True)
class Observed:
    """What one run showed.

    Args:
        shapes: Tensor name -> concrete shape, for inputs, initializers and node outputs; tensors of sequence or
            optional type are left out.
        powers: Tensor name -> sum of the squared values, for the float32 tensors that nodes make. The input is the same
            noise every time, so equal values mean, in practice, equal tensors.
    """

    shapes: dict[str, tuple[int, ...]]
    powers: dict[str, float]


def observe(proto: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> Observed:
    """Run the model once at ``ORT_DISABLE_ALL`` on seeded noise, and look at every tensor of its main graph.

    Small nodes behind every tensor make its shape and its power, and only these leave the session, so that memory
    stays that of a plain run. Free dimensions: batch 1; a free width beside a fixed height below 64 (text recognisers)
    is 320; otherwise the sizes 224, 256, 64, 32 and the text sizes 48x320 and 32x320 are tried until the model runs.

    Args:
        proto: Model; not changed. Domains unknown to ONNX Runtime make it unusable.
        input_shapes: Shapes of some or all graph inputs; they replace the guesses.

    Returns:
        Shapes and powers.

    Raises:
        ModelError: ONNX Runtime cannot run the model; the message names the node.
    """
    names = _observable(proto)
    floats = _float_tensors(proto, names)
    session = _session(_with_observers(proto, names, floats))
    failure: Exception | None = None
    for shapes in _candidates(proto, dict(input_shapes or {})):
        feeds = _feeds(session, shapes)
        try:
            values = session.run([*(name + _SUFFIX for name in names), *(name + _POWER for name in floats)], feeds)
        except Exception as error:
            failure = failure or error
            continue
        observed = {
            name: tuple(int(size) for size in value) for name, value in zip(names, values[: len(names)], strict=True)
        }
        observed.update({name: tuple(value.shape) for name, value in feeds.items()})
        observed.update({tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer})
        powers = {name: float(value) for name, value in zip(floats, values[len(names) :], strict=True)}
        return Observed(observed, powers)
    raise ModelError(f"the model cannot be run to observe its shapes: {_one_line(failure)}") from failure


def observe_shapes(
    proto: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, tuple[int, ...]]:
    """Concrete shape of every tensor of the main graph; see ``observe``."""
    return observe(proto, input_shapes).shapes


def _observable(proto: onnx.ModelProto) -> list[str]:
    return [
        name
        for node in proto.graph.node
        if not any(word in node.op_type for word in _NO_SHAPE)
        for name in node.output
        if name
    ]


def _float_tensors(proto: onnx.ModelProto, names: list[str]) -> list[str]:
    """The names whose type is known to be float32."""
    try:
        graph = onnx.shape_inference.infer_shapes(proto).graph
    except Exception:  # above protobuf's limit, or an operator that inference does not know: use what is written
        graph = proto.graph
    known = {
        value.name
        for value in [*graph.value_info, *graph.output]
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    return [name for name in names if name in known]


def _with_observers(proto: onnx.ModelProto, names: list[str], floats: list[str]) -> onnx.ModelProto:
    augmented = onnx.ModelProto()
    augmented.CopyFrom(proto)
    del augmented.graph.output[:]
    del augmented.graph.value_info[:]
    for name in names:
        augmented.graph.node.append(onnx.helper.make_node("Shape", [name], [name + _SUFFIX]))
        info = onnx.helper.make_tensor_value_info(name + _SUFFIX, onnx.TensorProto.INT64, [None])
        augmented.graph.output.append(info)
    for name in floats:
        augmented.graph.node.append(onnx.helper.make_node("ReduceSumSquare", [name], [name + _POWER], keepdims=0))
        augmented.graph.output.append(onnx.helper.make_tensor_value_info(name + _POWER, onnx.TensorProto.FLOAT, []))
    return augmented


def _session(proto: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"ONNX Runtime cannot load the model: {_one_line(error)}") from error


def _candidates(proto: onnx.ModelProto, given: dict[str, tuple[int, ...]]) -> Iterator[dict[str, tuple[int, ...]]]:
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    sizes = [(size, size) for size in SQUARE_SIZES] + [(height, TEXT_WIDTH) for height in TEXT_HEIGHTS]
    seen: list[dict[str, tuple[int, ...]]] = []
    for height, width in sizes:
        shapes = {value.name: given.get(value.name) or _guess(value, height, width) for value in inputs}
        if shapes not in seen:
            seen.append(shapes)
            yield shapes


def _guess(value: onnx.ValueInfoProto, height: int, width: int) -> tuple[int, ...]:
    dims = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in value.type.tensor_type.shape.dim]
    if len(dims) != 4:
        return tuple(size or (1 if axis == 0 else height) for axis, size in enumerate(dims))
    channels_last = dims[3] in CHANNELS and dims[1] not in CHANNELS
    channel, rows, columns = (3, 1, 2) if channels_last else (1, 2, 3)
    fixed = dims[rows]
    dims[0] = dims[0] or 1
    dims[channel] = dims[channel] or 3
    dims[columns] = dims[columns] or (TEXT_WIDTH if 0 < fixed < 64 else fixed or width)
    dims[rows] = fixed or height
    return tuple(dims)


def _feeds(session: ort.InferenceSession, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        dtype: np.dtype[Any] = _DTYPES.get(value.type, np.dtype(np.float32))
        shape = shapes[value.name]
        if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize > MAX_INPUT_BYTES:
            text = "x".join(map(str, shape))
            raise ModelError(f"input {value.name!r} has shape {text}; expected at most {MAX_INPUT_BYTES} bytes")
        noise = generator.standard_normal(shape) if dtype.kind == "f" else np.zeros(shape)
        feeds[value.name] = noise.astype(dtype)
    return feeds


_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(bool)": np.dtype(np.bool_),
}


def _one_line(error: BaseException | None) -> str:
    text = " ".join(str(error).split())
    found = re.search(r"running (\w+) node\. Name:'([^']*)' Status Message: (.*)", text)
    if found:
        return f"node {found[2]!r} ({found[1]}): {found[3][:200]}"
    return text if len(text) <= 240 else text[:237] + "..."
