"""Tables in Markdown files, between two comments that mark their place."""

from __future__ import annotations

from pathlib import Path

from onnx_hyvit.graph.write import write_bytes


def replace_between(path: Path, start: str, end: str, table: str) -> bool:
    """Put ``table`` between the comments ``start`` and ``end`` of a file; False where they are not in it."""
    before, started, rest = path.read_text(encoding="utf-8").partition(start)
    _, ended, after = rest.partition(end)
    if not started or not ended:
        return False
    write_bytes(path, f"{before}{start}\n{table}\n{end}{after}".encode())
    return True
