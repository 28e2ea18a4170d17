"""How the command line speaks to a person: lines and a progress bar (rich); plain lines when not a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape as escape_markup
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .errors import printable

KIND_STYLES = {"bridge": "bold yellow", "transformer": "cyan", "conv": "green", "stem": "blue", "head": "magenta"}
LINE_SECONDS = 10


def console(stderr: bool = False) -> Console:
    """A console on standard output or standard error; never wider than the terminal, 100 columns when piped."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 100, highlight=False, soft_wrap=False, emoji=False)


def escape(text: str) -> str:
    """``text`` from a model or file, without power over markup or the terminal."""
    return escape_markup(printable(text))


def say(text: str) -> None:
    """Print one line for a person."""
    console().print(escape(text))


@contextmanager
def progress() -> Iterator[Callable[[int, int, str], None]]:
    """A function ``update(done, total, text)``: a bar on a terminal, a log line now and then elsewhere (stderr)."""
    err = console(stderr=True)
    if not err.is_terminal:
        yield _log_lines(err)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def update(done: int, total: int, text: str) -> None:
            if text not in tasks:
                tasks[text] = bar.add_task(escape(text), total=total)
            bar.update(tasks[text], completed=done, total=total)

        yield update


def _log_lines(err: Console) -> Callable[[int, int, str], None]:
    """A line every ten seconds, the first after as long; work that is done sooner says nothing."""
    last = [time.monotonic()]

    def update(done: int, total: int, text: str) -> None:
        now = time.monotonic()
        if now - last[0] > LINE_SECONDS:
            err.print(f"{escape(text)}: {done}/{total}")
            last[0] = now

    return update
