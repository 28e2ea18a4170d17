"""Both models on all samples, in parts: here one after the other, or each a pure task of a worker.

Parts are cut and merged the same way whoever counts them, so that the numbers do not depend on it.
"""

from __future__ import annotations

import copy
import functools
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx

from .calibration import Source
from .errors import HyvitError, ModelError
from .graph.io import read_proto
from .labels import labels_of
from .runtime import Progress, Session, make_session
from .scores import ErrorMeter, Scores
from .tasks import Lost, Workers, run_tasks, threads_each
from .worker_log import Record, logged

ModelLike = str | os.PathLike[str] | onnx.ModelProto
Arrays = dict[str, np.ndarray]
Sessions = tuple[Session, Session]  # float, int8
Told = Callable[[int], None]
PART = 64  # samples


class Watch(Protocol):
    """Looks at what both models answer; it travels to workers while it is empty, and comes back to be merged."""

    def update(self, ids: Sequence[Any], feeds: Arrays, expected: Arrays, found: Arrays) -> None:
        """See one batch: ids, feeds (with more rows, where a batch is filled up), float and int8 outputs."""

    def merge(self, other: Any) -> None:
        """Take in what another one saw, of later samples."""


@dataclass
class Tally:
    """What was counted.

    Args:
        meters: Float output -> its error.
        scores: Agreements and right answers.
        ids: The samples.
        watch: What looked on.
        warnings: Those of the data.
        logged: What else was logged in a worker.
    """

    meters: dict[str, ErrorMeter] = field(default_factory=dict)
    scores: Scores = field(default_factory=Scores)
    ids: list[Any] = field(default_factory=list)
    watch: Watch | None = None
    warnings: Sequence[str] = ()
    logged: Sequence[Record] = ()

    def merge(self, other: Tally) -> None:
        """Take in the counts of later samples."""
        for name, meter in other.meters.items():
            self.meters.setdefault(name, ErrorMeter()).merge(meter)
        self.scores.merge(other.scores)
        self.ids += other.ids
        if self.watch is not None:
            self.watch.merge(other.watch)


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
    """All that decides the ``Tally`` of a part.

    Args:
        index: Place of the part.
        models: The float and the int8 model.
        source: The samples.
        threads: Threads of each session.
        rank: Whether the best classes are wanted, to be counted with labels.
        watch: An empty one, or None.
        level: From which level on what is logged comes back.
    """

    index: int
    models: tuple[ModelRef, ModelRef]
    source: Source = field(repr=False)
    threads: int
    rank: bool
    watch: Watch | None
    level: int


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
        workers: Who counts parts; None, or where there is one part only, is this process.
        watch: Looks on.
        progress: Called as ``progress(done, total, text)``.

    Raises:
        HyvitError: A model or a sample cannot be used.
    """
    whole = Tally(watch=watch)
    size = -(-PART // source.batch_size) * source.batch_size
    parts = [source.part(start, start + size) for start in range(0, len(source), size)]
    watches = [copy.deepcopy(watch) for _ in parts]
    rank = labels is not None
    told = functools.partial(_tell, progress, len(source))
    with workers if workers is not None and len(parts) > 1 else nullcontext() as found:
        if found is None:
            tallies = _here(sessions, parts, rank, watches, told)
        else:
            tallies = _elsewhere(models, parts, rank, watches, told, found, threads)
        for tally in tallies:
            if labels is not None:
                tally.scores.count_right(labels_of(tally.ids, labels))
            whole.merge(tally)
            for text in tally.warnings:
                source.warn(text)
            for name, level, message in tally.logged:
                logging.getLogger(name).log(level, message)
    return whole


def _here(
    sessions: Sessions, parts: Sequence[Source], rank: bool, watches: Sequence[Watch | None], told: Told
) -> Iterator[Tally]:
    before = 0
    for part, watch in zip(parts, watches, strict=True):
        yield _count(sessions, part, rank, watch, functools.partial(_tell_later, told, before))
        before += len(part)


def _elsewhere(
    models: tuple[ModelLike, ModelLike],
    parts: Sequence[Source],
    rank: bool,
    watches: Sequence[Watch | None],
    told: Told,
    workers: Workers,
    threads: int,
) -> Iterator[Tally]:
    """Tallies in the order of the parts; workers may end them in another one."""
    level = logging.getLogger(__package__).getEffectiveLevel()
    run, each = uuid.uuid4().hex, threads_each(threads, workers.jobs)
    references = (_refer(models[0], run), _refer(models[1], run))
    tasks = (
        PartTask(index, references, part, each, rank, watch, level)
        for index, (part, watch) in enumerate(zip(parts, watches, strict=True))
    )
    known: dict[int, Tally] = {}
    position = done = 0
    for task, found in run_tasks(count_part, tasks, workers, 2 * workers.at_once):
        if isinstance(found, Lost):
            raise ModelError(f"comparison: the process of a part was ended twice ({found.reason}); use fewer jobs")
        if isinstance(found, HyvitError):
            raise found
        done += len(found.ids)
        told(done)
        known[task.index] = found
        while position in known:
            yield known.pop(position)
            position += 1


def _refer(model: ModelLike, run: str) -> ModelRef:
    if isinstance(model, onnx.ModelProto):
        return ModelRef(model.SerializeToString(), run)
    return ModelRef(os.path.abspath(model), run)


def count_part(task: PartTask) -> Tally | HyvitError:
    """Count one part in a worker: an error is a value."""
    try:
        with logged(task.level) as records:
            sessions = _session(task.models[0], task.threads, True), _session(task.models[1], task.threads, False)
            tally = _count(sessions, task.source, task.rank, task.watch)
    except HyvitError as error:
        return error
    except Exception as error:
        return HyvitError(f"comparison: internal error ({type(error).__name__}: {error})")
    tally.warnings = tuple(task.source.warnings)
    tally.logged = tuple(record for record in records if record[2] not in tally.warnings)
    return tally


@functools.lru_cache(maxsize=2)
def _session(model: ModelRef, threads: int, exact_sums: bool) -> Session:
    """The session of a model, kept for the next part."""
    proto, _ = read_proto(model.model)
    return make_session(proto, threads=threads, exact_sums=exact_sums)


def _count(
    sessions: Sessions, source: Source, rank: bool, watch: Watch | None, told: Told = lambda done: None
) -> Tally:
    names = sessions[0].output_names
    tally = Tally({name: ErrorMeter() for name in names}, watch=watch)
    for ids, feeds in source:
        expected, found = (
            {name: value[: len(ids)] if value.ndim else value for name, value in session.run(feeds, names).items()}
            for session in sessions
        )
        for name in names:
            if expected[name].dtype.kind == "f":
                tally.meters[name].update(expected[name], found[name])
        first = expected[names[0]]
        if first.ndim >= 2 and first.shape[-1] > 1:
            tally.scores.update(first, found[names[0]], len(ids) if rank else 0)
        if watch is not None:
            watch.update(ids, feeds, expected, found)
        tally.ids += ids
        told(len(tally.ids))
    return tally


def _tell_later(told: Told, before: int, done: int) -> None:
    told(before + done)


def _tell(progress: Progress | None, total: int, done: int) -> None:
    if progress is not None:
        progress(done, total, "comparing")


__all__ = ["ModelRef", "PartTask", "Tally", "Watch", "count_part", "evaluate"]
