"""Tables in Markdown files, between two comments that mark their place."""

from __future__ import annotations

from pathlib import Path

from onnx_hyvit.graph.write import write_bytes

from .datasets import DataError


def replace_between(path: Path, start: str, end: str, table: str) -> None:
    """Put ``table`` between the comments ``start`` and ``end`` of a file.

    Raises:
        DataError: They are not in it.
    """
    before, started, rest = path.read_text(encoding="utf-8").partition(start)
    _, ended, after = rest.partition(end)
    if not started or not ended:
        raise DataError(f"{path}: has no place for the table ({end if started else start})")
    write_bytes(path, f"{before}{start}\n{table}\n{end}{after}".encode())
