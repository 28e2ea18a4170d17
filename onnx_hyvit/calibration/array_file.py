"""Rows of .npy files and .npz members, read as they are needed.

A memory map would count every touched page as resident memory; seeking and reading keeps one batch in memory. Pickled
(object) arrays are refused before anything is unpickled.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy_format

from ..errors import CalibrationError

MAX_SAMPLE_BYTES = 1 << 30
MAX_INFLATED_BYTES = 64 << 30
MAX_INFLATION = 500  # deflate cannot exceed 1032; real activations and images stay below 50


@dataclass(frozen=True)
class ArrayFile:
    """An array on disk whose first axis counts samples.

    Args:
        path: The .npy or .npz file.
        member: Name inside the .npz, or None.
        shape: Shape of the whole array.
        dtype: Its dtype, never object.
        offset: Bytes of the header.
    """

    path: Path
    member: str | None
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int

    @property
    def name(self) -> str:
        """For messages: the path, and the member."""
        return str(self.path) if self.member is None else f"{self.path} [{self.member.removesuffix('.npy')}]"

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample."""
        return int(np.prod(self.shape[1:], dtype=object)) * self.dtype.itemsize

    def rows(self, indices: Sequence[int], batch: int) -> Iterator[np.ndarray]:
        """Yield arrays [n, ...], n <= ``batch``, of the rows at ``indices`` (ascending).

        Raises:
            CalibrationError: The file ends early, or is damaged.
        """
        with _reading(self.name), self._stream() as stream:
            for start in range(0, len(indices), batch):
                part = indices[start : start + batch]
                block = np.empty((len(part), *self.shape[1:]), self.dtype)
                for row, index in enumerate(part):
                    stream.seek(self.offset + index * self.row_bytes)
                    self._read_row(stream, block[row : row + 1], index)
                yield block

    def _read_row(self, stream: IO[bytes], row: np.ndarray, index: int) -> None:
        view = row.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(view):
            data = stream.read(min(len(view) - done, 1 << 20))
            if not data:
                raise CalibrationError(f"{self.name}: the file ends within sample {index}; it is truncated")
            view[done : done + len(data)] = data
            done += len(data)

    @contextlib.contextmanager
    def _stream(self) -> Iterator[IO[bytes]]:
        if self.member is None:
            with self.path.open("rb") as stream:
                yield stream
        else:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                yield stream


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, zipfile.BadZipFile, zipfile.LargeZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise CalibrationError(f"{name}: cannot be read ({error})") from error
    except Exception as error:
        if type(error).__module__ == "zlib" or isinstance(error, ValueError):
            raise CalibrationError(f"{name}: the file is damaged ({error})") from error
        raise


def open_npy(path: Path) -> ArrayFile:
    """The array of an .npy file.

    Raises:
        CalibrationError: Damaged, pickled, or in Fortran order.
    """
    with _reading(str(path)), path.open("rb") as stream:
        return _array(path, None, stream, path.stat().st_size)


def open_npz(path: Path) -> dict[str, ArrayFile]:
    """The arrays of an .npz file by name.

    Raises:
        CalibrationError: Damaged, pickled, in Fortran order, or a member that inflates beyond all measure.
    """
    arrays = {}
    with _reading(str(path)), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if info.file_size > MAX_INFLATED_BYTES or info.file_size > MAX_INFLATION * max(info.compress_size, 1 << 20):
                raise CalibrationError(
                    f"{path} [{name}]: inflates from {info.compress_size} to {info.file_size} bytes; refused as a zip "
                    "bomb (save it with numpy.savez, uncompressed)"
                )
            with archive.open(info) as stream:
                arrays[name] = _array(path, info.filename, stream, info.file_size)
    return arrays


def _array(path: Path, member: str | None, stream: IO[bytes], size: int) -> ArrayFile:
    name = str(path) if member is None else f"{path} [{member.removesuffix('.npy')}]"
    try:
        version = npy_format.read_magic(stream)
        read_header = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        shape, fortran, dtype = read_header(stream)
    except Exception as error:  # numpy parses the header as Python text, and raises whatever the parser does
        raise CalibrationError(f"{name}: not a numpy array file ({' '.join(str(error).split())[:120]})") from error
    if dtype.hasobject:
        raise CalibrationError(f"{name}: holds pickled Python objects, which are not loaded; save plain numbers")
    array = ArrayFile(path, member, shape, dtype, stream.tell())
    if fortran and len(shape) > 1:
        raise CalibrationError(f"{name}: is in Fortran order; save numpy.ascontiguousarray(array) instead")
    if not shape:
        raise CalibrationError(f"{name}: is a scalar; the first axis must count samples")
    if array.row_bytes > MAX_SAMPLE_BYTES:
        raise CalibrationError(f"{name}: one sample takes {array.row_bytes} bytes, more than {MAX_SAMPLE_BYTES}")
    if array.offset + shape[0] * array.row_bytes > size:
        raise CalibrationError(f"{name}: is truncated: the header promises {shape[0]} samples, the file is shorter")
    return array
