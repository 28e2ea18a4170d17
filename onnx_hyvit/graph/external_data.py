"""Guards around external tensor data: a model may only read files inside its own folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx

from ..errors import ModelError


def check_external_data(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse external data that is missing, too short, or outside the folder of ``path``.

    Args:
        proto: Model as parsed, external data not yet loaded.
        path: The model file.

    Raises:
        ModelError: Names the tensor and the location.
    """
    folder = path.parent.resolve()
    for tensor in _tensors(proto.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        resolved = (folder / location).resolve()
        if not location or Path(location).is_absolute() or not resolved.is_relative_to(folder):
            raise ModelError(
                f"{path}: tensor {tensor.name!r} points outside the model's folder (location {location!r}); refused"
            )
        if not resolved.is_file():
            raise ModelError(
                f"{path}: external data {location!r} of tensor {tensor.name!r} is missing; "
                "keep it in the model's folder"
            )
        _check_extent(tensor, entries, resolved, path)


def _check_extent(tensor: onnx.TensorProto, entries: dict[str, str], resolved: Path, path: Path) -> None:
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
    except ValueError as error:
        raise ModelError(f"{path}: tensor {tensor.name!r} has a malformed external-data entry") from error
    if offset < 0 or length < 0 or offset + length > resolved.stat().st_size:
        raise ModelError(
            f"{path}: external data of tensor {tensor.name!r} ends beyond its file {resolved.name!r} (truncated?)"
        )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for sub in attribute.graphs:
                yield from _tensors(sub)
