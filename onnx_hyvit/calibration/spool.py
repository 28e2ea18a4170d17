"""Feeds of a source that can be read once only, kept on disk to be read again."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from ..errors import CalibrationError


class _Stored(NamedTuple):
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]


class Spool:
    """A list of feeds in one anonymous temporary file: raw bytes, no pickle; the file goes when the spool does."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="onnx_hyvit_")  # noqa: SIM115 - lives as long as the spool
        self._feeds: list[dict[str, _Stored]] = []

    def append(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Store one feed.

        Raises:
            CalibrationError: The temporary folder is full.
        """
        stored = {}
        try:
            for name, value in feeds.items():
                value = np.ascontiguousarray(value)
                stored[name] = _Stored(self._file.seek(0, 2), value.dtype, value.shape)
                self._file.write(value.tobytes())
        except OSError as error:
            raise CalibrationError(
                f"{tempfile.gettempdir()}: calibration data cannot be buffered ({error.strerror}); set TMPDIR to a "
                "folder with room, or pass a list"
            ) from error
        self._feeds.append(stored)

    def extend(self, feeds: Iterable[Mapping[str, np.ndarray]]) -> None:
        """Store all of ``feeds``, one at a time."""
        for feed in feeds:
            self.append(feed)

    def __len__(self) -> int:
        return len(self._feeds)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        feeds = {}
        for name, (offset, dtype, shape) in self._feeds[index].items():
            self._file.seek(offset)
            data = self._file.read(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
            feeds[name] = np.frombuffer(data, dtype).reshape(shape)
        return feeds
