"""Feed damaged models, images, arrays and settings to the command line and count how the runs end.

    python tools/fuzz.py [--seed 0] [--count 200] [--kinds graph image ...] [--json tools/results/fuzz.json]
    python tools/fuzz.py --show graph:17     # run one case again, and keep its files

Each case runs in a process of its own with a limit on time and memory and a folder for everything that it may write.
It must end with a valid result or with one line and exit code 2. Everything else is counted as a crash (a traceback, a
signal, an exit code of 1, an invalid result) or a hang, and makes this program exit with 1. So do files left behind by
a failed run, writes and connections outside the folder, and control characters in what is printed. The same seed and
count make the same cases.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import onnx
import rich.progress  # noqa: F401 - loaded once, for all children
from fuzzing.cases import KINDS, Case, write_case
from fuzzing.sandbox import Outcome, finish, start, stop, wait_any

import onnx_hyvit.api
import onnx_hyvit.cli
import onnx_hyvit.comparison  # noqa: F401
from onnx_hyvit.config import QuantConfig
from onnx_hyvit.version import __version__

VERDICTS = ("success", "error", "crash", "hang")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200, help="cases of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0, help="limit of one case")
    parser.add_argument("--memory", type=int, default=4 << 30, help="limit of one case, bytes of address space")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--show", metavar="KIND:INDEX", help="run this case only, and print where its files are")
    options = parser.parse_args()
    if options.show:
        kind, index = options.show.split(":")
        show(Case(kind, options.seed, int(index)), options)
        return
    cases = [Case(kind, options.seed, index) for index in range(options.count) for kind in options.kinds]
    results = run_cases(cases, options.jobs, options.seconds, options.memory)
    report = summarise(cases, results, options)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    show_table(report)
    sys.exit(bool(report["failures"]))


def run_cases(cases: Sequence[Case], jobs: int, seconds: float, memory: int) -> list[Outcome]:
    """Outcomes of ``cases``, in their order; ``jobs`` of them run at a time."""
    results: list[Outcome | None] = [None] * len(cases)
    running: dict[int, tuple[int, float]] = {}
    following = 0
    with tempfile.TemporaryDirectory(prefix="fuzz_") as scratch:
        top = Path(os.path.realpath(scratch))
        while following < len(cases) or running:
            while following < len(cases) and len(running) < jobs:
                pid = launch(cases[following], top / str(following), memory)
                running[pid] = (following, time.monotonic() + seconds)
                following += 1
            ended = wait_any(set(running), min(deadline for _, deadline in running.values()))
            pid = ended[0] if ended else min(running, key=lambda pid: running[pid][1])
            index, _ = running.pop(pid)
            results[index] = finish(*ended, top / str(index)) if ended else stop(pid)
            shutil.rmtree(top / str(index), ignore_errors=True)
            announce(index, cases[index], results[index])
    return [result for result in results if result is not None]


def launch(case: Case, folder: Path, memory: int) -> int:
    folder.mkdir()
    return start(write_case(case, folder), folder, memory)


def announce(index: int, case: Case, outcome: Outcome | None) -> None:
    if outcome is not None and problems(outcome):
        print(f"{case.kind}:{case.index} {', '.join(problems(outcome))}: {outcome.detail}", file=sys.stderr, flush=True)
    elif index % 100 == 99:
        print(f"{index + 1} cases", file=sys.stderr, flush=True)


def problems(outcome: Outcome) -> list[str]:
    """What is wrong with an outcome; nothing for most."""
    found = [outcome.verdict] if outcome.verdict in ("crash", "hang") else []
    found += [f"outside: {line}" for line in outcome.outside[:1]]
    found += [f"left {name}" for name in outcome.left[:1]]
    return found + ["control characters"] * outcome.control


def summarise(cases: Sequence[Case], results: Sequence[Outcome], options: argparse.Namespace) -> dict:
    kinds = {}
    for kind in options.kinds:
        found = [result for case, result in zip(cases, results, strict=True) if case.kind == kind]
        kinds[kind] = {
            "cases": len(found),
            **{verdict: sum(result.verdict == verdict for result in found) for verdict in VERDICTS},
            "outside": sum(bool(result.outside) for result in found),
            "left_behind": sum(bool(result.left) for result in found),
            "control_characters": sum(result.control for result in found),
        }
    return {
        "onnx_hyvit": __version__,
        "onnx": onnx.__version__,
        "onnxruntime": version("onnxruntime"),
        "default_recipe": QuantConfig().recipe,
        "seed": options.seed,
        "seconds_per_case": options.seconds,
        "memory_per_case": options.memory,
        "kinds": kinds,
        "total": {key: sum(row[key] for row in kinds.values()) for key in next(iter(kinds.values()))},
        "failures": [
            {"case": f"{case.kind}:{case.index}", **asdict(result)}
            for case, result in zip(cases, results, strict=True)
            if problems(result)
        ],
    }


def show_table(report: dict) -> None:
    rows = {**report["kinds"], "total": report["total"]}
    print(f"{'kind':<16}" + "".join(f"{key:>20}" for key in report["total"]))
    for kind, row in rows.items():
        print(f"{kind:<16}" + "".join(f"{value:>20}" for value in row.values()))


def show(case: Case, options: argparse.Namespace) -> None:
    folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="fuzz_case_")))
    arguments = write_case(case, folder)
    print(" ".join(arguments))
    pid = start(arguments, folder, options.memory)
    ended = wait_any({pid}, time.monotonic() + options.seconds)
    print(finish(*ended, folder) if ended else stop(pid))
    print((folder / "stderr").read_text(errors="replace"))
    print(folder)


if __name__ == "__main__":
    main()
