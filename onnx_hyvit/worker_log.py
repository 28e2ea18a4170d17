"""What a task logs in a worker, which shows nothing: it is collected, to come back with the result."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

Record = tuple[str, int, str]  # logger, level, message


@contextmanager
def logged(level: int) -> Iterator[list[Record]]:
    """Collect what this thread logs from ``level`` on instead of showing it."""
    records: list[Record] = []
    mine = threading.get_ident()

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == mine:
                records.append((record.name, record.levelno, record.getMessage()))

    handler = Collect(level)
    _QUIET.begin(handler)
    try:
        yield records
    finally:
        _QUIET.end(handler)


class _Quiet:
    """The logger of this package, which shows nothing while any thread collects what it logs."""

    def __init__(self) -> None:
        self._logger, self._lock = logging.getLogger(__package__), threading.Lock()
        self._handlers: list[logging.Handler] = []
        self._before = (self._logger.level, self._logger.propagate)

    def begin(self, handler: logging.Handler) -> None:
        """Add ``handler``; the first one silences the logger."""
        with self._lock:
            if not self._handlers:
                self._before = (self._logger.level, self._logger.propagate)
            self._handlers.append(handler)
            self._logger.addHandler(handler)
            self._logger.setLevel(min(each.level for each in self._handlers))
            self._logger.propagate = False

    def end(self, handler: logging.Handler) -> None:
        """Remove ``handler``; the last one leaves the logger as the first one found it."""
        with self._lock:
            self._handlers.remove(handler)
            self._logger.removeHandler(handler)
            if not self._handlers:
                self._logger.setLevel(self._before[0])
                self._logger.propagate = self._before[1]


_QUIET = _Quiet()


__all__ = ["Record", "logged"]
