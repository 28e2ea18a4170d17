"""Measure on this machine what kernels cost, by shape, and write a profile for `--profile` and for the package.

    python tools/profile_kernels.py my.profile.json [--target ort-x86] [--threads 1] [--calls calls.json]

Each case is a model of one operator, in float and between Q/DQ pairs; ONNX Runtime's profiler times its kernels, and
the Q, DQ and reorder nodes around them. A family of kernels then gets a fixed cost and a cost per unit of work.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from kernels.cases import all_cases
from kernels.models import build, build_chain
from zoo.machine import cpu_name, has_vnni

from onnx_hyvit.costs import Profile, Work, fit_kernel, kernel_of_event
from onnx_hyvit.graph.write import write_bytes
from onnx_hyvit.processor import target_here
from onnx_hyvit.runtime import make_session, profile_nodes

CHAIN = 200
LEAST_CALLS = 8  # more than a cost has coefficients
Calls = dict[str, list[tuple[Work, float]]]


def measure_cases(runs: int, threads: int) -> Calls:
    """Time every case; the kernels of each family with their work and microseconds."""
    calls: Calls = defaultdict(list)
    cases = list(all_cases())
    for index, case in enumerate(cases):
        for int8 in (False, True) if case.int8 else (False,):
            model = build(case, int8)
            random = np.random.default_rng(0)
            feeds = {f"x{at}": random.standard_normal(shape).astype(np.float32) for at, shape in enumerate(case.inputs)}
            for node in profile_nodes(model, feeds, runs=runs, threads=threads):
                found = kernel_of_event(
                    node.op, node.dtype, node.inputs, node.outputs, case.weight, case.attributes.get("group", 1)
                )
                if found is not None:
                    calls[found[0]].append((found[1], node.us))
        if sys.stderr.isatty() or index % 50 == 49:
            print(f"{index + 1} of {len(cases)} cases", end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr)
    return calls


def measure_offset(threads: int, runs: int = 200) -> float:
    """Microseconds that a node takes in a plain session, less what the profiler says that it takes."""
    feeds = {"x0": np.ones((1, 4), np.float32)}
    walls = [_fastest(build_chain(length), feeds, threads, runs) for length in (CHAIN, 2 * CHAIN)]
    kernel = np.mean([node.us for node in profile_nodes(build_chain(CHAIN), feeds, runs=runs, threads=threads)])
    return (walls[1] - walls[0]) / CHAIN - float(kernel)


def _fastest(model: onnx.ModelProto, feeds: dict[str, np.ndarray], threads: int, runs: int) -> float:
    session = make_session(model, threads=threads, exact_sums=False)
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        session.run(feeds)
        taken.append(time.perf_counter() - start)
    return float(np.mean(sorted(taken)[: runs // 4])) * 1e6


def make_profile(calls: Calls, target: str, threads: int, offset: float) -> Profile:
    """Fit every family that was measured often enough."""
    machine = {
        "cpu": cpu_name(),
        "vnni": has_vnni(),
        "onnxruntime": onnxruntime.__version__,
        "threads": threads,
    }
    kernels = {
        name: fit_kernel([work for work, _ in found], [us for _, us in found])
        for name, found in sorted(calls.items())
        if len(found) >= LEAST_CALLS
    }
    return Profile(target, machine, offset, kernels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="profile to write")
    parser.add_argument("--target", help="target that it is for; by default that of this processor")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=24, help="timed runs of each model")
    parser.add_argument("--calls", type=Path, help="also write every measured call to this file")
    arguments = parser.parse_args()
    target = arguments.target or target_here()
    calls = measure_cases(arguments.runs, arguments.threads)
    profile = make_profile(calls, target, arguments.threads, measure_offset(arguments.threads))
    write_bytes(arguments.output, (json.dumps(profile.to_dict(), indent=1) + "\n").encode())
    if arguments.calls:
        rows = {name: [[*work.values()[1:], us] for work, us in found] for name, found in sorted(calls.items())}
        write_bytes(arguments.calls, json.dumps(rows).encode())
    for name, kernel in sorted(profile.kernels.items()):
        print(f"{name:34s} {kernel.calls:4d} calls, median error {100 * kernel.median_error:5.1f} %")


if __name__ == "__main__":
    main()
