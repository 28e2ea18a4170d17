"""Tasks of the tests: functions of a module, as workers need them."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import Executor
from pathlib import Path
from types import SimpleNamespace

from onnx_hyvit.calibration.array_sources import ArraySource
from onnx_hyvit.calibration.sources import HeldBatches


def square(number: int) -> int:
    return number * number


def end_once(task: tuple[Path, str]) -> str:
    """End the worker in the middle of the first task that comes here."""
    marker, name = task
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return name


def end_once_late(task: tuple[Path, bytes]) -> int:
    """As ``end_once``, when the next task has had time to fill the pipe to the worker."""
    marker, data = task
    if not marker.exists():
        marker.touch()
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    return len(data)


def end_always(name: str) -> str:
    """End the worker each time for one name only."""
    if name == "bad":
        os.kill(os.getpid(), signal.SIGKILL)
    return name


class DeadlyFeeds(list):
    """Calibration data that end the process in the middle of reading them, but only the first time."""

    marker: Path

    def __getitem__(self, index):
        if index == 2 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class DeadlySource(ArraySource):
    """Data that end the process that reads a part of them, but only the first time."""

    marker: Path

    def parts(self, samples):
        for part in super().parts(samples):
            yield DeadlyPart(part, self.marker)


class DeadlyPart(HeldBatches):
    def __init__(self, part: HeldBatches, marker: Path) -> None:
        super().__init__(part, list(part))
        self.marker = marker

    def _batches(self):
        for ids, feeds in super()._batches():
            if 8 in ids and not self.marker.exists():
                self.marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield ids, feeds


class ClusterExecutor(Executor):
    """As dask's: its client knows the workers and the threads of each."""

    def __init__(self, threads: dict[str, int]) -> None:
        self._client = SimpleNamespace(nthreads=lambda: threads)


def wait_long(folder: Path) -> None:
    """Say that the task is running, and go on for long."""
    (folder / str(os.getpid())).touch()
    time.sleep(600)
