"""What surrounds the work of a command: errors as one line and an exit code, progress, the result and its page."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer

from . import display, interrupts
from .errors import HyvitError, OutputError, printable


class _PrintableLine(logging.Formatter):
    """The message alone, on one line without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(record.getMessage())


@contextmanager
def errors(verbose: bool) -> Iterator[None]:
    """Print our errors as one line and exit with 2; anything else is a bug, and exits with 1.

    Ctrl-C, and what it broke, is left to ``interrupts.unwinding``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PrintableLine())
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler], force=True)
    try:
        yield
    except Exception as error:
        if interrupts.received():
            raise KeyboardInterrupt from error
        message, code = _describe(error)
        if verbose and code == 1:
            raise
        fail(message, code)


def _describe(error: Exception) -> tuple[str, int]:
    """Line and exit code of an error."""
    if isinstance(error, HyvitError):
        return str(error), 2
    if isinstance(error, MemoryError):
        return "out of memory; give quantize a smaller --max-memory or --batch-size", 2
    if isinstance(error, OSError):
        return f"{error.filename or 'file'}: {error.strerror or error}", 2
    return f"internal error ({type(error).__name__}: {error}); run again with -v and report it, please", 1


def fail(message: str, code: int) -> NoReturn:
    """Print an error as one line and exit."""
    typer.echo(f"error: {printable(message)}", err=True)
    raise typer.Exit(code)


def fail_for(errors: list[tuple[str, int]]) -> None:
    """Print every error as one line, and exit with 1 when one of them is a bug, else with 2; nothing without errors."""
    for message, _ in errors[:-1]:
        typer.echo(f"error: {printable(message)}", err=True)
    if errors:
        fail(errors[-1][0], min(code for _, code in errors))


@contextmanager
def progress(silent: bool) -> Iterator[Callable[[int, int, str], None] | None]:
    """What the pipeline reports its progress to; None when nothing is to be printed."""
    if silent:
        yield None
    else:
        with display.progress() as update:
            yield update


def show(report: Any, render: Callable[[Any], None], as_json: bool, quiet: bool) -> None:
    """Print a report: as JSON, for a person, or not at all."""
    if as_json:
        typer.echo(json.dumps(report, indent=2, default=str, allow_nan=False))
    elif not quiet:
        render(report)


def check_page(path: Path | None, *inputs: str | Path, draws: bool = False) -> None:
    """Refuse a page that cannot be written, before the work that it is about."""
    if path is None:
        return
    from .report import require_matplotlib
    from .request import check_output

    for other in inputs:
        if path.absolute() == Path(other).absolute():
            raise OutputError(f"{path}: is another file of this command; choose another name for the report")
        check_output(path, other)
    check_output(path)
    if draws:
        require_matplotlib()


def write_page(path: Path | None, result: dict[str, Any]) -> None:
    """Write the page about a result, where one was asked for."""
    if path is not None:
        from .report import write_report

        write_report(path, [result])


__all__ = ["check_page", "errors", "fail", "fail_for", "progress", "show", "write_page"]
