"""Results of blocks on disk, so that an interrupted reconstruction goes on where it stopped.

A run has a folder named after the hash of all that decides its results; a block is one ``.npz`` in it, without pickle.
The folder is removed when the run is finished; one of an interrupted run stays, until a later run finds that it is old.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OutputError
from ..graph.write import write_bytes
from ..numerics import QParams, QuantSpec
from .block import BlockResult
from .search_ranges import RangeChoice

logger = logging.getLogger(__name__)
DIGITS = 32
KEPT_DAYS = 30
MOST_ENTRIES = 1000
_RUN = re.compile(rf"[0-9a-f]{{{DIGITS}}}")


def default_cache_folder() -> Path:
    """``$XDG_CACHE_HOME/onnx_hyvit``, or ``~/.cache/onnx_hyvit``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "onnx_hyvit"


def remove_old_runs(folder: Path, days: float = KEPT_DAYS) -> None:
    """Remove the folders of runs that nobody resumed.

    At most ``MOST_ENTRIES`` entries are looked at. Only folders named as those of runs go, never what a link leads to;
    what cannot be removed stays.

    Args:
        folder: Where runs are kept.
        days: How long ago the last block was kept, or removed, at least.
    """
    oldest = time.time() - days * 86400
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in itertools.islice(entries, MOST_ENTRIES):
            with contextlib.suppress(OSError):
                old = entry.stat(follow_symlinks=False).st_mtime < oldest
                if old and entry.is_dir(follow_symlinks=False) and _RUN.fullmatch(entry.name):
                    shutil.rmtree(entry.path, ignore_errors=True)


def run_key(*parts: bytes | str | Mapping[str, Any]) -> str:
    """Hash of everything that decides the results of a run: 64 hex digits."""
    digest = hashlib.sha256()
    for part in parts:
        text = part if isinstance(part, (bytes, str)) else json.dumps(part, sort_keys=True)
        encoded = text if isinstance(text, bytes) else text.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


class BlockCache:
    """Results of the blocks of one run.

    Args:
        folder: Where runs are kept; a folder that cannot be written only means that nothing is kept.
        key: Hash of the run, see ``run_key``.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder / key[:DIGITS]

    def load(self, index: int) -> BlockResult | None:
        """Result of block ``index``, None when it is not there or not readable."""
        try:
            with np.load(self._path(index), allow_pickle=False) as stored:
                return _unpack({name: stored[name] for name in stored.files})
        except FileNotFoundError:
            return None
        except Exception as error:  # half-written by another program, or of another version: compute it again
            logger.debug("cached block %d is not readable: %s", index, error)
            return None

    def store(self, index: int, result: BlockResult) -> None:
        """Keep a result."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            stream = io.BytesIO()
            np.savez(stream, allow_pickle=False, **_pack(result))
            write_bytes(self._path(index), stream.getvalue())
        except (OSError, OutputError) as error:
            logger.debug("block %d is not cached: %s", index, error)

    def remove(self) -> None:
        """Forget the run; the folders above it go, too, when nothing else is in them."""
        shutil.rmtree(self._folder, ignore_errors=True)
        for folder in (self._folder.parent, self._folder.parent.parent):
            with contextlib.suppress(OSError):  # not empty, or not ours
                folder.rmdir()

    def _path(self, index: int) -> Path:
        return self._folder / f"block_{index:04d}.npz"


def _pack(result: BlockResult) -> dict[str, np.ndarray]:
    """Arrays of a result; names and numbers go into one JSON text."""
    about = {
        "name": result.name,
        "kind": result.kind,
        "errors": [result.error_before, result.error_after],
        "ranges": [asdict(choice) for choice in result.ranges],
        "layers": {node: list(how) for node, how in result.layers.items()},
        "qparams": [[name, asdict(qparams.spec)] for name, qparams in result.qparams.items()],
        "parameters": list(result.parameters),
    }
    arrays = {"about": np.array(json.dumps(about))}
    for index, qparams in enumerate(result.qparams.values()):
        arrays[f"scale_{index}"], arrays[f"zero_point_{index}"] = qparams.scale, qparams.zero_point
    for index, values in enumerate(result.parameters.values()):
        arrays[f"parameter_{index}"] = values
    return arrays


def _unpack(arrays: Mapping[str, np.ndarray]) -> BlockResult:
    about = json.loads(str(arrays["about"]))
    qparams = {
        name: QParams(arrays[f"scale_{index}"], arrays[f"zero_point_{index}"], QuantSpec(**spec))
        for index, (name, spec) in enumerate(about["qparams"])
    }
    ranges = [
        RangeChoice(**{**entry, "before": tuple(entry["before"]), "after": tuple(entry["after"])})
        for entry in about["ranges"]
    ]
    return BlockResult(
        about["name"],
        about["kind"],
        about["errors"][0],
        about["errors"][1],
        qparams,
        {name: arrays[f"parameter_{index}"] for index, name in enumerate(about["parameters"])},
        tuple(ranges),
        {node: (how, ridge) for node, (how, ridge) in about["layers"].items()},
    )
