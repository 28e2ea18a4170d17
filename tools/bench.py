"""Speed of int8 models by onnx_hyvit and by other tools, against float, in turns in one run on this machine.

    python tools/bench.py --json tools/results/bench.json [--models mobilevit_s ...] [--batch 1] [--threads 1 2]
    python tools/bench.py --prepare-only          # make the models, time nothing
    python tools/bench.py --report-only           # table and plot from the results file

Models by other tools are made once and kept in --work; a new run of a model replaces its old rows in the results.
`make bench` prepares the virtual environments and runs all of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import onnxruntime
from speed.forms import FormError, Tools, form_names, make_form
from speed.measure import loadable, measure_footprint, measure_latency
from speed.models import SAMPLES, BenchModel, find_models
from speed.report import draw, render, update_readme
from zoo.datasets import DataError
from zoo.machine import cpu_name, has_vnni

from onnx_hyvit.config import QuantConfig
from onnx_hyvit.graph.write import write_bytes
from onnx_hyvit.processor import target_here

ROOT = Path(__file__).resolve().parent.parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=ROOT / "tools/results/bench.json", help="results file")
    parser.add_argument("--work", type=Path, default=ROOT / "build/bench", help="folder for the models")
    parser.add_argument("--models", nargs="+", help="names of models; all by default")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=12.0, help="time for the turns of one model and setting")
    parser.add_argument("--runs", type=int, default=200, help="turns at most")
    parser.add_argument("--loads", type=int, default=3, help="processes whose load time and memory are taken")
    parser.add_argument("--few", action="store_true", help="float, the best of onnxruntime and ours by default only")
    parser.add_argument("--export-python", help="interpreter with torch and timm, to export missing models")
    parser.add_argument("--nncf-python", help="interpreter with NNCF")
    parser.add_argument("--onnxsim-python", help="interpreter with onnxsim")
    parser.add_argument("--forms", nargs="+", help="forms to measure; all by default")
    parser.add_argument("--keep", action="store_true", help="reuse our models of an earlier run, too")
    parser.add_argument("--prepare-only", action="store_true")
    parser.add_argument("--report-only", action="store_true")
    return parser.parse_args()


def prepare(
    model: BenchModel, forms: list[str], work: Path, tools: Tools, anew: bool
) -> tuple[dict[str, Path], dict[str, str]]:
    """Form -> file, and form -> why there is none."""
    files, failed = {}, {}
    for form in forms:
        try:
            files[form] = make_form(model, form, work, tools, anew)
        except FormError as error:
            failed[form] = str(error)
            print(f"error: {error}", file=sys.stderr, flush=True)
    files, refused = loadable(files)
    return files, {**failed, **refused}


def measure(
    model: BenchModel, files: dict[str, Path], failed: dict[str, str], arguments: argparse.Namespace
) -> dict[str, Any]:
    """All numbers of one model."""
    row: dict[str, Any] = {"name": model.name, "shape": list(model.shape), "failed": failed}
    row["footprint"] = {form: measure_footprint(model, path, arguments.loads) for form, path in files.items()}
    row["latency"] = {
        str(threads): measure_latency(model, files, threads, arguments.seconds, arguments.runs)
        for threads in arguments.threads
    }
    return row


def merge(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    """The results with ``row`` in them, written to ``path``."""
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"models": []}
    results["machine"] = {"cpu": cpu_name(), "vnni": has_vnni(), "onnxruntime": onnxruntime.__version__}
    results["settings"] = {"target": target_here(), "calibration_samples": SAMPLES, "recipe": QuantConfig().recipe}
    same = (row["name"], row["shape"])
    kept = [entry for entry in results["models"] if (entry["name"], entry["shape"]) != same]
    results["models"] = sorted([*kept, row], key=lambda entry: (entry["shape"][0], entry["name"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(results, indent=1) + "\n").encode())
    return results


def main() -> None:
    arguments = parse_arguments()
    if not arguments.report_only:
        arguments.work.mkdir(parents=True, exist_ok=True)
        tools = Tools(arguments.nncf_python, arguments.onnxsim_python)
        forms = arguments.forms or form_names(tools, arguments.few)
        models = find_models(
            arguments.work, ROOT / "models", arguments.batch, arguments.export_python, arguments.models
        )
        for model in models:
            files, failed = prepare(model, forms, arguments.work, tools, not arguments.keep)
            print(f"{model.name} batch {arguments.batch}: {len(files)} forms, {len(failed)} failed", flush=True)
            if not arguments.prepare_only:
                merge(arguments.json, measure(model, files, failed, arguments))
    if not arguments.prepare_only:
        results = json.loads(arguments.json.read_text(encoding="utf-8"))
        table = render(results)
        write_bytes(arguments.json.with_suffix(".md"), table.encode())
        draw(results, arguments.json.with_suffix(".svg"))
        print(table)
        try:
            update_readme(results, ROOT / "README.md")
        except DataError as e:
            raise SystemExit(f"error: {e}") from None


if __name__ == "__main__":
    main()
