"""Accuracy of every recipe at several bit widths, and of other tools, on the models of the zoo.

    python tools/measure_recipes.py --data DIR --json tools/results/recipes.json --readme README.md
    python tools/measure_recipes.py --data DIR --ablation --json tools/results/ablation.json --readme README.md

Each cell quantizes a model with images drawn from the training split by a seed and classifies the test images. Sessions
sum exactly (`session.x64quantprecision`), so that the numbers are those of a processor with VNNI, whichever one runs
this. Other tools get the same images; they know only 8 bits, and where one fails, or writes a file that ONNX Runtime
does not load, the cell says so. With `--ablation` the parts of the default recipe are added one after the other. The
file is written after every cell; cells that are in it already, of the same models, are not measured again. Runs side by
side write files of their own, which `--join` puts together.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from recipe_tables import BITS, PEERS, ablation_table, recipes_table
from zoo.datasets import DataError, Images, load_images, to_input
from zoo.index import read_index
from zoo.readme import replace_between
from zoo.results import draw, quantize_static
from zoo.scoring import predict

import onnx_hyvit
from onnx_hyvit.config import QuantConfig
from onnx_hyvit.numerics.ranges import RangeMethod
from onnx_hyvit.recipes import FOLDS, RECIPES, SCALES_ONLY, Recipe, Reconstruction, add_recipe
from onnx_hyvit.runtime.session import EXACT_SUMS

MODELS = Path(__file__).parent.parent / "models"
PLACE = ("seed", "model", "bits", "recipe")
PEER_SCRIPTS = Path(__file__).parent / "speed" / "peers"


def ablation() -> list[Recipe]:
    """The default recipe, part by part; each has what the one before it has."""
    steps = {
        "1 minmax": {},
        "2 + searched scales": {
            "ranges": RangeMethod("mse"), "weights": "mse", "reconstruction": replace(SCALES_ONLY, search=True)
        },
        "3 + granularity, folded": {"gains": True},
        "3b + folds through moves": {"folds": FOLDS},
        "3c granularity by measured error": {"measure_gains": True},
        "4 + scheme": {"measure_gains": False, "reconstruction": replace(SCALES_ONLY, try_symmetric=True)},
        "5 - scheme + weight rounding": {
            "reconstruction": Reconstruction(ridge=False, correct_bias=False, refit=False)
        },
        "6 + bias correction": {"reconstruction": Reconstruction(ridge=False, refit=False)},
        "7 + ridge": {"reconstruction": Reconstruction(refit=False)},
        "8 + scales of weights fitted again": {"reconstruction": Reconstruction()},
        "9 + mixed precision": {"precision": True},
    }  # fmt: skip
    recipes, parts = [], {"folds": frozenset()}
    for name, more in steps.items():
        parts |= more
        recipes.append(Recipe(name, "a step of the ablation", **parts))
    return recipes


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10")
    parser.add_argument("--models", type=Path, default=MODELS, help="folder with index.json")
    parser.add_argument("--only", nargs="*", help="names of models; all CIFAR-10 models when left out")
    parser.add_argument("--recipes", nargs="*", default=tuple(RECIPES))
    parser.add_argument("--bits", nargs="*", default=BITS)
    parser.add_argument("--ablation", action="store_true", help="the parts of the default recipe instead of recipes")
    parser.add_argument("--peers", nargs="*", default=(), choices=PEERS, help="other tools to measure, at w8a8")
    parser.add_argument("--nncf-python", help="interpreter with NNCF")
    parser.add_argument("--onnxsim-python", help="interpreter with onnxsim")
    parser.add_argument("--seeds", type=int, default=3, help="draws of calibration images (default 3)")
    parser.add_argument("--samples", type=int, default=32, help="calibration images (default 32)")
    parser.add_argument("--limit", type=int, help="test images, drawn with a fixed seed; all when left out")
    parser.add_argument("--unfused", action="store_true", help="classify without fused kernels, too: twice the time")
    parser.add_argument("--json", type=Path, required=True, help="results; an existing file is continued")
    parser.add_argument("--readme", type=Path, help="file whose table is replaced")
    parser.add_argument("--render", action="store_true", help="only write the table of what is measured already")
    parser.add_argument("--join", nargs="*", type=Path, default=(), help="results of other runs to put into --json")
    return parser.parse_args(argv)


def cells(arguments: argparse.Namespace, names: list[str]) -> Iterator[tuple[int, str, str, str]]:
    """Seed, model, bits, recipe or tool of every cell; whole seeds first, so that an interrupted run can be read."""
    for seed in range(arguments.seeds):
        for name in names:
            for bits in arguments.bits:
                methods = (*arguments.recipes, *(arguments.peers if bits == "w8a8" else ()))
                yield from ((seed, name, bits, method) for method in methods)


def session_of(model: Path | bytes, unfused: bool = False) -> Any:
    """An onnxruntime session with exact int8 sums; one thread, so that several runs share a processor well."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    for key, value in EXACT_SUMS.items():
        options.add_session_config_entry(key, value)
    if unfused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def measure(
    entry: Mapping[str, Any],
    path: Path,
    train: Images,
    test: Images,
    exact: np.ndarray,
    cell: tuple[int, str, str, str],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Quantize and classify: accuracy, agreement with the float model, seconds."""
    seed, name, bits, recipe = cell
    keys = entry["preprocessing"]
    chosen = train.take(np.random.default_rng(1000 + seed).permutation(len(train))[: arguments.samples])
    x = to_input(chosen.pixels, keys["size"][0], keys["mean"], keys["std"])
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "int8.onnx"
        data = {entry["input"]["name"]: x}
        if recipe in PEERS:
            quantize_elsewhere(recipe, path, output, data, arguments)
        else:
            config = QuantConfig(
                recipe=recipe,
                bits=bits,
                target="ort-x86",
                samples=None,
                seed=seed,
                threads=1,
                verify=False,
                cache=False,
            )
            onnx_hyvit.quantize(path, output, calibration=data, config=config)
        seconds = time.perf_counter() - start
        found = predict(session_of(output), test, keys).argmax(1)
        plain = predict(session_of(output, unfused=True), test, keys).argmax(1) if arguments.unfused else None
    cell_of = {
        "seed": seed,
        "model": name,
        "sha256": entry["sha256"],
        "bits": bits,
        "recipe": recipe,
        "images": len(test),
        "float_top1": round(float((exact == test.labels).mean()), 5),
        "top1": round(float((found == test.labels).mean()), 5),
        "agreement": round(float((found == exact).mean()), 5),
        "seconds": round(seconds, 1),
    }
    if plain is not None:
        cell_of["unfused_top1"] = round(float((plain == test.labels).mean()), 5)
        cell_of["unfused_agreement"] = round(float((plain == exact).mean()), 5)
    return cell_of


def quantize_elsewhere(
    tool: str, path: Path, output: Path, data: Mapping[str, np.ndarray], arguments: argparse.Namespace
) -> None:
    """Quantize with another tool, in its own environment where it needs one."""
    name, _, method = tool.partition("-")
    if name == "ort":
        quantize_static(path, output, next(iter(data.values())), {"minmax": "MinMax"}.get(method, "Percentile"), False)
        return
    python = getattr(arguments, f"{name}_python")
    if python is None:
        raise DataError(f"{tool} needs --{name}-python, an interpreter that has it")
    stored = output.with_suffix(".npz")
    np.savez(stored, **data)
    script = PEER_SCRIPTS / f"{name}_quantize.py"
    command = [python, str(script), str(path), str(output), str(stored), *([method] if method else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise DataError(f"{tool} failed on {path.name}: {lines[-1][:200]}")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure what is missing; returns all results."""
    index = read_index(arguments.models)
    names = arguments.only or [name for name, entry in index.items() if entry["dataset"] == "cifar10"]
    train = load_images("cifar10", arguments.data, "train")
    test = draw(load_images("cifar10", arguments.data, "test"), arguments.limit)
    results = {"calibration_images": arguments.samples, "cells": []}
    if arguments.json.is_file():
        results = json.loads(arguments.json.read_text(encoding="utf-8"))
    current = {name: entry["sha256"] for name, entry in index.items()}
    results["cells"] = [cell for cell in results["cells"] if cell["sha256"] == current.get(cell["model"])]
    done = {place_of(cell) for cell in results["cells"]}
    exact: dict[str, np.ndarray] = {}
    for cell in cells(arguments, names):
        if cell in done:
            continue
        entry = index[cell[1]]
        path = arguments.models / entry["file"]
        if cell[1] not in exact:
            exact[cell[1]] = predict(session_of(path), test, entry["preprocessing"]).argmax(1)
        try:
            found = measure(entry, path, train, test, exact[cell[1]], cell, arguments)
            text = f"top-1 {100 * found['top1']:.2f} %, agrees {100 * found['agreement']:.2f} %"
        except Exception as error:
            if cell[3] not in PEERS:
                raise
            text = f"failed: {' '.join(str(error).split())[-160:]}"
            found = dict(zip(PLACE, cell, strict=True))
            found |= {"sha256": entry["sha256"], "failed": text}
        results["cells"].append(found)
        write(arguments.json, results)
        print(f"{cell}: {text}", flush=True)
    return results


def place_of(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a measured cell from the others, in the order of ``PLACE``."""
    return tuple(cell[key] for key in PLACE)


def join(results: dict[str, Any], others: Iterable[Path]) -> dict[str, Any]:
    """Put the cells of other files of results in; of two of the same cell the one of more images and sessions stays."""

    def size(cell: Mapping[str, Any]) -> tuple[int, bool]:
        return cell.get("images", 0), "unfused_top1" in cell

    cells = {place_of(cell): cell for cell in results["cells"]}
    for path in others:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            there = cells.get(place_of(cell))
            if there is None or size(cell) >= size(there):
                cells[place_of(cell)] = cell
    return {**results, "cells": list(cells.values())}


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write the results so that a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    if arguments.ablation:
        for recipe in ablation():
            add_recipe(recipe)
        arguments.recipes = [recipe.name for recipe in ablation()]
    try:
        results = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.render else run(arguments)
        if arguments.join:
            results = join(results, arguments.join)
            write(arguments.json, results)
        table = ablation_table(results) if arguments.ablation else recipes_table(results)
        print(table)
        if arguments.readme is not None:
            name = "ablation" if arguments.ablation else "recipes"
            replace_between(arguments.readme, f"<!-- {name}: start -->", f"<!-- {name}: end -->", table)
    except DataError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
