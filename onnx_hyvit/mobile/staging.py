"""A folder whose files appear all together or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputError
from ..graph.write import umask


@contextmanager
def staged_folder(destination: Path) -> Iterator[Path]:
    """A temporary folder beside ``destination``, whose files move there when the block ends without an error.

    An existing folder keeps its other files; files of the same name are replaced, each in one step.

    Raises:
        OutputError: The place is a file, is not writable, or the folder that should hold it does not exist.
    """
    destination = destination.absolute()
    parent = destination.parent
    if destination.exists() and not destination.is_dir():
        raise OutputError(f"{destination}: is a file, expected a folder")
    if not parent.is_dir():
        raise OutputError(f"{destination}: the folder {parent} does not exist")
    try:
        staged = Path(tempfile.mkdtemp(dir=parent, prefix=f".{destination.name}.", suffix=".part"))
    except OSError as error:
        raise OutputError(f"{destination}: the folder {parent} is not writable ({error.strerror or error})") from error
    try:
        yield staged
        _move(staged, destination)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _move(staged: Path, destination: Path) -> None:
    try:
        os.chmod(staged, 0o777 & ~umask())
        if not destination.exists():
            os.replace(staged, destination)
            return
        for path in sorted(staged.iterdir()):
            os.replace(path, destination / path.name)
    except OSError as error:
        raise OutputError(f"{destination}: cannot be written ({error.strerror or error})") from error
