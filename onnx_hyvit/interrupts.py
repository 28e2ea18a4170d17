"""Ctrl-C: one line and exit code 130, whatever the program is doing."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 130
LINE = "error: interrupted; no partial file is left\n"

_received: list[int] = []


def exit_at_once() -> None:
    """While the program loads there is nothing to put away: let Ctrl-C end the process where it is."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, LINE.encode())
    os._exit(EXIT_CODE)


def received() -> bool:
    """Whether Ctrl-C came: an error after it is its consequence (an extension module whose loading was cut off)."""
    return bool(_received)


@contextmanager
def unwinding() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt, so that files are put away, then print the line and exit.

    Where interrupts are ignored, as for a job in the background, they stay so.
    """
    if signal.getsignal(signal.SIGINT) not in (signal.default_int_handler, _leave):
        yield
        return
    signal.signal(signal.SIGINT, _raise)
    try:
        yield
    except BaseException as error:
        if not received() or (isinstance(error, SystemExit) and not error.code):
            raise
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stderr.write(LINE)
        raise SystemExit(EXIT_CODE) from None


def _raise(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    raise KeyboardInterrupt


__all__ = ["exit_at_once", "received", "unwinding"]
