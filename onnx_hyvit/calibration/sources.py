"""Calibration data as re-iterable batches, streamed: one batch is in memory at a time."""

from __future__ import annotations

import copy
import hashlib
import itertools
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..errors import CalibrationError
from .images import MAX_PIXELS, read_image
from .inputs import InputInfo, check_finite, first_range, fixed_batch
from .preprocess import Preprocess

logger = logging.getLogger(__name__)

SampleId = str | int  # path within the folder, or index along the first axis
Batch = tuple[list[SampleId], dict[str, np.ndarray]]


class Source(ABC):
    """Batches of (sample ids, feeds); can be iterated again and gives the same batches.

    When the model's batch is fixed and the samples do not fill the last batch, it is filled up by repeating its last
    sample: there are then fewer ids than rows, and ``warnings`` says so.

    Attributes:
        inputs: What the model takes.
        batch_size: Rows in a full batch.
        warnings: What the user should know, each once.
    """

    def __init__(self, inputs: Sequence[InputInfo], batch_size: int) -> None:
        self.inputs = tuple(inputs)
        self.batch_size = batch_size
        self.warnings: list[str] = []

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def _batches(self) -> Iterator[Batch]:
        """Batches, checked for names, shapes and dtypes, not yet for values."""

    @abstractmethod
    def _hash(self, digest: hashlib._Hash) -> None:
        """Feed the content to ``digest``."""

    def __iter__(self) -> Iterator[Batch]:
        for number, (samples, feeds) in enumerate(self._batches()):
            for info in self.inputs:
                check_finite(feeds[info.name], info, samples)
            if number == 0 and self._warns_of_range:
                for warning in first_range(feeds, self.inputs):
                    self.warn(warning)
            yield samples, feeds

    _warns_of_range = True

    def fingerprint(self) -> str:
        """Hash of the samples, their order and how they are preprocessed: 64 hex digits."""
        digest = hashlib.sha256()
        for info in self.inputs:
            digest.update(f"{info.name} {info.dtype} {info.text};".encode())
        self._hash(digest)
        return digest.hexdigest()

    def limit_batch(self, samples: int) -> None:
        """Use batches of at most ``samples`` from now on, where the model leaves its batch free."""
        if self.batch_size > samples and fixed_batch(self.inputs) is None:
            self.batch_size = max(1, samples)

    def parts(self, samples: int) -> Iterator[Source]:
        """All of it in turn as sources of ``samples`` each, with warnings of their own, which can be sent to a worker.

        Args:
            samples: A multiple of ``batch_size``.
        """
        held: list[Batch] = []
        for batch in self:
            held.append(batch)
            if sum(len(ids) for ids, _ in held) >= samples:
                yield HeldBatches(self, held)
                held = []
        if held:
            yield HeldBatches(self, held)

    def warn(self, text: str) -> None:
        """Log a warning, and keep it, unless it was given before."""
        if text not in self.warnings:
            self.warnings.append(text)
            logger.warning("%s", text)

    def _fill(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Repeat the last row until a fixed batch is full."""
        if fixed_batch(self.inputs) is None:
            return feeds
        rows = len(next(iter(feeds.values())))
        short = self.batch_size - rows
        if short <= 0:
            return feeds
        self.warn(f"the model's batch is fixed at {self.batch_size}: the last batch repeats its last sample {short} x")
        return {name: np.concatenate([value, *[value[-1:]] * short]) for name, value in feeds.items()}


class ImageSource(Source):
    """Image files, decoded and preprocessed when their batch is asked for."""

    _warns_of_range = False  # the user chose the scale

    def __init__(
        self,
        paths: Sequence[Path],
        folder: Path,
        inputs: Sequence[InputInfo],
        preprocess: Preprocess,
        batch_size: int,
        *,
        skip_unreadable: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__(inputs, batch_size)
        self.preprocess = preprocess.resolve(self.inputs[0])
        self.folder = folder
        self._paths = list(paths)
        self._skip_unreadable = skip_unreadable
        self._max_pixels = max_pixels
        self._is_part = False

    def parts(self, samples: int) -> Iterator[Source]:
        """As of any source, but images are read where the part is: it is empty where none of its images can be."""
        for start in range(0, len(self._paths), samples):
            part = copy.copy(self)
            part._paths, part._is_part, part.warnings = self._paths[start : start + samples], True, []
            yield part

    def __len__(self) -> int:
        return len(self._paths)

    def _batches(self) -> Iterator[Batch]:
        images = self._images()
        while group := list(itertools.islice(images, self.batch_size)):
            for _, same in itertools.groupby(group, key=lambda item: item[1].shape):
                named = list(same)
                values = _to_dtype(np.stack([value for _, value in named]), self.inputs[0])
                yield [name for name, _ in named], self._fill({self.inputs[0].name: values})

    def _images(self) -> Iterator[tuple[str, np.ndarray]]:
        for path in list(self._paths):
            try:
                yield path.relative_to(self.folder).as_posix(), self._read(path)
            except CalibrationError as error:
                if self._is_part and not os.path.lexists(path):
                    raise CalibrationError(f"{error}; it was there: workers must see the same paths") from error
                if not self._skip_unreadable:
                    raise CalibrationError(f"{error}; repair it, or skip such images with skip_unreadable") from error
                self.warn(f"skipped: {error}")
                self._paths.remove(path)
        if not self._paths and not self._is_part:
            raise CalibrationError(f"{self.folder}: no image could be read")

    def _read(self, path: Path) -> np.ndarray:
        image = read_image(path, self._max_pixels)
        try:
            return self.preprocess(image)
        except CalibrationError as error:
            raise CalibrationError(f"{path}: {error}") from error

    def _hash(self, digest: hashlib._Hash) -> None:
        digest.update(repr(self.preprocess).encode())
        for path in self._paths:
            digest.update(f"{path.relative_to(self.folder).as_posix()};".encode())
            digest.update(_content_hash(path))


def _to_dtype(values: np.ndarray, info: InputInfo) -> np.ndarray:
    """Preprocessed pixels in the model's dtype; an 8-bit input gets rounded values."""
    if info.dtype.kind in "iu":
        limits = np.iinfo(info.dtype)
        return np.clip(np.rint(values), limits.min, limits.max).astype(info.dtype)
    return values.astype(info.dtype, copy=False)


def _content_hash(path: Path) -> bytes:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror})") from error
    return digest.digest()


class HeldBatches(Source):
    """Some batches of another source, in memory."""

    _warns_of_range = False  # the whole source does

    def __init__(self, source: Source, batches: Sequence[Batch]) -> None:
        super().__init__(source.inputs, source.batch_size)
        self._held = list(batches)

    def __len__(self) -> int:
        return sum(len(samples) for samples, _ in self._held)

    def _batches(self) -> Iterator[Batch]:
        yield from self._held

    def _hash(self, digest: hashlib._Hash) -> None:
        for _, feeds in self._held:
            for info in self.inputs:
                digest.update(np.ascontiguousarray(feeds[info.name]).data)


class FirstSamples(Source):
    """The first batches of another source, until they hold enough samples."""

    _warns_of_range = False  # the whole source does

    def __init__(self, source: Source, samples: int) -> None:
        super().__init__(source.inputs, source.batch_size)
        self._source, self._samples = source, samples

    def limit_batch(self, samples: int) -> None:
        """Limit the batches of the whole source, which these are."""
        self._source.limit_batch(samples)
        self.batch_size = self._source.batch_size

    def __len__(self) -> int:
        return min(len(self._source), -(-self._samples // self.batch_size) * self.batch_size)

    def _batches(self) -> Iterator[Batch]:
        seen = 0
        for samples, feeds in self._source._batches():
            yield samples, feeds
            seen += len(samples)
            if seen >= self._samples:
                return

    def _hash(self, digest: hashlib._Hash) -> None:
        self._source._hash(digest)
        digest.update(f"first {self._samples};".encode())
