"""Pure tasks through the interface of ``concurrent.futures``: here, in local processes, or on a dask cluster.

A task is a function of a module and one argument. It returns its own errors as values, so what a future raises means
that the worker was lost; the task is then repeated in a process of its own, which gives the same result.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from .errors import ConfigError

logger = logging.getLogger(__name__)
Task = TypeVar("Task")
Result = TypeVar("Result")
CONNECT_SECONDS = 10
MAX_JOBS = 256
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Workers:
    """Who runs tasks.

    Args:
        executor: Runs them.
        jobs: How many run at the same time on this machine, 1 to 256: threads and memory are divided by it.
    """

    executor: Executor
    jobs: int = 1

    def __post_init__(self) -> None:
        check_jobs(self.jobs)
        if not isinstance(self.executor, Executor):
            kind = type(self.executor).__name__
            raise ConfigError(f"executor must be a concurrent.futures.Executor, found {kind}; a dask Client has one")

    @property
    def at_once(self) -> int:
        """How many tasks have a worker now: the workers of a cluster or a pool, where they are known, else ``jobs``."""
        client = getattr(self.executor, "_client", None)  # dask's executor has no public name for it
        threads = getattr(client, "nthreads", None)  # of each worker; a task uses several
        pool = getattr(self.executor, "_max_workers", None)  # nor this
        return max(self.jobs, len(threads()) if threads is not None else pool or 0)


@dataclass(frozen=True)
class Lost:
    """Instead of a result: the task ended its worker, and the process in which it was repeated."""

    reason: str


def check_jobs(jobs: int) -> None:
    """Refuse a number of jobs that is none.

    Raises:
        ConfigError: It is not a whole number of 1 to 256.
    """
    if isinstance(jobs, bool) or not isinstance(jobs, int) or not 1 <= jobs <= MAX_JOBS:
        raise ConfigError(f"jobs must be a whole number of 1 to {MAX_JOBS}, found {jobs!r}")


def threads_each(threads: int, jobs: int) -> int:
    """Threads of each of ``jobs`` tasks, 1 or more.

    ONNX Runtime adds in another order with one thread than with several, and the result must not depend on the number
    of jobs: where one task alone would have several threads, each has at least two.
    """
    return max(min(threads, 2), threads // jobs)


def run_tasks(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: Workers | None, ahead: int | None = None
) -> Iterator[tuple[Task, Result | Lost]]:
    """Run ``function`` on each task.

    Args:
        function: Of a module; it must not raise.
        tasks: Arguments, taken as workers get free; they travel to the workers.
        workers: Who runs them; None is this process, one after the other.
        ahead: How many tasks are handed out at the same time at most; None is no limit.

    Yields:
        Each task and its result, in the order in which they end.
    """
    if workers is None:
        for task in tasks:
            yield task, function(task)
        return
    with ExitStack() as spare:
        running = _Running(function, spare)
        for task in tasks:
            running.submit(workers.executor, task)
            while running.lost or (ahead is not None and len(running.futures) >= ahead):
                yield from running.finished()
        while running.futures:
            yield from running.finished()


class _Running(Generic[Task, Result]):
    """Tasks that were handed out, those whose worker was lost, and the process that these are repeated in."""

    def __init__(self, function: Callable[[Task], Result], spare: ExitStack) -> None:
        self.futures: dict[Future[Result], Task] = {}
        self.lost: list[Task] = []
        self._function = function
        self._spare = spare
        spare.callback(self._cancel)
        self._workers: Workers | None = None

    def submit(self, executor: Executor, task: Task) -> None:
        try:
            self.futures[executor.submit(self._function, task)] = task
        except BrokenExecutor:
            self.lost.append(task)

    def finished(self) -> Iterator[tuple[Task, Result | Lost]]:
        """Wait for at least one task to end, then repeat those that were lost: a task may have ended its worker."""
        for future in wait(self.futures, return_when=FIRST_COMPLETED).done:
            task = self.futures.pop(future)
            try:
                result = future.result()
            except Exception as error:  # not the task's own: those are values
                logger.info("a worker was lost (%s): its task is repeated", _reason(error))
                self.lost.append(task)
            else:
                yield task, result
        while self.lost:
            task = self.lost.pop(0)
            yield task, self._repeat(task)

    def _repeat(self, task: Task) -> Result | Lost:
        if self._workers is None:
            self._workers = self._spare.enter_context(local_processes(1))
        try:
            return self._workers.executor.submit(self._function, task).result()
        except Exception as error:
            self._workers = None
            return Lost(_reason(error))

    def _cancel(self) -> None:
        for future in self.futures:
            future.cancel()


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


@contextmanager
def local_processes(jobs: int) -> Iterator[Workers]:
    """Processes of this machine; they end with the block, and with this process whatever ends it.

    Args:
        jobs: How many.
    """
    check_jobs(jobs)
    alive, held = multiprocessing.Pipe(duplex=False)
    pool = _Processes(jobs, multiprocessing.get_context("spawn"), _begin, (alive,))
    try:
        yield Workers(pool, jobs)
        pool.shutdown()
    finally:
        held.close()  # ends workers that are still busy
        pool.shutdown(cancel_futures=True)
        alive.close()


class _Processes(ProcessPoolExecutor):
    """Processes that Ctrl-C does not reach: they start while it is held back, and it stays so in them.

    Before Python 3.11.5 a pool waits for ever where a process ends while a task is on its way to it: the thread that
    writes the task into the pipe is waited for, and nobody reads there any more (python/cpython issue 94777). Here the
    reading end is closed then, so that the writer gives up.
    """

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if not wait or sys.version_info >= (3, 11, 5):
            super().shutdown(wait, cancel_futures=cancel_futures)
            return
        inner: Any = self  # none of what follows is public
        tasks, keeper = inner._call_queue, inner._executor_manager_thread
        super().shutdown(wait=False, cancel_futures=cancel_futures)
        while keeper is not None and keeper.is_alive():
            keeper.join(POLL_SECONDS)
            if inner._broken:
                tasks._reader.close()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with _interrupts_held():
            return super().submit(fn, *args, **kwargs)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back, for this thread and the processes that it starts; it is raised at the end."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    received: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler):
        signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if callable(handler):
            signal.signal(signal.SIGINT, handler)
        if received:
            signal.raise_signal(signal.SIGINT)


def _begin(alive: Connection) -> None:
    """In a new worker: ignore Ctrl-C, which is the business of the process that waits, and end when that one does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()


def _end_with(alive: Connection) -> None:
    try:
        alive.poll(None)  # nothing is ever sent: it returns when the other end is closed
    finally:
        os._exit(1)


@contextmanager
def dask_executor(address: str) -> Iterator[Executor]:
    """The executor of a dask cluster, whose workers need this package, and models and data under the same paths.

    Args:
        address: Of the scheduler, for example ``tcp://host:8786``.

    Raises:
        ConfigError: ``distributed`` is not installed, or the scheduler is not there or has no workers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigError('dask: distributed is not installed; pip install "onnx-hyvit[dask]"') from error
    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        expected = "expected for example tcp://host:8786"
        raise ConfigError(f"dask: no scheduler answers at {address!r} ({error}); {expected}") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except (OSError, asyncio.TimeoutError) as error:
            raise ConfigError(f"dask: {address!r} has no workers; start one with `dask worker {address}`") from error
        yield client.get_executor(pure=False)


__all__ = ["Lost", "Workers", "check_jobs", "dask_executor", "local_processes", "run_tasks", "threads_each"]
