"""The machine-readable list of the zoo, `models/index.json`, and the table in `models/README.md`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from .datasets import DataError
from .readme import replace_between

INDEX = "index.json"
README = "README.md"
TABLE_START, TABLE_END = "<!-- table of models: start -->", "<!-- table of models: end -->"


def read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the entries of `folder/index.json` by model name; empty if there is no such file.

    Raises:
        DataError: if the file is not an index.
    """
    path = folder / INDEX
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["models"]
        return {entry["name"]: entry for entry in entries}
    except (ValueError, KeyError, TypeError) as e:
        raise DataError(f"{path}: not an index of models ({e})") from e


def write_index(folder: Path, entries: Mapping[str, Mapping[str, Any]], order: Sequence[str]) -> None:
    """Write the index and bring the table in the README up to date.

    Args:
        folder: the models folder.
        entries: by model name.
        order: names in the order of the table; names that are not in it come last.

    Raises:
        DataError: if the README has no place for the table.
    """
    ranked = sorted(entries.values(), key=lambda e: order.index(e["name"]) if e["name"] in order else len(order))
    text = json.dumps({"format": 1, "models": ranked}, indent=2)
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")
    readme = folder / README
    if readme.is_file():
        replace_between(readme, TABLE_START, TABLE_END, render_table(ranked))


def render_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table of the models."""
    lines = [
        "| model | images | parameters | MACs | size | top-1 | 95 % interval | images tested |",
        "|---|---|---:|---:|---:|---:|---|---:|",
    ]
    for e in entries:
        a = e["accuracy"]
        lines.append(
            f"| `{e['name']}` | {e['dataset']} | {e['parameters'] / 1e6:.2f} M | {e['macs'] / 1e6:.1f} M "
            f"| {e['bytes'] / 1e6:.1f} MB | {100 * a['top1']:.2f} % | {100 * a['low']:.2f} to {100 * a['high']:.2f} "
            f"| {a['images']} |"
        )
    return "\n".join(lines)


def find_entry(entries: Mapping[str, dict[str, Any]], model: Path, name: str | None = None) -> dict[str, Any]:
    """Entry that tells the preprocessing of a model file.

    Args:
        entries: from `read_index`.
        model: the model file; it may be a quantized copy whose name starts with the name of the entry.
        name: name of the entry, if the file name does not tell.

    Raises:
        DataError: if no entry fits.
    """
    if name is not None:
        if name not in entries:
            raise DataError(f"no entry {name!r} in the index: expected one of {', '.join(entries)}")
        return entries[name]
    fitting = [key for key in entries if model.name.startswith(key)]
    if not fitting:
        raise DataError(f"{model}: no entry of the index has this name; pass --entry (one of {', '.join(entries)})")
    return entries[max(fitting, key=len)]


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def describe(model: onnx.ModelProto) -> dict[str, int]:
    """Parameters (elements of float initializers) and multiply-accumulates of one image."""
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    return {"parameters": sum(_product(t.dims) for t in floats), "macs": count_macs(model)}


def count_macs(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of Conv, Gemm and MatMul for a batch of one image.

    Raises:
        DataError: if the shape of an operand cannot be inferred.
    """
    single = onnx.ModelProto()
    single.CopyFrom(model)
    single.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    del single.graph.value_info[:]
    for dim in (d for output in single.graph.output for d in output.type.tensor_type.shape.dim[:1]):
        dim.ClearField("dim_param")
    graph = onnx.shape_inference.infer_shapes(single, data_prop=True).graph
    shapes = {t.name: tuple(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        shapes[value.name] = (*(dim or 1 for dim in dims[:1]), *dims[1:])  # an unknown first dimension is the batch
    return sum(_node_macs(node, shapes) for node in graph.node)


def _node_macs(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return 0
    out, first, second = (shapes.get(name, ()) for name in (node.output[0], node.input[0], node.input[1]))
    if not out or 0 in out or 0 in first:
        raise DataError(f"{node.op_type} {node.name}: shapes {first} and {out} are not known; fix the batch size")
    if node.op_type == "Conv":
        return _product(out) * _product(second[1:])
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return _product(out) * first[-2 if transposed else -1]


def _product(dims: Sequence[int]) -> int:
    total = 1
    for dim in dims:
        total *= dim
    return total
