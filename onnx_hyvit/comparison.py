"""What an int8 model is worth beside its float model: accuracy, error along the graph, size, latency, kernels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from . import calibration as calib
from .errors import ModelError
from .graph.io import model_bytes, read_proto
from .graph.lookup import Lookup
from .kernel_audit import audit
from .labels import labels_of, load_labels
from .runtime import Session, benchmark, make_session
from .validate import compare_fused, find_saturation

SQNR_CAP = 200.0
TENSOR_SAMPLES = 8
Progress = Callable[[int, int, str], None]
Arrays = dict[str, np.ndarray]
Watch = Callable[[calib.Source, Sequence[Any], Arrays, Arrays, Arrays, Sequence[int] | None], None]


class ErrorMeter:
    """Streaming signal-to-noise ratio and cosine of two tensors, in float64, with constant memory."""

    def __init__(self) -> None:
        self.signal = self.noise = self.dot = self.other = 0.0
        self.largest = 0.0

    def update(self, expected: np.ndarray, found: np.ndarray) -> None:
        """Take in a pair of arrays of the same shape."""
        a, b = expected.astype(np.float64).ravel(), found.astype(np.float64).ravel()
        difference = a - b
        self.signal += _dot(a, a)
        self.other += _dot(b, b)
        self.dot += _dot(a, b)
        self.noise += _dot(difference, difference)
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))

    @property
    def sqnr_db(self) -> float:
        """``10 log10(signal / noise)`` in dB, within +-200 so that equal tensors give a finite number."""
        if self.noise == 0.0:
            return SQNR_CAP
        if not np.isfinite(self.noise) or self.signal == 0.0:
            return -SQNR_CAP
        return float(np.clip(10 * np.log10(self.signal / self.noise), -SQNR_CAP, SQNR_CAP))

    @property
    def cosine(self) -> float:
        """Cosine of the two tensors, 1.0 when both are zero."""
        norm = np.sqrt(self.signal * self.other)
        return float(self.dot / norm) if norm > 0 and np.isfinite(norm) else float(self.noise == 0.0)


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """Sum of products in this thread: BLAS wakes all cores for it, and its result depends on their number."""
    return float(np.einsum("i,i->", a, b))


class _Scores:
    """Counts of right answers and agreements over samples; class scores lie on the last axis of the first output."""

    def __init__(self) -> None:
        self.positions = self.agree = 0
        self.labelled = 0
        self.right = {"float_top1": 0, "int8_top1": 0, "float_top5": 0, "int8_top5": 0}
        self.classes = 0

    def update(self, expected: np.ndarray, found: np.ndarray, labels: Sequence[int] | None) -> None:
        self.classes = expected.shape[-1]
        self.agree += int((expected.argmax(-1) == found.argmax(-1)).sum())
        self.positions += int(np.prod(expected.shape[:-1]))
        if labels is None:
            return
        truth = np.asarray(labels)
        self.labelled += len(truth)
        for name, scores in (("float", expected), ("int8", found)):
            order = np.argsort(-scores.reshape(len(truth), -1), axis=-1, kind="stable")
            self.right[f"{name}_top1"] += int((order[:, 0] == truth).sum())
            self.right[f"{name}_top5"] += int((order[:, :5] == truth[:, None]).any(-1).sum())

    def accuracy(self) -> dict[str, float] | None:
        if not self.labelled:
            return None
        keep = ("top1", "top5") if self.classes > 5 else ("top1",)
        return {key: count / self.labelled for key, count in self.right.items() if key.endswith(keep)}


def compare(
    float_model: str | os.PathLike[str] | onnx.ModelProto,
    int8_model: str | os.PathLike[str] | onnx.ModelProto,
    data: Any,
    *,
    labels: str | os.PathLike[str] | np.ndarray | None = None,
    samples: int = 256,
    seed: int = 0,
    threads: int = 1,
    runs: int = 30,
    preprocess: calib.Preprocess | str | os.PathLike[str] | None = None,
    skip_unreadable: bool = False,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Compare two models with the same inputs and outputs.

    Args:
        float_model: The float model.
        int8_model: The quantized model.
        data: Data as for ``quantize``.
        labels: Class numbers: an array, or a file (``.npy``, ``.txt``, ``.csv``), see ``labels.load_labels``.
        samples: Samples at most.
        seed: Seed of the choice of samples.
        threads: Threads of both sessions.
        runs: Timed runs of each model, interleaved, batch 1.
        preprocess: For images, as for ``quantize``.
        skip_unreadable: Leave out unreadable images.
        progress: Called as ``progress(done, total, text)``.
        watch: Called with the data and, for each batch, sample ids, feeds, float outputs, int8 outputs and labels.

    Returns:
        Plain values: ``outputs`` (name -> ``sqnr_db``, ``cosine``), ``top1_agreement`` (0 to 1; None without class
        scores), ``accuracy`` (0 to 1), ``tensors`` (worst first), ``size``, ``latency``, ``audit``,
        ``fused_matches_unfused``, ``fused``, and ``saturation``: what sums without VNNI do here, or None.

    Raises:
        ModelError: A model cannot be used, or the two do not fit together.
        CalibrationError: The data cannot be used.
    """
    (reference, float_name), (quantized, int8_name) = read_proto(float_model), read_proto(int8_model)
    check_pair(reference, quantized, float_name, int8_name)
    if isinstance(preprocess, (str, os.PathLike)):
        preprocess = calib.load_preprocess(preprocess)
    source = calib.open_source(
        data,
        calib.inputs_of(reference),
        preprocess=preprocess,
        samples=samples,
        seed=seed,
        batch_size=1,
        skip_unreadable=skip_unreadable,
    )
    truth = load_labels(labels) if labels is not None else None
    sessions = {
        "float": make_session(reference, threads=threads),
        "int8": make_session(quantized, threads=threads, exact_sums=False),
    }
    meters, scores = _run_both(sessions, source, truth, progress, watch)
    feeds = next(iter(source))[1]
    saturation = find_saturation(quantized, feeds, threads=threads)
    fused = compare_fused(quantized, feeds)
    timed = benchmark(sessions, feeds, runs=runs)
    sizes = {"float_bytes": model_bytes(float_model), "int8_bytes": model_bytes(int8_model)}
    return {
        "float": float_name,
        "int8": int8_name,
        "samples": len(source),
        "outputs": {
            name: {"sqnr_db": meter.sqnr_db, "cosine": meter.cosine, "max_abs_diff": meter.largest}
            for name, meter in meters.items()
        },
        "top1_agreement": scores.agree / scores.positions if scores.positions else None,
        "accuracy": scores.accuracy(),
        "tensors": tensor_errors(reference, quantized, source),
        "size": {**sizes, "ratio": sizes["float_bytes"] / max(1, sizes["int8_bytes"])},
        "latency": {
            "float_ms": timed["float"].median_ms,
            "int8_ms": timed["int8"].median_ms,
            "speedup": timed["float"].median_ms / timed["int8"].median_ms,
            "threads": threads,
            "runs": runs,
        },
        "audit": audit(quantized).to_dict(),
        "fused_matches_unfused": fused.matches,
        "fused": fused.to_dict(),
        "saturation": saturation[0].message if saturation else None,
    }


def check_pair(reference: onnx.ModelProto, quantized: onnx.ModelProto, float_name: str, int8_name: str) -> None:
    """Refuse two models whose inputs or outputs differ.

    Raises:
        ModelError: Names both.
    """
    for kind in ("input", "output"):
        constants = {tensor.name for proto in (reference, quantized) for tensor in proto.graph.initializer}
        names = [
            [value.name for value in getattr(proto.graph, kind) if kind == "output" or value.name not in constants]
            for proto in (reference, quantized)
        ]
        if set(names[0]) != set(names[1]):
            raise ModelError(
                f"{int8_name}: its {kind}s are {names[1]}, those of {float_name} are {names[0]}; "
                "compare a model with the one it was made from"
            )


def _run_both(
    sessions: dict[str, Session],
    source: calib.Source,
    truth: Mapping[str, int] | np.ndarray | None,
    progress: Any,
    watch: Watch | None,
) -> tuple[dict[str, ErrorMeter], _Scores]:
    names = sessions["float"].output_names
    meters = {name: ErrorMeter() for name in names}
    scores = _Scores()
    done = 0
    for ids, feeds in source:
        expected, found = (
            {name: value[: len(ids)] if value.ndim else value for name, value in session.run(feeds, names).items()}
            for session in sessions.values()
        )
        for name in names:
            if expected[name].dtype.kind == "f":
                meters[name].update(expected[name], found[name])
        known = None if truth is None else labels_of(ids, truth)
        first = expected[names[0]]
        if first.ndim >= 2 and first.shape[-1] > 1:
            scores.update(first, found[names[0]], known)
        if watch is not None:
            watch(source, ids, feeds, expected, found, known)
        done += len(ids)
        if progress is not None:
            progress(done, len(source), "comparing")
    return meters, scores


def tensor_errors(reference: onnx.ModelProto, quantized: onnx.ModelProto, source: calib.Source) -> list[dict[str, Any]]:
    """SQNR of every float tensor that both graphs have, on a few samples, worst first.

    A tensor that the int8 graph quantizes is read behind its DequantizeLinear, so its own rounding counts. Both graphs
    run with optimisation off, so that every tensor exists.
    """
    pairs = _shared_tensors(reference, quantized)
    if not pairs:
        return []
    sessions = (
        make_session(exposing(reference, list(pairs)), optimize=False),
        make_session(exposing(quantized, list(pairs.values())), optimize=False),
    )
    meters = {name: ErrorMeter() for name in pairs}
    for done, (_, feeds) in enumerate(source):
        if done >= TENSOR_SAMPLES:
            break
        expected, found = sessions[0].run(feeds, list(pairs)), sessions[1].run(feeds, list(pairs.values()))
        for name, other in pairs.items():
            if expected[name].shape == found[other].shape and expected[name].dtype.kind == "f":
                meters[name].update(expected[name], found[other])
    makers = {output: node.op_type for node in reference.graph.node for output in node.output}
    rows = [
        {"name": name, "op": makers.get(name, "input"), "sqnr_db": meter.sqnr_db}
        for name, meter in meters.items()
        if meter.signal > 0
    ]
    return sorted(rows, key=lambda row: row["sqnr_db"])


def _shared_tensors(reference: onnx.ModelProto, quantized: onnx.ModelProto) -> dict[str, str]:
    """Float tensor -> the tensor of the int8 graph to compare with, in the float graph's order."""
    view, pairs = Lookup(quantized.graph), {}
    for node in reference.graph.node:
        if node.op_type in ("Constant", "Shape"):
            continue
        for name in node.output:
            if name in view.makers:
                pairs[name] = _dequantized(name, view)
    return pairs


def _dequantized(name: str, view: Lookup) -> str:
    for node in view.readers.get(name, ()):
        if node.op_type == "QuantizeLinear" and node.input[0] == name:
            codes = node.output[0]
            for reader in view.readers.get(codes, ()):
                if reader.op_type == "Clip":
                    codes = reader.output[0]
            for reader in view.readers.get(codes, ()):
                if reader.op_type == "DequantizeLinear":
                    return reader.output[0]
    return name


def exposing(proto: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy of ``proto`` that also gives out the tensors of these names."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    present = {output.name for output in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in present)
    return copy
