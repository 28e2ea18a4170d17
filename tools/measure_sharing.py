"""What threads and processes gain: the same work with one and with two of them, in turns.

    python tools/measure_sharing.py --json tools/results/sharing.json --readme README.md [MODEL.onnx ...]

Work: ``quantize`` with the default recipe by threads; independent blocks (``ptq4vit``), several models, and ``compare``
by ``--jobs``; each in processes of its own, on random images (the time does not depend on what is in
them). Rounds take turns, so that other load meets all alike; medians are compared. Files are compared, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from zoo.index import read_index
from zoo.machine import cpu_name
from zoo.readme import replace_between

from onnx_hyvit.calibration import inputs_of
from onnx_hyvit.graph.io import read_proto

MODELS = Path(__file__).parent.parent / "models"
IMAGES = 64
COMPARED = 4000
SEVERAL = 4
START, END = "<!-- sharing: start -->", "<!-- sharing: end -->"


@dataclass(frozen=True)
class Work:
    """Something to be done with different numbers of threads or processes.

    Args:
        name: For the table.
        by: ``threads`` or ``jobs``.
        command: Arguments of ``onnx-hyvit``; ``{n}`` is the number, ``{out}`` a path to write to.
    """

    name: str
    by: str
    command: tuple[str, ...]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, help="further float models, for quantize by threads")
    parser.add_argument("--json", type=Path, required=True, help="where the rows go")
    parser.add_argument("--readme", type=Path, help="file whose table is replaced")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--render", action="store_true", help="only write the table of what is measured already")
    return parser.parse_args()


def images_for(model: Path, count: int, folder: Path) -> Path:
    """An .npy of random images for a model."""
    (info,) = inputs_of(read_proto(model)[0])
    path = folder / f"{model.stem}.{count}.npy"
    np.save(path, np.random.default_rng(0).standard_normal((count, *info.shape[1:])).astype(np.float32))
    return path


def works(models: list[Path], folder: Path) -> Iterator[Work]:
    """All that is measured."""
    index = read_index(MODELS)
    shipped = {name: MODELS / entry["file"] for name, entry in index.items()}
    first = shipped["cifar_mobilevit_xxs"]
    same_shape = [path for name, path in shipped.items() if index[name]["dataset"] == "cifar10"][:SEVERAL]
    common = ("--no-verify", "--no-cache", "-q", "-o", "{out}")
    for path in (first, shipped["cifar_efficientformerv2_s0"], *models):
        calib = str(images_for(path, IMAGES, folder))
        yield Work(
            f"`quantize {path.stem}`", "threads", ("quantize", str(path), "--calib", calib, *common, "--threads", "{n}")
        )
    calib = str(images_for(first, IMAGES, folder))
    shared = ("--calib", calib, *common, "--threads", "2", "--jobs", "{n}")
    blocks = ("quantize", str(first), "--recipe", "ptq4vit", *shared)
    yield Work(f"`quantize --recipe ptq4vit {first.stem}`", "jobs", blocks)
    yield Work(f"`quantize` {SEVERAL} models", "jobs", ("quantize", *map(str, same_shape), *shared))
    int8 = folder / "int8.onnx"
    run(["quantize", str(first), "--calib", calib, "--recipe", "minmax", "-q", "-o", str(int8)])
    data = str(images_for(first, COMPARED, folder))
    compare = ("compare", str(first), str(int8), "--data", data, "--samples", str(COMPARED), "--json", "--jobs", "{n}")
    yield Work(f"`compare --samples {COMPARED} {first.stem}`", "jobs", compare)


def run(command: list[str]) -> str:
    done = subprocess.run([sys.executable, "-m", "onnx_hyvit", *command], check=True, capture_output=True, text=True)
    return done.stdout


def measure(work: Work, rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds with one and with two, in turns, and whether both gave the same."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    made = set()
    for number in range(rounds):
        for count in (1, 2) if number % 2 == 0 else (2, 1):
            with tempfile.TemporaryDirectory(dir=folder) as out:
                target = Path(out) / "out"
                if work.name.endswith("models"):
                    target.mkdir()
                start = time.perf_counter()
                printed = run([part.format(n=count, out=target) for part in work.command])
                seconds[count].append(time.perf_counter() - start)
                made.add(result_of(target, printed))
    one, two = (statistics.median(times) for times in seconds.values())
    return {
        "work": work.name,
        "by": work.by,
        "one": round(one, 1),
        "two": round(two, 1),
        "gain": round(one / two, 2),
        "same": len(made) == 1,
    }


def result_of(target: Path, printed: str) -> str:
    """What came out, without what clocks decide."""
    if printed:
        report = json.loads(printed)
        return json.dumps([report["outputs"], report["top1_agreement"], report["tensors"]])
    files = sorted(target.iterdir()) if target.is_dir() else [target]
    return " ".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)


def table(report: dict[str, Any]) -> str:
    lines = ["| work | by | one | two | gain |", "|---|---|---:|---:|---:|"]
    lines += [
        f"| {row['work']} | {row['by']} | {row['one']:.1f} s | {row['two']:.1f} s | {row['gain']:.2f}x |"
        for row in report["rows"]
    ]
    same = "all gave the same results" if all(row["same"] for row in report["rows"]) else "results differ"
    return "\n".join([*lines, "", f"{report['cpu']}, two cores; medians of {report['rounds']} runs in turns; {same}."])


def main() -> int:
    arguments = parse_arguments()
    report: dict[str, Any] = {"made_by": "make sharing", "cpu": cpu_name(), "rounds": arguments.rounds, "rows": []}
    if arguments.render:
        report = json.loads(arguments.json.read_text(encoding="utf-8"))
    else:
        with tempfile.TemporaryDirectory() as name:
            for work in works(arguments.models, Path(name)):
                report["rows"].append(measure(work, arguments.rounds, Path(name)))
                print(" ".join(f"{key} {value}" for key, value in report["rows"][-1].items()), flush=True)
                arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(report))
    if arguments.readme is not None:
        replace_between(arguments.readme, START, END, table(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
