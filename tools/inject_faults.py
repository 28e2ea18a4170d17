"""Kill, interrupt and starve ``onnx-hyvit quantize``, and look at what it leaves behind.

    python tools/inject_faults.py [--kills 30] [--interrupts 10] [--skip-memory] [--json tools/results/faults.json]

Each fault must leave no partial output (the file is not there, or is whole), and a run after it must give the bytes of
an undisturbed run. ``--max-memory`` is measured at three limits, each in a process of its own. Exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from onnx_hyvit.interrupts import LINE

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "tests" / "corpus" / "mobilenetv3.torchscript-17.onnx"
LIMITS = ("64M", "256M", "1G")
ENDINGS = ("ended", "ended_before", "while_python_starts", "other_ending")
COUNTS = ("runs", *ENDINGS, "partial", "temporaries", "rerun_differs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--interrupts", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with it ignored
    with tempfile.TemporaryDirectory(prefix="faults_") as scratch:
        bench = Bench(Path(scratch))
        rng = np.random.default_rng(options.seed)
        report = {
            "model": MODEL.name,
            "seconds_undisturbed": round(bench.seconds, 2),
            "killed": bench.disturb(signal.SIGKILL, options.kills, rng),
            "interrupted": bench.disturb(signal.SIGINT, options.interrupts, rng),
            "disk_full": bench.disk_full(),
            "read_only": bench.read_only(),
            "reader_raises": bench.reader_raises(),
        }
        if not options.skip_memory:
            report["max_memory"] = [measure_memory(limit) for limit in (*LIMITS, None)]
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    sys.exit(bool(failures(report)))


def how_it_ended(code: int, stderr: str, number: signal.Signals) -> str:
    """The count that a disturbed run belongs to; Python itself starts before our code can say anything."""
    if code == 0:
        return "ended_before"
    if number == signal.SIGKILL:
        return "ended" if code == -number and not stderr else "other_ending"
    if code in (130, -number) and stderr in (LINE, ""):
        return "ended"
    return "while_python_starts" if "KeyboardInterrupt" in stderr and "cli.py" not in stderr else "other_ending"


def failures(report: dict[str, Any]) -> list[str]:
    """What went wrong."""
    wrong = ("partial", "rerun_differs", "other_ending")
    found = [key for key in ("killed", "interrupted") if any(report[key][name] for name in wrong)]
    found += ["interrupted"] * bool(report["interrupted"]["temporaries"])  # a killed run cannot remove them
    found += [key for key in ("disk_full", "read_only", "reader_raises") if not report[key]["clean"]]
    rows = report.get("max_memory", [])
    growth = [row["peak_mb"] - row["before_mb"] for row in rows]
    return found + ["max_memory"] * (growth != sorted(growth))


class Bench:
    """A small quantization that can be run again and again, and the bytes that it should give."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.data = scratch / "calib.npz"
        rng = np.random.default_rng(0)
        np.savez(self.data, input=rng.normal(size=(8, 3, 64, 64)).astype(np.float32))
        self.out = scratch / "out"
        self.out.mkdir()
        self.expected = b""
        self.run()  # fills the caches of the file system
        started = time.monotonic()
        assert self.run().returncode == 0
        self.seconds = time.monotonic() - started
        self.expected = self.file.read_bytes()
        self.file.unlink()

    @property
    def file(self) -> Path:
        """The output."""
        return self.out / "int8.onnx"

    def command(self, folder: Path | None = None) -> list[str]:
        """The command line that writes into ``folder``."""
        output = str((folder or self.out) / "int8.onnx")
        command = [sys.executable, "-m", "onnx_hyvit", "quantize", str(MODEL), "-o", output, "--calib", str(self.data)]
        return [*command, "--threads", "1", "-q"]

    def run(self, folder: Path | None = None, **keywords: Any) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(self.command(folder), capture_output=True, text=True, timeout=600, **keywords)

    def disturb(self, number: signal.Signals, count: int, rng: np.random.Generator) -> dict[str, int]:
        """Send a signal at random points, every fifth time as soon as a file appears; then run again."""
        names = (
            "runs",
            "ended",
            "ended_before",
            "while_python_starts",
            "other_ending",
            "partial",
            "temporaries",
            "rerun_differs",
        )
        found = dict.fromkeys(names, 0)
        for index in range(count):
            self.clean()
            delay = float(rng.uniform(0, self.seconds))
            process = subprocess.Popen(self.command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            self._wait(process, None if index % 5 == 4 else delay)
            process.send_signal(number)
            stderr = process.communicate(timeout=600)[1]
            found["runs"] += 1
            found[how_it_ended(process.returncode, stderr, number)] += 1
            found["partial"] += self.file.exists() and self.file.read_bytes() != self.expected
            found["temporaries"] += sum(path.suffix == ".part" for path in self.out.iterdir())
            again = self.run()
            found["rerun_differs"] += again.returncode != 0 or self.file.read_bytes() != self.expected
        self.clean()
        return found

    def _wait(self, process: subprocess.Popen[str], delay: float | None) -> None:
        if delay is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(delay)
            return
        while process.poll() is None and not any(self.out.iterdir()):
            time.sleep(0.0002)

    def clean(self) -> None:
        """Empty the output folder."""
        for path in self.out.iterdir():
            path.unlink()

    def disk_full(self) -> dict[str, Any]:
        """A file system of 64 kB where mounts are allowed, else a limit on the size of files."""
        with mounted(self.scratch / "small", "size=64k") as folder:
            if folder:
                return {"by": "tmpfs of 64 kB", **self._refused(self.run(folder), folder)}

        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (32768, 32768))

        return {"by": "RLIMIT_FSIZE of 32 kB", **self._refused(self.run(preexec_fn=limit), self.out)}

    def read_only(self) -> dict[str, Any]:
        """A folder that cannot be written, for root neither where mounts are allowed."""
        with mounted(self.scratch / "sealed", "ro") as folder:
            if folder:
                return {"by": "tmpfs mounted ro", **self._refused(self.run(folder), folder)}
        folder = self.scratch / "sealed"
        folder.chmod(0o555)
        by = "mode 555" if os.geteuid() else "/proc"
        return {"by": by, **self._refused(self.run(folder if os.geteuid() else Path("/proc")), folder)}

    def _refused(self, done: subprocess.CompletedProcess[str], folder: Path) -> dict[str, Any]:
        lines = done.stderr.strip().splitlines()
        clean = done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: ")
        return {"clean": clean and not any(folder.iterdir()), "message": lines[-1].replace(str(self.scratch), "...")}

    def reader_raises(self) -> dict[str, Any]:
        """A calibration reader that fails in the middle."""
        import onnx_hyvit

        class Reader:
            left = 3

            def get_next(self) -> dict[str, np.ndarray]:
                self.left -= 1
                if self.left < 0:
                    raise ConnectionError("the data server went away")
                return {"input": np.zeros((1, 3, 64, 64), np.float32)}

        try:
            onnx_hyvit.quantize(MODEL, self.file, calibration=Reader())
        except onnx_hyvit.CalibrationError as error:
            return {"clean": not any(self.out.iterdir()), "message": str(error)}
        return {"clean": False, "message": "no error"}


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path | None]:
    """A tmpfs at ``folder``; None where mounts are not allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    run: Callable[[list[str]], int] = lambda words: subprocess.run(words, capture_output=True).returncode  # noqa: E731
    if run(command):
        yield None
        return
    try:
        yield folder
    finally:
        run(["umount", str(folder)])


def measure_memory(limit: str | None) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "tools" / "measure_memory.py"), *(["--max-memory", limit] if limit else [])]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=900).stdout)
    return {"limit": limit, **found}


if __name__ == "__main__":
    main()
