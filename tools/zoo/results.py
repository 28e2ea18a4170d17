"""Float, `quantize_static` and onnx_hyvit side by side on every model of the zoo, in one run.

    python tools/evaluate.py --all --data DIR --json models/results.json

The baseline is what a user of onnxruntime gets by its own advice: quant_pre_process, then
quantize_static with uint8 activations, int8 weights per channel and MinMax calibration. On a processor without VNNI
both int8 forms have 7-bit weights (reduce_range, target ort-x86-avx2).
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from .datasets import Images, load_images, to_input
from .index import README, read_index
from .machine import cpu_name, has_vnni
from .readme import replace_between
from .scoring import open_session, paired_difference, predict, wilson

CALIBRATION_IMAGES = 64
RESULTS_START, RESULTS_END = "<!-- results: start -->", "<!-- results: end -->"
TITLES = {"float": "float32", "quantize_static": "quantize_static", "onnx_hyvit": "onnx_hyvit"}


def measure_all(
    models: Path, data: Path, threads: int, limit: int | None, known: Iterable[Mapping[str, Any]] = ()
) -> Iterator[dict[str, Any]]:
    """Quantize and measure every model of the index; yields all rows so far after each model.

    Args:
        models: folder with the index.
        data: folder with CIFAR-10; Fashion-MNIST comes from the shipped subset.
        threads: threads of onnxruntime.
        limit: test images per model, drawn with a fixed seed; all of them when None.
        known: rows of an earlier run that still hold, which are kept for the files that they were measured on.
    """
    kept = {(row["name"], row.get("sha256")): row for row in known}
    rows: list[Mapping[str, Any]] = []
    for entry in read_index(models).values():
        row = kept.get((entry["name"], entry["sha256"]))
        if row is None:
            folder = data if entry["dataset"] == "cifar10" else models
            test = draw(load_images(entry["dataset"], folder, "test"), limit)
            calibration = draw(load_images(entry["dataset"], folder, "train"), CALIBRATION_IMAGES)
            row = measure(models / entry["file"], entry, calibration, test, threads)
        rows.append(row)
        machine = {"cpu": cpu_name(), "vnni": has_vnni(), "onnxruntime": onnxruntime.__version__}
        yield {
            "calibration_images": CALIBRATION_IMAGES,
            "threads": threads,
            "machine": machine,
            "models": list(rows),
        }


def draw(images: Images, limit: int | None) -> Images:
    """All images, or `limit` of them drawn with a fixed seed (some files are sorted by class)."""
    if limit is None or limit >= len(images):
        return images
    return images.take(np.random.default_rng(0).permutation(len(images))[:limit])


def measure(path: Path, entry: Mapping[str, Any], calibration: Images, test: Images, threads: int) -> dict[str, Any]:
    """Accuracy, agreement with the float model, size and speed of the three forms of one model."""
    keys = entry["preprocessing"]
    x = to_input(calibration.pixels, keys["size"][0], keys["mean"], keys["std"])
    result: dict[str, Any] = {key: entry[key] for key in ("name", "dataset", "sha256")} | {"images": len(test)}
    with tempfile.TemporaryDirectory() as folder:
        files = {"float": path}
        for kind, make in (("quantize_static", quantize_static), ("onnx_hyvit", quantize_hyvit)):
            files[kind] = Path(folder) / f"{kind}.onnx"
            make(path, files[kind], x)
        sessions = {kind: open_session(file, threads) for kind, file in files.items()}
        labels = {kind: predict(session, test, keys).argmax(1) for kind, session in sessions.items()}
        speed = time_interleaved({kind: _one_image(session, x[:1]) for kind, session in sessions.items()})
        right = labels["float"] == test.labels
        for kind, file in files.items():
            ours = labels[kind] == test.labels
            result[kind] = {
                "top1": asdict(wilson(int(ours.sum()), len(ours))),
                "top1_difference": asdict(paired_difference(ours, right)),
                "agreement": asdict(wilson(int((labels[kind] == labels["float"]).sum()), len(ours))),
                "milliseconds": round(1000 * speed[kind], 3),
                "bytes": file.stat().st_size,
            }
    return result


def quantize_static(
    source: Path, target: Path, x: np.ndarray, method: str = "MinMax", reduce_range: bool | None = None
) -> None:
    """Quantize with onnxruntime: u8s8, per channel, after quant_pre_process.

    Args:
        source: float model.
        target: where the int8 model goes.
        x: calibration images as the model takes them.
        method: calibration method, as onnxruntime calls it.
        reduce_range: 7-bit weights; None where sums saturate here.
    """
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
    from onnxruntime.quantization import quantize_static as quantize
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from onnx_hyvit.runtime import sums_saturate

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds: Iterator[dict[str, np.ndarray]] = ({"input": x[i : i + 1]} for i in range(len(x)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    prepared = target.with_name("prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)  # that part needs sympy, adds notes only
    logging.disable(logging.WARNING)  # it warns of every vector that has no channel axis
    try:
        quantize(
            str(prepared),
            str(target),
            Reader(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=sums_saturate() if reduce_range is None else reduce_range,
            calibrate_method=CalibrationMethod[method],
        )
    finally:
        logging.disable(logging.NOTSET)


def quantize_hyvit(source: Path, target: Path, x: np.ndarray) -> None:
    """Quantize with this project's default recipe, on all the calibration images."""
    from onnx_hyvit.api import quantize
    from onnx_hyvit.config import QuantConfig

    quantize(source, target, calibration={"input": x}, config=QuantConfig(samples=None))


def _one_image(session: Any, x: np.ndarray) -> Callable[[], Any]:
    return lambda: session.run(None, {"input": x})


def time_interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int = 200) -> dict[str, float]:
    """Median seconds of each call; the calls take turns, so that a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 20):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if i >= 20:
                times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in times.items()}


def write_results(path: Path, results: Mapping[str, Any], more: Path | None = None) -> None:
    """Write the numbers as JSON and bring the table in the README beside it, and in ``more``, up to date.

    Raises:
        DataError: A README has no place for the table.
    """
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    for readme in (path.with_name(README), *([more] if more else [])):
        if readme.is_file():
            replace_between(readme, RESULTS_START, RESULTS_END, show_results(results))


def show_results(results: Mapping[str, Any]) -> str:
    """The table and what is to be said of it, Markdown."""
    return f"{render_results(results)}\n\n{describe_results(results)}"


def describe_results(results: Mapping[str, Any]) -> str:
    """Where the numbers were taken, and the means over the CIFAR-10 models."""
    machine, rows = results["machine"], [row for row in results["models"] if row["dataset"] == "cifar10"]
    vnni = "with VNNI" if machine["vnni"] else "without VNNI, so that both int8 forms have 7-bit weights"
    text = (
        f"{machine['cpu']} {vnni}, ONNX Runtime {machine['onnxruntime']}, {results['threads']} thread, "
        f"{results['calibration_images']} calibration images, all test images; the forms of a model take turns."
    )
    if not rows:
        return text
    parts = []
    for kind in ("onnx_hyvit", "quantize_static"):
        drops = [-100 * row[kind]["top1_difference"]["value"] for row in rows]
        agrees = np.mean([100 * row[kind]["agreement"]["value"] for row in rows])
        speed = np.mean([row["float"]["milliseconds"] / row[kind]["milliseconds"] for row in rows])
        parts.append(
            f"{TITLES[kind]}: mean drop {np.mean(drops):.2f} points (largest {max(drops):.2f}), {agrees:.2f} % keep "
            f"their class, {speed:.2f}x the speed of float"
        )
    return f"{text} Over the {len(rows)} CIFAR-10 models, {'; '.join(parts)}."


def render_results(results: Mapping[str, Any]) -> str:
    """Markdown table: top-1, agreement with float and time per image of the three forms."""
    head = ["model"]
    for title in TITLES.values():
        head += [f"{title} top-1", *([] if title == "float32" else ["agrees"]), "ms"]
    lines = [f"| {' | '.join(head)} |", f"|---{'|---:' * (len(head) - 1)}|"]
    for row in results["models"]:
        cells = [f"`{row['name']}`"]
        for kind in TITLES:
            cells.append(f"{100 * row[kind]['top1']['value']:.2f} %")
            if kind != "float":
                cells.append(f"{100 * row[kind]['agreement']['value']:.2f} %")
            cells.append(f"{row[kind]['milliseconds']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
