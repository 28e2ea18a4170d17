"""Read class labels for a comparison."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CalibrationError


def load_labels(labels: str | os.PathLike[str] | np.ndarray) -> dict[str, int] | np.ndarray:
    """Class numbers of samples.

    Args:
        labels: An integer array [N] in the order of the samples, or a file: ``.npy`` with such an array, ``.txt`` with
            one number a line, ``.csv`` with ``file name,number`` lines (a header line is allowed).

    Returns:
        The array, or file name -> class for a CSV file.

    Raises:
        CalibrationError: The file is missing or malformed; names the line.
    """
    if isinstance(labels, np.ndarray):
        return _checked(labels, "labels")
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
        CalibrationError: A sample has none; names it.
    """
    found = []
    for sample in ids:
        key = sample if isinstance(labels, np.ndarray) else Path(str(sample)).name
        try:
            found.append(int(labels[key]))
        except (KeyError, IndexError, TypeError, ValueError):
            raise CalibrationError(f"labels: there is none for sample {sample!r} ({len(labels)} labels)") from None
    return found


def _checked(values: np.ndarray, name: str) -> np.ndarray:
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise CalibrationError(f"{name}: expected integers of shape [samples], found {values.dtype} {values.shape}")
    return values.astype(np.int64)


def _from_csv(lines: list[str], path: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for number, row in enumerate(csv.reader(lines), 1):
        if len(row) < 2:
            continue
        if re.fullmatch(r"-?[0-9]{1,18}", row[1].strip()):
            found[Path(row[0].strip()).name] = int(row[1])
        elif number > 1:
            raise CalibrationError(f"{path}: line {number} has no class number ({row[1]!r})")
    if not found:
        raise CalibrationError(f"{path}: no 'file name,class number' line in it")
    return found
