"""Batches that run at the same time, in threads: sessions and numpy release Python's lock while they compute.

On small graphs that uses the processors better than several threads inside of one run: there they wait for each other
after every operator.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Share:
    """Threads shared out.

    Args:
        at_once: Batches that run at the same time.
        each: Threads of the session that they run in.
    """

    at_once: int
    each: int


def share_threads(threads: int, batches: int) -> Share:
    """How ``threads`` run ``batches``: several ones in a thread each, so that sums do not depend on ``threads``."""
    return Share(min(threads, batches), 1) if batches > 1 else Share(1, threads)


def run_at_once(function: Callable[[Item], Result], items: Iterable[Item], at_once: int) -> Iterator[Result]:
    """Results of ``function`` for each of ``items``, in their order.

    Args:
        function: It must not change what other calls read.
        items: Taken one by one in this thread, twice ``at_once`` ahead of the results at most: nobody waits for them.
        at_once: Calls at the same time; 1 stays in this thread.
    """
    if at_once <= 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(at_once) as pool:
        running: deque[Future[Result]] = deque()
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) >= 2 * at_once:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


__all__ = ["Share", "run_at_once", "share_threads"]
