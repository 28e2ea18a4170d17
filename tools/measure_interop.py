"""Compare runtimes on the int8 models that are meant for them, and write the outcome.

    python tools/measure_interop.py --work build/interop/models --json tools/results/interop.json --readme README.md

What is right is what onnxruntime's Python package answers for the same file with exact sums. The last
rows run the 8-bit weights of ``ort-x86``, which a processor without VNNI adds with saturation.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from interop.models import Case, prepare
from interop.runtimes import PACKAGES, RUNTIMES, Outcome, Runtime, run_python
from zoo.datasets import DataError
from zoo.readme import replace_between

from onnx_hyvit.runtime import sums_saturate

VNNI = "ort-x86"
START, END = "<!-- interop: start -->", "<!-- interop: end -->"


def compare(expected: Outcome, found: Outcome) -> dict[str, Any]:
    """Share of equal top-1 answers and the largest difference of an output."""
    wanted = expected.outputs[: len(found.outputs)]
    return {
        "images": len(found.outputs),
        "same_top1": float((wanted.argmax(1) == found.outputs.argmax(1)).mean()),
        "max_difference": float(np.abs(wanted - found.outputs).max()),
        "load_ms": round(found.load_ms, 1),
        "run_ms": round(found.run_ms, 2),
    }


def measure(case: Case, runtime: Runtime, target: str) -> list[dict[str, Any]]:
    rows = []
    for form in runtime.formats:
        truth = run_python(case.files[target, "onnx"], case.images[: runtime.samples], exact_sums=True)
        found = runtime.run(case.files[target, form], case.images[: runtime.samples])
        row = {"runtime": runtime.name, "target": target, "format": form, **compare(truth, found)}
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def versions() -> dict[str, str]:
    found = {name: version(name) for name in ("onnxruntime", "onnx", "openvino")}
    for name in ("onnxruntime-node", "onnxruntime-web"):
        found[name] = json.loads((PACKAGES / name / "package.json").read_text())["version"]
    return found


def table(results: dict[str, Any]) -> str:
    lines = [
        "| runtime | target | file | same top-1 | load | run |",
        "|---|---|---|---:|---:|---:|",
    ]
    for row in results["rows"]:
        lines.append(
            f"| {row['runtime']} | `{row['target']}` | .{row['format']} | {100 * row['same_top1']:.0f} % of "
            f"{row['images']} | {row['load_ms']:.0f} ms | {row['run_ms']:.1f} ms |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for models and images")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--readme", type=Path, help="file whose table is renewed")
    arguments = parser.parse_args()
    case = prepare(arguments.work, tuple(dict.fromkeys([*(runtime.target for runtime in RUNTIMES), VNNI])))
    rows = [row for runtime in RUNTIMES for row in measure(case, runtime, runtime.target)]
    rows += [row for runtime in RUNTIMES[1:3] for row in measure(case, runtime, VNNI)]
    results = {"versions": versions(), "sums_saturate": sums_saturate(), "rows": rows}
    arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if arguments.readme:
        try:
            replace_between(arguments.readme, START, END, table(results))
        except DataError as e:
            raise SystemExit(f"error: {e}") from None


if __name__ == "__main__":
    main()
