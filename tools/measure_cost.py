"""Time and memory of ``quantize`` with the default recipe, by model and by number of calibration images.

    python tools/measure_cost.py --json tools/results/cost.json [MODEL.onnx ...]

Each row is a process of its own on random images (the cost does not depend on what is in them). The models of
``models/`` are measured with 64 images, the first of them also with 16, 32 and 128; further files with 64.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from zoo.index import read_index
from zoo.machine import cpu_name

MODELS = Path(__file__).parent.parent / "models"
COUNTS = (16, 32, 64, 128)
USUAL = 64


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, help="further float models")
    parser.add_argument("--json", type=Path, help="where the rows go")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", type=int, metavar="IMAGES", help="measure the one model in this process")
    return parser.parse_args()


def measure_here(path: Path, images: int, threads: int) -> dict[str, Any]:
    """Quantize in this process."""
    import onnx_hyvit
    from onnx_hyvit.calibration import inputs_of
    from onnx_hyvit.graph.io import read_proto

    proto, _ = read_proto(path)
    (info,) = inputs_of(proto)
    shape = [images, *info.shape[1:]]
    data = {info.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    config = onnx_hyvit.QuantConfig(samples=None, threads=threads, verify=False, cache=False)
    wall, processor = time.perf_counter(), time.process_time()
    result = onnx_hyvit.quantize(path, calibration=data, config=config)
    return {
        "model": path.name,
        "input": list(info.shape[1:]),
        "images": images,
        "nodes": len(proto.graph.node),
        "blocks": len(result.report["reconstruction"]["blocks"]),
        "seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - processor, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def measure_apart(path: Path, images: int, threads: int) -> dict[str, Any]:
    """The same in a fresh process."""
    command = [sys.executable, __file__, str(path), "--one", str(images), "--threads", str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def main() -> int:
    arguments = parse_arguments()
    if arguments.one is not None:
        print(json.dumps(measure_here(arguments.models[0], arguments.one, arguments.threads)))
        return 0
    shipped = [MODELS / entry["file"] for entry in read_index(MODELS).values()]
    jobs = [(shipped[0], count) for count in COUNTS] + [(path, USUAL) for path in (*shipped[1:], *arguments.models)]
    rows = []
    for path, images in jobs:
        rows.append(measure_apart(path, images, arguments.threads))
        print(" ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        if arguments.json is not None:
            report = {"made_by": "make cost", "cpu": cpu_name(), "threads": arguments.threads, "rows": rows}
            arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
