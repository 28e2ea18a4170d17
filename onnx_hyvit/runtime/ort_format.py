"""The .ort format: convert a model, and read which operators and types a minimal build of ONNX Runtime needs for it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .session import RuntimeFailure, runtime_reason

# Without this session option a Runtime style file runs as the Q/DQ graph that it holds, in float.
REPLAY_OPTION = {"session.enable_saved_runtime_optimizations": "1"}
INT8_OPTION = "session.qdqisint8allowed"
STYLES = ("Fixed", "Runtime")
_TOOL_SECONDS = 1800
_OPERATOR = re.compile(r"(\w+)(\{.*?\}\}|\{[^{}]*\})?(?:,|$)")


@dataclass(frozen=True)
class Conversion:
    """A model in the .ort format.

    Args:
        files: Style (``Fixed``, ``Runtime``) -> .ort file.
        operators: Style -> text of its list of required operators, the form that ONNX Runtime's build reads.
        partitions: Accelerator -> pieces of the graph that it would take, see ``ort_tools.find_partitions``.
        failures: Style -> why it is not among the files; never ``Fixed``.
    """

    files: dict[str, Path]
    operators: dict[str, str]
    partitions: dict[str, dict[str, Any]]
    failures: dict[str, str]


def convert_to_ort(model: Path, folder: Path, platform: str) -> Conversion:
    """Convert an .onnx file with ONNX Runtime's own tools, in a process of their own.

    Args:
        model: The file.
        folder: An empty folder for the results.
        platform: ``arm`` or ``amd64``, the processor that runs them.

    Raises:
        RuntimeFailure: A tool failed, or the Fixed style could not be written; one line with the reason.
    """
    job = json.dumps({"model": str(model), "folder": str(folder), "platform": platform})
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    command = [sys.executable, str(Path(__file__).with_name("ort_tools.py")), job]
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_TOOL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RuntimeFailure(f"{model.name}: the conversion to .ort took more than {_TOOL_SECONDS} s") from error
    answer = _answer(done, model.name)
    files, operators = {}, {}
    failures = {style: runtime_reason(RuntimeError(reason)) for style, reason in answer["failures"].items()}
    for style in (style for style in STYLES if style not in failures):
        files[style] = next((folder / style).glob("*.ort"))
        operators[style] = _without_paths(next((folder / style).glob("*.config")).read_text(encoding="utf-8"))
    return Conversion(files, operators, answer["partitions"], failures)


def _answer(done: subprocess.CompletedProcess[str], name: str) -> dict[str, Any]:
    lines = done.stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RuntimeFailure(f"{name}: cannot be converted to .ort ({last[:300]})") from None
    if "error" in answer:
        raise RuntimeFailure(f"{name}: cannot be converted to .ort ({runtime_reason(RuntimeError(answer['error']))})")
    return answer


def _without_paths(config: str) -> str:
    """The list of operators with file names instead of the paths of temporary files in its comments."""
    lines = [line for line in config.splitlines() if not line.startswith("# - ")]
    return "\n".join(lines).replace("# Generated from model/s:", "# Required operators and types") + "\n"


def parse_operators(config: str) -> dict[str, dict[str, list[str]]]:
    """Domain -> operator -> the types that its kernels must support ([] where they are not told apart)."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in config.splitlines():
        if not line or line.startswith(("#", "!")):
            continue
        domain, _, operators = line.split(";", 2)
        for name, types in _OPERATOR.findall(operators):
            used = json.loads(types) if types else {}
            kinds = {kind for part in used.values() for entry in part.values() for kind in _flat(entry)}
            found.setdefault(domain, {})[name] = sorted(kinds)
    return {domain: dict(sorted(operators.items())) for domain, operators in sorted(found.items())}


def _flat(entry: Any) -> list[str]:
    return [entry] if isinstance(entry, str) else [kind for part in entry for kind in _flat(part)]
