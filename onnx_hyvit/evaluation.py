"""Both models on all samples: here one batch after the other, or parts of them as pure tasks of workers.

What comes of a batch is added in the order of the batches, so that the numbers do not depend on who ran it.
"""

from __future__ import annotations

import copy
import functools
import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnx

from .calibration import Source
from .errors import CalibrationError, HyvitError, ModelError
from .graph.io import read_proto
from .labels import labels_of
from .runtime import Progress, Session, make_session
from .scores import Answers, ErrorMeter, ErrorSums, Scores, answers_of, error_sums
from .tasks import Lost, Workers, run_tasks, threads_each
from .worker_log import Record, logged

ModelLike = str | os.PathLike[str] | bytes | onnx.ModelProto
Arrays = dict[str, np.ndarray]
Sessions = tuple[Session, Session]  # float, int8
PART = 64  # samples


class Watch(Protocol):
    """Looks at what both models answer; copies of it that have seen nothing travel to workers, and come back."""

    def update(self, ids: Sequence[Any], feeds: Arrays, expected: Arrays, found: Arrays) -> None:
        """See one batch: ids, feeds (with more rows, where a batch is filled up), float and int8 outputs."""

    def merge(self, other: Any) -> None:
        """Take in what a copy saw, of later samples."""


class BatchResult(NamedTuple):
    """What is known of a batch: its samples, errors of the float outputs, and answers of the first one."""

    ids: list[Any]
    errors: dict[str, ErrorSums]
    answers: Answers | None


class Tally:
    """What was counted so far.

    Attributes:
        meters: Float output -> its error.
        scores: Agreements and right answers.
        samples: How many.
    """

    def __init__(self, labels: Mapping[str, int] | np.ndarray | None = None) -> None:
        self.meters: dict[str, ErrorMeter] = {}
        self.scores = Scores()
        self.samples = 0
        self._labels = labels

    def add(self, batch: BatchResult) -> None:
        """Take in a batch.

        Raises:
            CalibrationError: A sample has no label.
        """
        for name, sums in batch.errors.items():
            self.meters.setdefault(name, ErrorMeter()).add(sums)
        known = None if self._labels is None else labels_of(batch.ids, self._labels)
        if batch.answers is not None:
            self.scores.add(batch.answers, known)
        self.samples += len(batch.ids)


@dataclass(frozen=True)
class ModelRef:
    """A model that a worker opens.

    Args:
        model: Absolute path, or the bytes of a model that has none.
        run: Name of the run; in the next one, workers that are still there open the model again.
    """

    model: str | bytes = field(repr=False)
    run: str


@dataclass(frozen=True)
class PartTask:
    """All that decides a ``PartResult``.

    Args:
        index: Place of the part.
        models: The float and the int8 model.
        source: The samples.
        threads: Threads of each session.
        rank: Whether the best classes are wanted.
        watch: One that has seen nothing, or None.
        level: From which level on what is logged comes back.
    """

    index: int
    models: tuple[ModelRef, ModelRef]
    source: Source = field(repr=False)
    threads: int
    rank: bool
    watch: Watch | None
    level: int


@dataclass(frozen=True)
class PartResult:
    """What a worker gives back: its batches, what looked on, warnings of the data, and what else was logged."""

    batches: Sequence[BatchResult]
    watch: Watch | None
    warnings: Sequence[str]
    logged: Sequence[Record]


def evaluate(
    models: tuple[ModelLike, ModelLike],
    sessions: Sessions,
    source: Source,
    labels: Mapping[str, int] | np.ndarray | None = None,
    *,
    threads: int = 1,
    workers: AbstractContextManager[Workers] | None = None,
    watch: Watch | None = None,
    progress: Progress | None = None,
) -> Tally:
    """Run both models on all samples.

    Args:
        models: Float and int8 model, for workers.
        sessions: Their sessions here.
        source: The samples.
        labels: What ``load_labels`` gave.
        threads: Threads of each session.
        workers: Who runs parts; None, or where there is one part only, is this process.
        watch: Looks on.
        progress: Called as ``progress(done, total, text)``.

    Raises:
        HyvitError: A model or a sample cannot be used, or none could be read.
    """
    tally = Tally(labels)
    if workers is None or len(source) <= PART:
        for batch in run_batches(sessions, source, labels is not None, watch):
            tally.add(batch)
            if progress is not None:
                progress(tally.samples, len(source), "comparing")
    else:
        _share_out(tally, models, source, labels is not None, threads, workers, watch, progress)
    if not tally.samples:
        raise CalibrationError("no sample could be read; see the warnings")
    return tally


def run_batches(sessions: Sessions, source: Source, rank: bool, watch: Watch | None) -> Iterator[BatchResult]:
    """Run both models on each batch."""
    names = sessions[0].output_names
    for ids, feeds in source:
        expected, found = (
            {name: value[: len(ids)] if value.ndim else value for name, value in session.run(feeds, names).items()}
            for session in sessions
        )
        errors = {name: error_sums(expected[name], found[name]) for name in names if expected[name].dtype.kind == "f"}
        answers = answers_of(expected[names[0]], found[names[0]], len(ids) if rank else 0)
        if watch is not None:
            watch.update(ids, feeds, expected, found)
        yield BatchResult(list(ids), errors, answers)


def _share_out(
    tally: Tally,
    models: tuple[ModelLike, ModelLike],
    source: Source,
    rank: bool,
    threads: int,
    workers: AbstractContextManager[Workers],
    watch: Watch | None,
    progress: Progress | None,
) -> None:
    """Let workers run the parts of ``source``, and add up what they found in the order of the parts."""
    level, run, total = logging.getLogger(__package__).getEffectiveLevel(), uuid.uuid4().hex, len(source)
    references = _refer(models[0], run), _refer(models[1], run)
    empty, warnings, records = copy.deepcopy(watch), list[str](), list[Record]()
    size = -(-PART // source.batch_size) * source.batch_size
    with workers as found:
        each = threads_each(threads, found.jobs)
        tasks = (
            PartTask(index, references, part, each, rank, copy.deepcopy(empty), level)
            for index, part in enumerate(source.parts(size))
        )
        for index, result in _in_order(tasks, found):
            for batch in result.batches:
                tally.add(batch)
            if watch is not None:
                watch.merge(result.watch)
            warnings += result.warnings
            records += result.logged
            if progress is not None:
                progress(min(total, (index + 1) * size), total, "comparing")
    for text in warnings:  # now that no worker in this process keeps the logger quiet
        source.warn(text)
    for name, severity, text in records:
        logging.getLogger(name).log(severity, text)


def _in_order(tasks: Iterator[PartTask], workers: Workers) -> Iterator[tuple[int, PartResult]]:
    """Results in the order of the parts; workers may end them in another one."""
    known: dict[int, PartResult] = {}
    position = 0
    for task, found in run_tasks(run_part, tasks, workers, 2 * workers.at_once):
        if isinstance(found, Lost):
            raise ModelError(f"comparison: the process of a part was ended twice ({found.reason}); use fewer jobs")
        if isinstance(found, HyvitError):
            raise found
        known[task.index] = found
        while position in known:
            yield position, known.pop(position)
            position += 1


def _refer(model: ModelLike, run: str) -> ModelRef:
    if isinstance(model, onnx.ModelProto):
        return ModelRef(model.SerializeToString(), run)
    return ModelRef(bytes(model) if isinstance(model, (bytes, bytearray)) else os.path.abspath(model), run)


def run_part(task: PartTask) -> PartResult | HyvitError:
    """Run one part in a worker: an error is a value."""
    try:
        with logged(task.level) as records:
            sessions = _session(task.models[0], task.threads, True), _session(task.models[1], task.threads, False)
            batches = list(run_batches(sessions, task.source, task.rank, task.watch))
    except HyvitError as error:
        return error
    except Exception as error:
        return HyvitError(f"comparison: internal error ({type(error).__name__}: {error})")
    warnings = tuple(task.source.warnings)
    return PartResult(batches, task.watch, warnings, [record for record in records if record[2] not in warnings])


@functools.lru_cache(maxsize=2)
def _session(model: ModelRef, threads: int, exact_sums: bool) -> Session:
    """The session of a model, kept for the next part."""
    proto, _ = read_proto(model.model)
    return make_session(proto, threads=threads, exact_sums=exact_sums)


__all__ = ["BatchResult", "ModelRef", "PartResult", "PartTask", "Tally", "Watch", "evaluate", "run_batches", "run_part"]
