"""The README.md that lies beside exported files: which file to take, with which session option, and how to build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..runtime import REPLAY_OPTION

_HEAD = """# {stem} for ONNX Runtime on devices

Made by onnx_hyvit {version} for platform `{platform}`. Each .ort file was compared with the .onnx in the same session
settings: equal bit for bit. Times are medians on the machine that exported, {threads} thread(s).

| file | size | load | run | session option |
|---|---:|---:|---:|---|
{rows}

- `{fixed}`: Fixed style, all optimizations baked in. **Take this one for the CPU.**
- `{onnx}`: the same model with fixed shapes, for full builds and other runtimes.
- `{fixed_config}`: the operators and types that a minimal build needs.
"""
_RUNTIME = """
## The Runtime style

`{runtime}` is for NNAPI or CoreML: nodes that the accelerator does not take are optimized on the device. It needs the
session option `{option}` = `{value}`; without it the Q/DQ graph runs in float. Enable it
for files that you trust only.

Kotlin:

    val options = OrtSession.SessionOptions()
    options.addConfigEntry("{option}", "{value}")
    val session = environment.createSession("{runtime}", options)

Swift:

    let options = try ORTSessionOptions()
    try options.addConfigEntry(withKey: "{option}", value: "{value}")

Python:

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("{option}", "{value}")
    session = onnxruntime.InferenceSession("{runtime}", options)

Its minimal build needs `--minimal_build extended` and `{runtime_config}`.
"""
_BUILD = """
## A minimal build

In a checkout of ONNX Runtime:

    ./build.sh --config MinSizeRel --minimal_build --skip_tests --enable_reduced_operator_type_support \\
      --include_ops_by_config {fixed_config}
"""
_CONTRIB = """
Operators of the domain com.microsoft are needed, so do not pass `--disable_contrib_ops`:
{names}.
"""
_ACCELERATORS = """
## Accelerators

What ONNX Runtime's usability check says, by operators alone; more than two partitions are slower than the CPU.

| accelerator | partitions | nodes that it takes | worth a try |
|---|---:|---:|---|
{partitions}
"""


def write_readme(path: Path, report: dict[str, Any]) -> None:
    """Write the README of an export from its report."""
    files = report["files"]
    option, value = next(iter(REPLAY_OPTION.items()))
    contrib = ", ".join(report["contrib_operators"])
    parts = [_HEAD, _RUNTIME if "Runtime" in files else "", _BUILD, _CONTRIB if contrib else "", _ACCELERATORS]
    path.write_text(
        "".join(parts).format(
            stem=files["Fixed"].removesuffix(".ort"),
            version=report["onnx_hyvit"],
            platform=report["platform"],
            threads=report["threads"],
            rows=_rows(report, option),
            fixed=files["Fixed"],
            runtime=files.get("Runtime"),
            onnx=files["fixed_shape"],
            fixed_config=files["Fixed operators"],
            runtime_config=files.get("Runtime operators"),
            option=option,
            value=value,
            names=contrib,
            partitions=_partitions(report),
        ),
        encoding="utf-8",
    )


def _rows(report: dict[str, Any], option: str) -> str:
    files = report["files"]
    names = {"onnx": files["fixed_shape"], "Fixed": files["Fixed"], "Runtime": files.get("Runtime")}
    return "\n".join(
        f"| `{names[key]}` | {form['bytes'] / 1e6:.2f} MB | {form['load_ms']:.1f} ms | {form['run_ms']:.2f} ms | "
        f"{f'`{option}`' if key == 'Runtime' else '-'} |"
        for key, form in report["forms"].items()
        if key in names
    )


def _partitions(report: dict[str, Any]) -> str:
    return "\n".join(
        f"| {name} | {found['partitions']} | {found['supported_nodes']} of {found['nodes']} | {found['verdict']} |"
        for name, found in report["partitions"].items()
    )
