"""What a model takes, and the checks of what it is fed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import CalibrationError

_ELEMENT_DTYPES = {  # onnx.TensorProto.DataType
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}


class InputInfo(NamedTuple):
    """A model input: name, numpy dtype, and shape whose free dimensions are None or a name."""

    name: str
    dtype: np.dtype
    shape: tuple[int | str | None, ...]

    @property
    def text(self) -> str:
        """The shape as ``1x3x?x?``."""
        return shape_text(self.shape)


def as_inputs(inputs: Iterable[Sequence]) -> tuple[InputInfo, ...]:
    """``inputs`` (any ``(name, dtype, shape)``) as ``InputInfo``."""
    return tuple(InputInfo(name, np.dtype(dtype), tuple(shape)) for name, dtype, shape in inputs)


def inputs_of(proto: Any) -> tuple[InputInfo, ...]:
    """What a ``ModelProto`` must be fed: its graph inputs that are no initializers.

    Raises:
        CalibrationError: An input is no tensor, or of a type that cannot be fed.
    """
    constants = {tensor.name for tensor in proto.graph.initializer}
    return tuple(_info(value) for value in proto.graph.input if value.name not in constants)


def _info(value: Any) -> InputInfo:
    kind = value.type.tensor_type
    if kind.elem_type not in _ELEMENT_DTYPES:
        raise CalibrationError(f"input {value.name!r} is no tensor of numbers; such models cannot be calibrated")
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in kind.shape.dim)
    return InputInfo(value.name, np.dtype(_ELEMENT_DTYPES[kind.elem_type]), dims)


def shape_text(shape: Iterable[object]) -> str:
    """A shape as ``1x3x?x224``; a scalar is ``scalar``."""
    return "x".join(str(size) if isinstance(size, (int, np.integer)) else "?" for size in shape) or "scalar"


def fixed_batch(inputs: Sequence[InputInfo]) -> int | None:
    """The batch size that the model insists on, or None when it is free.

    Raises:
        CalibrationError: The inputs have different fixed first dimensions, so that samples cannot be stacked.
    """
    fixed = {info.shape[0] for info in inputs if info.shape and isinstance(info.shape[0], int)}
    scalars = [info.name for info in inputs if not info.shape]
    if scalars or len(fixed) > 1:
        what = ", ".join(f"{info.name} {info.text}" for info in inputs)
        raise CalibrationError(
            f"the inputs have no common batch dimension ({what}); pass a list of complete feeds instead of arrays"
        )
    return fixed.pop() if fixed else None


def check_names(found: Iterable[str], inputs: Sequence[InputInfo], where: str) -> None:
    """Refuse missing and unknown names.

    Raises:
        CalibrationError: Lists what the model takes and what ``where`` has.
    """
    found = list(found)
    wanted = [info.name for info in inputs]
    missing = [name for name in wanted if name not in found]
    unknown = [name for name in found if name not in wanted]
    if not (missing or unknown):
        return
    what = f"no array for input {missing[0]!r}" if missing else f"{unknown[0]!r} is not an input of the model"
    raise CalibrationError(f"{where}: {what}; the model takes {_listing(wanted)}, found {_listing(found)}")


def _listing(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "nothing"


def check_shape(shape: Sequence[int], info: InputInfo, where: str, *, rows: bool) -> None:
    """Refuse a wrong rank or size.

    Args:
        shape: Shape found, first axis included.
        info: The input that it is for.
        where: File or sample, for the message.
        rows: The first axis counts samples, so its size is free.

    Raises:
        CalibrationError: With a hint when another layout would fit.
    """
    if len(shape) == len(info.shape) and _fits(shape[rows:], info.shape[rows:]):
        return
    wanted = ("N", *info.shape[1:]) if rows else info.shape
    text = "x".join(str(size) if isinstance(size, int) or size == "N" else "?" for size in wanted)
    raise CalibrationError(
        f"{where}: input {info.name!r} has shape {shape_text(shape)}, expected {text}{_shape_hint(shape, info)}"
    )


def _fits(shape: Sequence[int], wanted: Sequence[int | str | None]) -> bool:
    pairs = zip(shape, wanted, strict=False)
    return len(shape) == len(wanted) and all(size == want or not isinstance(want, int) for size, want in pairs)


def _shape_hint(shape: Sequence[int], info: InputInfo) -> str:
    wanted = info.shape[1:]
    if len(shape) == len(info.shape) - 1 and _fits(shape, wanted):
        return "; the first axis must count samples: add one with array[None]"
    if len(shape) == len(info.shape) + 1 and _fits(shape[2:], wanted):
        return "; there is one axis too many: merge the first two"
    if len(wanted) == 3 and len(shape) in (3, 4):
        height, width, channels = shape[-3:]
        if _fits((channels, height, width), wanted) and channels in (1, 3, 4):
            return "; looks like NHWC: transpose to NCHW with array.transpose(0, 3, 1, 2)"
        if _fits((width, channels, height), wanted) and height in (1, 3, 4):
            return "; looks like NCHW: transpose to NHWC with array.transpose(0, 2, 3, 1)"
    if len(wanted) == 3 and len(shape) == 4:
        return "; resize the images, or export the model for this size"
    return ""


def check_dtype(dtype: np.dtype, info: InputInfo, where: str) -> None:
    """Accept a dtype of the same kind as the model's (it is cast), refuse every other.

    Raises:
        CalibrationError: With a hint for 8-bit images in place of floats.
    """
    if dtype.hasobject:
        raise CalibrationError(f"{where}: input {info.name!r} holds Python objects; save plain numbers instead")
    same_kind = dtype.kind == info.dtype.kind or (dtype.kind in "iu" and info.dtype.kind in "iu")
    if same_kind:
        return
    hint = ""
    if info.dtype.kind == "f" and dtype == np.uint8:
        hint = "; values 0-255 of an image must be preprocessed first (for example x.astype('float32') / 255)"
    elif info.dtype.kind == "f" and dtype.kind in "iu":
        hint = f"; convert with array.astype('{info.dtype}')"
    raise CalibrationError(f"{where}: input {info.name!r} has dtype {dtype}, expected {info.dtype}{hint}")


def cast(values: np.ndarray, info: InputInfo, where: str) -> np.ndarray:
    """``values`` in the dtype of the model, contiguous.

    Raises:
        CalibrationError: A number does not fit into the dtype.
    """
    if values.dtype == info.dtype:
        return np.ascontiguousarray(values)
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(values, info.dtype)
    if info.dtype.kind in "iu" and not np.array_equal(result, values):
        raise CalibrationError(f"{where}: input {info.name!r} holds values that do not fit into {info.dtype}")
    return result


def check_finite(values: np.ndarray, info: InputInfo, samples: Sequence[object]) -> None:
    """Refuse NaN and Inf; names the first such sample.

    Args:
        values: First axis is samples, when there is more than one sample.
        info: The input.
        samples: Sample ids of the rows.

    Raises:
        CalibrationError: A value is not finite.
    """
    if values.dtype.kind != "f" or not values.size or np.isfinite(values.min() + values.max()):
        return
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    row = int(np.argwhere(bad)[0][0]) if len(samples) > 1 else 0
    count = int(bad[row].sum() if len(samples) > 1 else bad.sum())
    what = "NaN" if np.isnan(values).any() else "Inf"
    raise CalibrationError(
        f"sample {samples[min(row, len(samples) - 1)]}: input {info.name!r} holds {what} ({count} values); "
        "remove the sample or repair it"
    )


def range_warning(low: float, high: float, info: InputInfo) -> str | None:
    """A warning when a float input holds what looks like unscaled pixels, else None."""
    if info.dtype.kind == "f" and low >= 0 and 32 < high <= 255:
        return (
            f"input {info.name!r} has values from {low:g} to {high:g}: divide by 255? (if the model was trained on "
            "0..1 or on normalised images)"
        )
    return None


def first_range(feeds: Mapping[str, np.ndarray], inputs: Sequence[InputInfo]) -> list[str]:
    """The warnings for one batch."""
    found = []
    for info in inputs:
        values = feeds[info.name]
        if len(info.shape) >= 3 and values.size:
            found.append(range_warning(float(values.min()), float(values.max()), info))
    return [warning for warning in found if warning]
