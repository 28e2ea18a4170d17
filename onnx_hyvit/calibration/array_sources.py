"""Calibration data that are arrays or complete feeds, in memory or on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..errors import CalibrationError
from .array_file import ArrayFile
from .inputs import InputInfo, cast, check_dtype, check_names, check_shape
from .sources import Batch, Source


class ArraySource(Source):
    """Arrays in memory or on disk, first axis samples, one per input."""

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray | ArrayFile],
        inputs: Sequence[InputInfo],
        indices: Sequence[int],
        batch_size: int,
    ) -> None:
        super().__init__(inputs, batch_size)
        self._arrays = dict(arrays)
        self._indices = list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def _batches(self) -> Iterator[Batch]:
        readers = {info.name: self._rows(info) for info in self.inputs}
        for start in range(0, len(self._indices), self.batch_size):
            samples = self._indices[start : start + self.batch_size]
            yield [*samples], self._fill({name: next(rows) for name, rows in readers.items()})

    def _rows(self, info: InputInfo) -> Iterator[np.ndarray]:
        array = self._arrays[info.name]
        if isinstance(array, ArrayFile):
            for block in array.rows(self._indices, self.batch_size):
                yield cast(block, info, array.name)
        else:
            for start in range(0, len(self._indices), self.batch_size):
                yield cast(array[self._indices[start : start + self.batch_size]], info, "array")

    def _hash(self, digest: hashlib._Hash) -> None:
        for samples, feeds in self._batches():
            for info in self.inputs:
                digest.update(np.ascontiguousarray(feeds[info.name][: len(samples)]).data)


def check_arrays(arrays: Mapping[str, np.ndarray | ArrayFile], inputs: Sequence[InputInfo], where: str) -> int:
    """Check names, shapes and dtypes; returns the number of samples.

    Raises:
        CalibrationError: Anything that does not fit, or no samples, or different numbers of samples.
    """
    check_names(arrays, inputs, where)
    for info in inputs:
        array = arrays[info.name]
        name = array.name if isinstance(array, ArrayFile) else where
        check_dtype(array.dtype, info, name)
        check_shape(array.shape, info, name, rows=True)
    counts = {info.name: arrays[info.name].shape[0] for info in inputs}
    if len(set(counts.values())) > 1:
        raise CalibrationError(f"{where}: the inputs differ in their number of samples ({counts})")
    count = next(iter(counts.values()))
    if not count:
        raise CalibrationError(f"{where}: there are no samples (the first axis has length 0)")
    return count


class FeedSource(Source):
    """Complete feeds, each one batch: a list in memory, or a spool on disk."""

    def __init__(
        self,
        feeds: Sequence[Mapping[str, np.ndarray]],
        inputs: Sequence[InputInfo],
        indices: Sequence[int],
    ) -> None:
        super().__init__(inputs, 1)
        self._feeds = feeds
        self._indices = list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def _batches(self) -> Iterator[Batch]:
        for index in self._indices:
            yield [index], check_feeds(self._feeds[index], self.inputs, f"sample {index}")

    def _hash(self, digest: hashlib._Hash) -> None:
        for _, feeds in self._batches():
            for info in self.inputs:
                digest.update(f"{feeds[info.name].shape}".encode())
                digest.update(feeds[info.name].data)


def check_feeds(feeds: object, inputs: Sequence[InputInfo], where: str) -> dict[str, np.ndarray]:
    """One feed in the dtypes of the model.

    Raises:
        CalibrationError: It is no mapping, or a name, shape or dtype does not fit.
    """
    if not isinstance(feeds, Mapping):
        raise CalibrationError(f"{where}: expected a dict of input name to array, found {type(feeds).__name__}")
    check_names(map(str, feeds), inputs, where)
    checked = {}
    for info in inputs:
        value = np.asarray(feeds[info.name])
        check_dtype(value.dtype, info, where)
        check_shape(value.shape, info, where, rows=False)
        checked[info.name] = cast(value, info, where)
    return checked
