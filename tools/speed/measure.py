"""Measure every form of one model in one run: latency in turns, size, load time and memory."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnx_hyvit.runtime import RuntimeFailure, make_session, paired_ratio, summarise, take_turns

from .models import BenchModel

CHILD = Path(__file__).with_name("child.py")
BASE = "float"


def measure_latency(
    model: BenchModel, files: Mapping[str, Path], threads: int, seconds: float, runs: int
) -> dict[str, dict[str, float]]:
    """Latency of each form, and its speed-up over float from paired runs.

    One thread is measured in processor time, which other processes on the machine disturb little; more in wall time.

    Args:
        model: Gives the input.
        files: Form -> model file; ``float`` is among them.
        threads: Threads inside an operator.
        seconds: Time for all timed runs together.
        runs: Turns at most.

    Returns:
        Form -> ``ms``, ``p10_ms``, ``p90_ms``, ``runs``, ``speedup``, ``speedup_low``, ``speedup_high`` (95 %).
    """
    sessions = {form: make_session(path, threads=threads, exact_sums=False, name=form) for form, path in files.items()}
    images = {model.input: model.images(model.shape[0])}
    clock = time.process_time if threads == 1 else time.perf_counter
    taken = take_turns(sessions, images, runs, warmup=3, seconds=seconds, clock=clock)
    results = {}
    for form, latencies in taken.items():
        timing, ratio = summarise(latencies), paired_ratio(taken[BASE], latencies)
        results[form] = {
            "ms": round(timing.median_ms, 3),
            "p10_ms": round(timing.p10_ms, 3),
            "p90_ms": round(timing.p90_ms, 3),
            "runs": timing.runs,
            "speedup": round(ratio.median, 3),
            "speedup_low": round(ratio.low, 3),
            "speedup_high": round(ratio.high, 3),
        }
    return results


def measure_footprint(model: BenchModel, path: Path, loads: int) -> dict[str, Any]:
    """Bytes of the file, median load time of ``loads`` processes, and how far their memory grew at most."""
    command = [sys.executable, str(CHILD), str(path), model.input, *map(str, model.shape)]
    found = []
    for _ in range(loads):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout))
    return {
        "bytes": path.stat().st_size,
        "load_ms": statistics.median(entry["load_ms"] for entry in found),
        "growth_mb": max(entry["growth_mb"] for entry in found),
    }


def loadable(files: Mapping[str, Path]) -> tuple[dict[str, Path], dict[str, str]]:
    """The forms that ONNX Runtime loads, and why it refuses the others."""
    good, refused = {}, {}
    for form, path in files.items():
        try:
            make_session(path, threads=1, exact_sums=False, name=form)
            good[form] = path
        except RuntimeFailure as error:
            refused[form] = str(error).replace(f"{path.parent}/", "")
    return good, refused
