"""Measure a model of the zoo, or a quantized copy of one, through onnxruntime; needs no torch.

    python tools/evaluate.py models/fashion_mobilevit_xxs.onnx --data models
    python tools/evaluate.py cifar_swin_int8.onnx --data DIR --against models/cifar_swin.onnx
    python tools/evaluate.py --all --data DIR --json models/results.json

Reports top-1 with its 95 % Wilson interval and, with `--against`, how often both models agree and
the difference of their accuracies on the same images. The preprocessing comes from the index of the
zoo: the entry is found by the beginning of the file name, or named with `--entry`. `--all` quantizes
every model of the zoo and compares float32, onnxruntime's quantize_static and onnx_hyvit.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zoo.datasets import DataError, load_images
from zoo.index import find_entry, read_index
from zoo.results import draw, measure_all, render_results, write_results
from zoo.scoring import open_session, paired_difference, predict, wilson

MODELS = Path(__file__).resolve().parent.parent / "models"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", help="ONNX model, float or quantized")
    parser.add_argument("--all", action="store_true", help="quantize and compare every model of the zoo")
    parser.add_argument("--data", type=Path, required=True, help="folder with the images, or an archive or npz file")
    parser.add_argument("--against", type=Path, metavar="MODEL", help="another model of the same task")
    parser.add_argument("--entry", help="name in the index, if the file name does not begin with it")
    parser.add_argument("--models", type=Path, default=MODELS, help="folder with index.json (default: %(default)s)")
    parser.add_argument("--split", default="test", choices=("test", "train"), help="images to use (default test)")
    parser.add_argument("--limit", type=int, help="use only so many images, drawn with a fixed seed")
    parser.add_argument("--threads", type=int, default=0, help="threads of onnxruntime (default: its own choice)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file, too")
    parser.add_argument("--readme", type=Path, help="with --all and --json: another file whose table is replaced")
    parser.add_argument("--resume", action="store_true", help="with --all: keep the rows that --json has already")
    arguments = parser.parse_args(argv)
    if arguments.all == (arguments.model is not None):
        parser.error("name one model, or give --all")
    if arguments.limit is not None and arguments.limit < 1:
        parser.error(f"--limit must be at least 1, found {arguments.limit}")
    return arguments


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the numbers as JSON-ready values."""
    entry = find_entry(read_index(arguments.models), arguments.model, arguments.entry)
    images = draw(load_images(entry["dataset"], arguments.data, arguments.split), arguments.limit)
    start = time.perf_counter()
    logits = predict(open_session(arguments.model, arguments.threads), images, entry["preprocessing"])
    seconds = time.perf_counter() - start
    right = logits.argmax(1) == images.labels
    result: dict[str, Any] = {
        "model": arguments.model.name,
        "entry": entry["name"],
        "dataset": entry["dataset"],
        "split": arguments.split,
        "top1": asdict(wilson(int(right.sum()), len(right))),
        "seconds": round(seconds, 2),
    }
    if arguments.against is not None:
        other = predict(open_session(arguments.against, arguments.threads), images, entry["preprocessing"]).argmax(1)
        result["against"] = arguments.against.name
        result["agreement"] = asdict(wilson(int((logits.argmax(1) == other).sum()), len(other)))
        result["top1_difference"] = asdict(paired_difference(right, other == images.labels))
    return result


def show(result: dict[str, Any]) -> str:
    """The result as text, one measure a line."""
    lines = [f"{result['model']} ({result['dataset']}, {result['split']} images)", _line("top-1", result["top1"])]
    if "against" in result:
        lines.append(_line(f"agreement with {result['against']}", result["agreement"]))
        lines.append(_line("top-1 minus the other's", result["top1_difference"]))
    return "\n".join(lines)


def _line(title: str, share: dict[str, Any]) -> str:
    low, high = 100 * share["low"], 100 * share["high"]
    return f"  {title}: {100 * share['value']:.2f} % (95 %: {low:.2f} to {high:.2f}; {share['n']} images)"


def evaluate_all(arguments: argparse.Namespace) -> int:
    """Measure every model; the file is written after each, so that an interrupted run can go on with --resume."""
    known = []
    if arguments.resume and arguments.json is not None and arguments.json.is_file():
        known = json.loads(arguments.json.read_text(encoding="utf-8"))["models"]
    for results in measure_all(arguments.models, arguments.data, arguments.threads, arguments.limit, known):
        if arguments.json is not None:
            write_results(arguments.json, results, arguments.readme)
    print(render_results(results))
    return 0


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        if arguments.all:
            return evaluate_all(arguments)
        result = evaluate(arguments)
    except DataError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    print(show(result))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
