"""What an int8 model is worth beside its float model: accuracy, error along the graph, size, latency, kernels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import onnx

from . import calibration as calib
from .errors import ModelError
from .evaluation import Watch, evaluate
from .graph.io import model_bytes, read_proto
from .graph.lookup import Lookup
from .kernel_audit import audit
from .labels import load_labels
from .runtime import benchmark, make_session
from .scores import ErrorMeter
from .tasks import Workers, check_jobs, local_processes
from .validate import compare_fused, find_saturation

TENSOR_SAMPLES = 8
Progress = Callable[[int, int, str], None]


def compare(
    float_model: str | os.PathLike[str] | onnx.ModelProto,
    int8_model: str | os.PathLike[str] | onnx.ModelProto,
    data: Any,
    *,
    labels: str | os.PathLike[str] | np.ndarray | Mapping[str, int] | None = None,
    samples: int = 256,
    seed: int = 0,
    threads: int = 1,
    runs: int = 30,
    preprocess: calib.Preprocess | str | os.PathLike[str] | None = None,
    skip_unreadable: bool = False,
    jobs: int = 1,
    executor: Executor | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Compare two models with the same inputs and outputs.

    Args:
        float_model: The float model.
        int8_model: The quantized model.
        data: Data as for ``quantize``.
        labels: Class numbers: an array, or a file (``.npy``, ``.txt``, ``.csv``), see ``labels.load_labels``, or what
            that gave.
        samples: Samples at most.
        seed: Seed of the choice of samples.
        threads: Threads of both sessions.
        runs: Timed runs of each model, interleaved, batch 1.
        preprocess: For images, as for ``quantize``.
        skip_unreadable: Leave out unreadable images.
        jobs: Processes that share out the samples, 1 to 256; the numbers do not depend on it. A script that uses
            processes must call this below ``if __name__ == "__main__":``.
        executor: Takes the samples instead of local processes: any ``concurrent.futures.Executor``, such as that of a
            dask ``Client``. Its workers must see the same models and images; other data are sent to them.
        progress: Called as ``progress(done, total, text)``.
        watch: Looks on, see ``evaluation.Watch``.

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
    check_jobs(jobs)
    workers = _workers(jobs, executor)
    data = absolute(data) if workers is not None else data
    source = open_samples(reference, data, preprocess, samples, seed, skip_unreadable)
    truth = None if labels is None else load_labels(labels)
    sessions = {
        "float": make_session(reference, threads=threads),
        "int8": make_session(quantized, threads=threads, exact_sums=False),
    }
    both = sessions["float"], sessions["int8"]
    tally = evaluate(
        (float_model, int8_model),
        both,
        source,
        truth,
        threads=threads,
        workers=workers,
        watch=watch,
        progress=progress,
    )
    scores = tally.scores
    feeds = next(iter(source))[1]
    saturation = find_saturation(quantized, feeds, threads=threads)
    fused = compare_fused(quantized, feeds)
    timed = benchmark(sessions, feeds, runs=runs)
    sizes = {"float_bytes": model_bytes(float_model), "int8_bytes": model_bytes(int8_model)}
    return {
        "float": float_name,
        "int8": int8_name,
        "samples": tally.samples,
        "outputs": {
            name: {"sqnr_db": meter.sqnr_db, "cosine": meter.cosine, "max_abs_diff": meter.largest}
            for name, meter in tally.meters.items()
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


def open_samples(
    proto: onnx.ModelProto,
    data: Any,
    preprocess: calib.Preprocess | str | os.PathLike[str] | None,
    samples: int,
    seed: int,
    skip_unreadable: bool,
) -> calib.Source:
    """The data as samples, one at a time where the model allows it; see ``compare``."""
    if isinstance(preprocess, (str, os.PathLike)):
        preprocess = calib.load_preprocess(preprocess)
    return calib.open_source(
        data,
        calib.inputs_of(proto),
        preprocess=preprocess,
        samples=samples,
        seed=seed,
        batch_size=1,
        skip_unreadable=skip_unreadable,
    )


def absolute(data: Any) -> Any:
    """``data`` for workers, which may be in another folder."""
    return os.path.abspath(data) if isinstance(data, (str, os.PathLike)) else data


def _workers(jobs: int, executor: Executor | None) -> AbstractContextManager[Workers] | None:
    """Who shares out the samples; None is this process."""
    if executor is not None:
        return nullcontext(Workers(executor, jobs))
    return local_processes(jobs) if jobs > 1 else None


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
