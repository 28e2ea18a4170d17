"""Guards around external tensor data: a model may only read files inside its own folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    for tensor in _all_tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if "\0" in location:
            raise ModelError(f"{path}: tensor {tensor.name!r} has a malformed location {location!r}")
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


def check_no_external_data(proto: onnx.ModelProto, name: str) -> None:
    """Refuse external data in a model that has no folder.

    Raises:
        ModelError: Names the tensor.
    """
    for tensor in _all_tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelError(
                f"{name}: tensor {tensor.name!r} lies in an external file, but a model in memory has no folder; pass "
                "the path, or load the data first"
            )


def _all_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _tensors(proto.graph)
    for function in proto.functions:
        yield from _of_nodes(function.node)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for sub in attribute.graphs:
                yield from _tensors(sub)
