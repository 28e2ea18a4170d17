"""Read class labels for a comparison."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from .errors import CalibrationError

REMEDY = "write paths as the samples have them, relative to their folder"


class FileLabels(Mapping[str, int]):
    """Class numbers of a file by the paths in it; a file name alone is enough while it is unique.

    A sample is looked up by its path, then by its file name, whatever folders the file has in front of that.

    Args:
        path: The file.
        rows: Path of a sample -> (number of its line, class).
    """

    def __init__(self, path: Path, rows: Mapping[str, tuple[int, int]]) -> None:
        self._path, self._rows = path, dict(rows)
        self._named: dict[str, list[str]] = {}
        for row in self._rows:
            self._named.setdefault(PurePath(row).name, []).append(row)
        self._samples: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __getitem__(self, sample: str) -> int:
        """Class of a sample.

        Raises:
            KeyError: It has none.
            CalibrationError: Several lines have its file name, or its line is that of another sample already.
        """
        row = self._row_of(PurePath(sample))
        number, label = self._rows[row]
        if (other := self._samples.setdefault(row, sample)) != sample:
            raise CalibrationError(f"{self._path}: line {number} ({row!r}) fits {other!r} and {sample!r}; {REMEDY}")
        return label

    def _row_of(self, sample: PurePath) -> str:
        if sample.as_posix() in self._rows:
            return sample.as_posix()
        first, *more = self._named[sample.name]
        if more:
            both = " and ".join(f"{self._rows[row][0]} ({row!r})" for row in (first, more[0]))
            raise CalibrationError(f"{self._path}: lines {both} fit {sample.as_posix()!r}; {REMEDY}")
        return first


def load_labels(labels: str | os.PathLike[str] | np.ndarray | Mapping[str, int]) -> Mapping[str, int] | np.ndarray:
    """Class numbers of samples.

    Args:
        labels: An integer array [N] in the order of the samples, or a file: ``.npy`` with such an array, ``.txt`` with
            one number a line, ``.csv`` with ``path,number`` lines (a header line is allowed): paths of the samples
            within their folder, or file names alone where these are unique. What this function gave is given back.

    Returns:
        The array, or path -> class for a CSV file.

    Raises:
        CalibrationError: The file is missing or malformed; names the line.
    """
    if isinstance(labels, np.ndarray):
        return _checked(labels, "labels")
    if isinstance(labels, Mapping):
        return labels
    path = Path(labels)
    try:
        if path.suffix == ".npy":
            return _checked(np.load(path, mmap_mode="r", allow_pickle=False), str(path))
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise CalibrationError(f"{path}: no such file") from None
    except Exception as error:  # the header of an .npy is parsed as Python text, which raises nearly anything
        raise CalibrationError(f"{path}: cannot be read as labels ({error})") from error
    if path.suffix == ".csv":
        try:
            return _from_csv(lines, path)
        except csv.Error as error:
            raise CalibrationError(f"{path}: cannot be read as labels ({error})") from error
    try:
        return np.asarray([int(line) for line in lines if line.strip()], np.int64)
    except (ValueError, OverflowError) as error:
        raise CalibrationError(f"{path}: expected one class number a line ({error})") from error


def labels_of(ids: Sequence[Any], labels: Mapping[str, int] | np.ndarray) -> list[int]:
    """Class numbers of samples.

    Args:
        ids: What calibration data call the samples: positions, or paths of images.
        labels: What ``load_labels`` gave.

    Raises:
        CalibrationError: A sample has none, or more than one; names it.
    """
    found = []
    for sample in ids:
        key = sample if isinstance(labels, np.ndarray) else str(sample)
        try:
            found.append(int(labels[key]))
        except (KeyError, IndexError, TypeError, ValueError):
            raise CalibrationError(f"labels: there is none for sample {sample!r} ({len(labels)} labels)") from None
    return found


def _checked(values: np.ndarray, name: str) -> np.ndarray:
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise CalibrationError(f"{name}: expected integers of shape [samples], found {values.dtype} {values.shape}")
    return values.astype(np.int64)


def _from_csv(lines: list[str], path: Path) -> FileLabels:
    found: dict[str, tuple[int, int]] = {}
    for number, row in enumerate(csv.reader(lines), 1):
        if len(row) < 2:
            continue
        if re.fullmatch(r"-?[0-9]{1,18}", row[1].strip()):
            name, label = PurePath(row[0].strip()).as_posix(), int(row[1])
            first, known = found.setdefault(name, (number, label))
            if known != label:
                raise CalibrationError(
                    f"{path}: lines {first} and {number} give {name!r} two classes ({known} and {label}); remove one"
                )
        elif number > 1:
            raise CalibrationError(f"{path}: line {number} has no class number ({row[1]!r})")
    if not found:
        raise CalibrationError(f"{path}: no 'path,class number' line in it")
    return FileLabels(path, found)
