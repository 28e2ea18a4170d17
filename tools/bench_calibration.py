"""Time and peak memory of calibration, against onnxruntime's quantize_static.

    python tools/bench_calibration.py MODEL.onnx [--samples 64] [--memory 50 1000] [--size 256]

Every row runs in a process of its own on the same seeded JPEG images. ``collect`` is one pass over the activations that
a plan could quantize (outputs of operators that compute, not of those that move data); ``quantize`` is this package's
whole plain run; ``quantize_static`` is onnxruntime's, which includes its own pass over the data. CPU seconds are the
number to compare on a busy machine. ``growth`` is the peak memory above what the process held before calibration began.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from onnx_hyvit.calibration import PRESETS, Source, inputs_of, open_source

MOVES = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Split", "Gather", "Expand"}
MINE = ("minmax", "percentile", "mse")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--memory", type=int, nargs=2, default=(50, 1000), metavar=("FEW", "MANY"))
    parser.add_argument("--methods", nargs="+", default=["minmax", "percentile"], choices=MINE)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--skip", nargs="*", default=[], choices=["time", "memory", "quantize"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child, args.model, Path(args.folder), args.samples)))
        return
    rows: list[tuple[str, int]] = []
    if "time" not in args.skip:
        rows += [("quantize_static minmax", args.samples)] + [
            (f"collect {name}", args.samples) for name in args.methods
        ]
        rows += [] if "quantize" in args.skip else [(f"quantize {name}", args.samples) for name in args.methods]
    if "memory" not in args.skip:
        rows += [(f"collect {name}", count) for name in args.methods for count in args.memory]
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), max(count for _, count in rows), args.size)
        print(f"{'run':<24}{'images':>7}{'wall s':>9}{'cpu s':>9}{'peak MB':>9}{'growth MB':>11}")
        for name, count in rows:
            print_row(name, count, args.model, folder)


def print_row(name: str, count: int, model: str, folder: str) -> None:
    command = [sys.executable, __file__, model, "--child", name, "--folder", folder, "--samples", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{name:<24}{count:>7}  failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:120]}")
        return
    found = json.loads(done.stdout.strip().splitlines()[-1])
    print(
        f"{name:<24}{count:>7}{found['wall']:>9.2f}{found['cpu']:>9.2f}{found['peak']:>9.0f}{found['growth']:>11.0f}",
        flush=True,
    )


def write_images(folder: Path, count: int, size: int) -> None:
    """Smooth random pictures, so that JPEG stays small."""
    rng = np.random.default_rng(0)
    for index in range(count):
        blocks = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(blocks).resize((size, size)).save(folder / f"{index:05}.jpg", quality=85)


def measure(name: str, model: str, folder: Path, samples: int) -> dict[str, float]:
    """Run one row in this process."""
    tool, method = name.split()
    proto = onnx.load(model)
    source = open_source(folder, inputs_of(proto), preprocess=PRESETS["unit"], samples=samples)
    run = {"collect": run_collect, "quantize": run_quantize, "quantize_static": run_quantize_static}[tool]
    import onnxruntime.quantization  # noqa: F401 - its import is not part of any row

    before, wall, cpu = peak_mb(), time.perf_counter(), cpu_seconds()
    run(proto, model, source, method)
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    return {"wall": wall, "cpu": cpu, "peak": peak_mb(), "growth": peak_mb() - before}


def run_collect(proto: onnx.ModelProto, model: str, source: Source, method: str) -> None:
    from onnx_hyvit.numerics import QuantSpec, RangeMethod
    from onnx_hyvit.runtime import collect

    types = onnx.shape_inference.infer_shapes(proto).graph
    floats = {value.name for value in types.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    tensors = [
        output
        for node in proto.graph.node
        if node.op_type not in MOVES and node.op_type != "Constant"
        for output in node.output
        if output in floats
    ]
    ranges = RangeMethod(method)
    for observer in collect(proto, tensors, source, lambda _: ranges.observer()).values():
        ranges.qparams(observer, QuantSpec())


def run_quantize(proto: onnx.ModelProto, model: str, source: Source, method: str) -> None:
    import onnx_hyvit

    with tempfile.TemporaryDirectory() as folder:
        config = onnx_hyvit.QuantConfig(recipe=method)
        onnx_hyvit.quantize(model, str(Path(folder, "out.onnx")), calibration=source, config=config)


def run_quantize_static(proto: onnx.ModelProto, model: str, source: Source, method: str) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(source)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else batch[1]

    with tempfile.TemporaryDirectory() as folder:
        quantize_static(model, str(Path(folder, "out.onnx")), Reader(), per_channel=True)


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
