"""Writes, checks and indexes the hand-made edge cases."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from . import record
from .edge_cases import CASES

NOT_RUNNABLE = {"custom_domain", "duplicate_node_names"}


def _write(out: Path, name: str, what: str, made: onnx.ModelProto) -> dict[str, Any]:
    path = out / "edge" / f"{name}.onnx"
    if name == "external_data":
        options = {"all_tensors_to_one_file": True, "location": path.name + ".data", "size_threshold": 0}
        (path.parent / options["location"]).unlink(missing_ok=True)
        onnx.save_model(made, path, save_as_external_data=True, **options)
        (path.parent / options["location"]).chmod(0o644)
    else:
        path.write_bytes(made.SerializeToString())
    onnx.checker.check_model(str(path), full_check=name != "custom_domain")
    entry = {
        "file": f"edge/{name}.onnx",
        "what": what,
        "opset": made.opset_import[0].version,
        "ir_version": made.ir_version,
        "runs_in_onnxruntime": name not in NOT_RUNNABLE,
        "inputs": [record.describe(i) for i in made.graph.input if i.name in ("x", "x2")],
        "outputs": [record.describe(o) for o in made.graph.output],
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    if entry["runs_in_onnxruntime"]:
        _check_run(path, made)
    return entry


def _check_run(path: Path, made: onnx.ModelProto) -> None:
    feeds = {}
    for value in made.graph.input:
        if value.name in ("x", "x2"):
            half = value.type.tensor_type.elem_type == TensorProto.FLOAT16
            shape = [d.dim_value or 16 for d in value.type.tensor_type.shape.dim]
            feeds[value.name] = record.seeded_input(tuple(shape)).astype(np.float16 if half else np.float32)
    for output in record.run(onnx.load(path), feeds):
        if not np.isfinite(output).all() or (output.size > 1 and output.std() < 1e-4):
            raise ValueError(f"{path.name}: output is not sane")


def make_all(out: Path) -> None:
    """Writes all edge cases to `out`/edge and indexes them."""
    (out / "edge").mkdir(parents=True, exist_ok=True)
    entries = [_write(out, name, what, build()) for name, (what, build) in CASES.items()]
    record.merge_index(out / "index.json", "edge", entries, [])
    print(f"{len(entries)} edge cases")
