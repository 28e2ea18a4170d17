"""Export a model for ONNX Runtime on phones: convert, verify, measure, and say what a build needs."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..errors import ModelError
from ..graph.fix_shapes import fix_shapes, free_inputs
from ..graph.int4 import is_int4
from ..graph.io import read_proto
from ..graph.write import save_proto
from ..graph.zero_points import add_zero_points
from ..runtime import Conversion, convert_to_ort, make_session, observe_shapes, parse_operators, sums_saturate
from ..version import __version__
from .config import MobileConfig
from .measure import Feeds, check_forms, find_forms, loading_failure, time_forms
from .readme import write_readme
from .staging import staged_folder

_FEEDS = 3
_OPSETS = range(7, 27)
Notes = list[str]


def export_mobile(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    folder: str | os.PathLike[str],
    config: MobileConfig | None = None,
) -> dict[str, Any]:
    """Write what ONNX Runtime on a phone needs for ``model`` into ``folder``, and verify it.

    Written are the model with fixed shapes (``.fixed_shape.onnx``), the same as ``.ort`` in Fixed and in Runtime style,
    the required operators and types of each for a minimal build, ``report.json``, and a ``README.md`` that says how to
    use them. All of it appears at once, or nothing does.

    Args:
        model: Path, bytes or ModelProto, float or int8.
        folder: Where to write; it is made when it is not there, the folder that holds it must be.
        config: Settings; the defaults when None.

    Returns:
        Plain values (JSON): ``files``, ``inputs``, ``forms`` (bytes, load and run time, whether bit for bit the .onnx),
        ``session_options``, ``operators``, ``contrib_operators``, ``partitions``, ``notes``.

    Raises:
        HyvitError: The model cannot be read, converted or run, a shape does not fit, a file does not give the outputs
            of the .onnx, or the folder cannot be written.
    """
    config = config or MobileConfig()
    proto, name = read_proto(model)
    _check_opset(proto, name)
    _check_int4(proto, name)
    stem = Path(name).stem if isinstance(model, (str, os.PathLike)) else "model"
    before = free_inputs(proto)
    fixed = fix_shapes(proto, config.fixed_shapes, config.batch)
    add_zero_points(fixed)
    feeds = _feeds(fixed)
    with staged_folder(Path(folder)) as staged, tempfile.TemporaryDirectory(prefix="onnx_hyvit_") as scratch:
        source = Path(scratch) / f"{stem}.onnx"
        save_proto(fixed, source)
        results = Path(scratch) / "ort"
        results.mkdir()
        done, refused = _without_refused(convert_to_ort(source, results, config.platform), source, config.platform)
        forms = find_forms(source, done.files, config.platform)
        checked = check_forms(forms, feeds, config.platform)
        timed = time_forms(forms, feeds[0], config.platform, threads=config.threads, runs=config.runs)
        sizes = {key: form.path.stat().st_size for key, form in forms.items()}
        operators = {style: parse_operators(text) for style, text in done.operators.items()}
        report: dict[str, Any] = {
            "onnx_hyvit": __version__,
            "model": name,
            "platform": config.platform,
            "threads": config.threads,
            "files": _write_files(staged, stem, fixed, done),
            "inputs": _inputs(fixed, before),
            "forms": {key: {"bytes": sizes[key], **timed[key], **checked[key]} for key in forms},
            "session_options": {key: dict(form.config) for key, form in forms.items()},
            "operators": operators,
            "contrib_operators": sorted({op for found in operators.values() for op in found.get("com.microsoft", {})}),
            "partitions": done.partitions,
            "notes": refused + _notes(fixed),
        }
        (staged / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        write_readme(staged / "README.md", report)
    return report


def _without_refused(done: Conversion, source: Path, platform: str) -> tuple[Conversion, Notes]:
    """Leave the Runtime style out where ONNX Runtime cannot write it, or not load what it wrote (both seen in 1.32)."""
    failure = done.failures.get("Runtime")
    if failure is None:
        failure = loading_failure(find_forms(source, done.files, platform)["Runtime"], platform)
    if failure is None:
        return done, []
    kept = replace(done, files={"Fixed": done.files["Fixed"]}, operators={"Fixed": done.operators["Fixed"]})
    return kept, [f"no file in Runtime style, ONNX Runtime cannot make one of this model: {failure}"]


def _check_opset(proto: onnx.ModelProto, name: str) -> None:
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset not in _OPSETS:
        raise ModelError(f"{name}: opset {opset} is not supported; expected {_OPSETS.start} to {_OPSETS.stop - 1}")


def _check_int4(proto: onnx.ModelProto, name: str) -> None:
    if any(map(is_int4, proto.graph.initializer)):
        raise ModelError(
            f"{name}: holds INT4 weights, which ONNX Runtime's converter to .ort does not know; "
            "quantize the float model without --pack-int4"
        )


def _write_files(folder: Path, stem: str, fixed: onnx.ModelProto, done: Conversion) -> dict[str, str]:
    """Copy the results into ``folder``; what each is for -> its name."""
    names = {
        "fixed_shape": f"{stem}.fixed_shape.onnx",
        "Fixed": f"{stem}.ort",
        "Fixed operators": f"{stem}.required_operators_and_types.config",
    }
    if "Runtime" in done.files:
        names["Runtime"] = f"{stem}.with_runtime_opt.ort"
        names["Runtime operators"] = f"{stem}.required_operators_and_types.with_runtime_opt.config"
    save_proto(fixed, folder / names["fixed_shape"])
    for style, path in done.files.items():
        shutil.copyfile(path, folder / names[style])
        (folder / names[f"{style} operators"]).write_text(done.operators[style], encoding="utf-8")
    return {**names, "report": "report.json", "readme": "README.md"}


def _inputs(proto: onnx.ModelProto, before: Mapping[str, list[int | str]]) -> list[dict[str, Any]]:
    after = free_inputs(proto)
    constants = {tensor.name for tensor in proto.graph.initializer}
    return [
        {
            "name": value.name,
            "shape": after.get(value.name) or [dim.dim_value for dim in value.type.tensor_type.shape.dim],
            "was": before.get(value.name),
        }
        for value in proto.graph.input
        if value.name not in constants
    ]


def _feeds(proto: onnx.ModelProto) -> list[Feeds]:
    """Seeded noise for every input; whole numbers are 0."""
    shapes = observe_shapes(proto)
    inputs = make_session(proto, optimize=False).inputs
    generator = np.random.default_rng(0)
    return [
        {
            info.name: (
                generator.standard_normal(shapes[info.name]) if info.dtype.kind == "f" else np.zeros(shapes[info.name])
            ).astype(info.dtype)
            for info in inputs
        }
        for _ in range(_FEEDS)
    ]


def _notes(proto: onnx.ModelProto) -> Notes:
    notes = []
    for name, shape in free_inputs(proto).items():
        sizes = "x".join(map(str, shape))
        notes.append(
            f"input {name!r} stays {sizes}: NNAPI and CoreML want fixed shapes; give --fixed-shape {name}=SIZES"
        )
    if not any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in proto.graph.node):
        notes.append("the model is float: `onnx-hyvit quantize` makes it smaller")
    elif sums_saturate():
        notes.append(
            "this processor has no VNNI, so 8-bit sums can saturate in the runs here, of the .onnx and the .ort alike; "
            "ARM processors add exactly"
        )
    return notes
