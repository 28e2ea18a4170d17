"""Readers for CIFAR-10 and Fashion-MNIST that need numpy and Pillow only.

Every reader returns `Images`: uint8 pixels in NHWC order, RGB, with one label per image.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

CIFAR_TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
CIFAR_TEST_BATCHES = ("test_batch",)
CIFAR_SIDE = 32
FASHION_SUBSET = "fashion_mnist_subset.npz"
FASHION_FILES = {"train": "train", "test": "t10k"}


class DataError(Exception):
    """A data folder or file that cannot be read; the message names it and says what was expected."""


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        pixels: uint8 [n, height, width, 3], RGB.
        labels: int64 [n], class indices.
    """

    pixels: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        """Check shapes and types once, where the arrays enter the program."""
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 4 or self.pixels.shape[3] != 3:
            raise DataError(f"images must be uint8 [n, h, w, 3], found {self.pixels.dtype} {self.pixels.shape}")
        if self.labels.shape != self.pixels.shape[:1]:
            raise DataError(f"{len(self.pixels)} images but labels of shape {self.labels.shape}")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: np.ndarray | slice) -> Images:
        """Return the images at `index` (integer or boolean array, or a slice)."""
        return Images(self.pixels[index], self.labels[index])


def load_images(dataset: str, data: Path, split: str) -> Images:
    """Read one split of a dataset.

    Args:
        dataset: "cifar10" or "fashion_mnist".
        data: folder with the files of the dataset, or one archive or npz file.
        split: "train", "test", or "calib" (the calibration images of the Fashion-MNIST subset).

    Raises:
        DataError: if nothing readable is found; the message lists what was looked for.
    """
    if not data.exists():
        raise DataError(f"{data}: no such file or folder")
    if dataset == "cifar10":
        return load_cifar10(data, split)
    if dataset == "fashion_mnist":
        return load_fashion_mnist(data, split)
    raise DataError(f"unknown dataset {dataset!r}: expected cifar10 or fashion_mnist")


# --- CIFAR-10 -----------------------------------------------------------------------------------


def load_cifar10(data: Path, split: str) -> Images:
    """Read CIFAR-10 from JPEG npz files or from the official python or binary archive.

    Args:
        data: a folder with `cifar10_train.npz` and `cifar10_test.npz`, a folder with an official
            archive (packed or unpacked), or such a `.tar.gz` archive itself.
        split: "train" (50,000 images) or "test" (10,000 images).
    """
    if split not in ("train", "test"):
        raise DataError(f"cifar10 has the splits train and test, not {split!r}")
    if data.is_file():
        return _cifar_archive(data, split)
    packed = data / f"cifar10_{split}.npz"
    if packed.is_file():
        return _cifar_jpeg_npz(packed)
    for folder in (data, data / "cifar-10-batches-py", data / "cifar-10-batches-bin"):
        for kind in ("py", "bin"):
            files = [folder / name for name in _batch_names(split, kind)]
            if all(file.is_file() for file in files):
                return _join(_decode_batch(file.read_bytes(), kind, str(file)) for file in files)
    for name in ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"):
        if (data / name).is_file():
            return _cifar_archive(data / name, split)
    raise DataError(
        f"{data}: no CIFAR-10 {split} images; expected {packed.name}, cifar-10-python.tar.gz, "
        "cifar-10-binary.tar.gz, or the unpacked batches of one of the archives"
    )


def _cifar_jpeg_npz(path: Path) -> Images:
    """Read JPEG images packed one after the other (keys jpeg, offsets, labels)."""
    from PIL import Image

    with np.load(path, allow_pickle=False) as npz:
        missing = {"jpeg", "offsets", "labels"} - set(npz.files)
        if missing:
            raise DataError(f"{path}: not a JPEG pack, keys missing: {sorted(missing)}")
        jpeg, offsets, labels = npz["jpeg"].tobytes(), npz["offsets"], npz["labels"].astype(np.int64)
    pixels = np.empty((len(labels), CIFAR_SIDE, CIFAR_SIDE, 3), np.uint8)
    for i in range(len(labels)):
        with Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]])) as image:
            pixels[i] = np.asarray(image.convert("RGB"))
    return Images(pixels, labels)


def _batch_names(split: str, kind: str) -> list[str]:
    """File names of the official batches of a split, e.g. data_batch_1 or data_batch_1.bin."""
    stems = CIFAR_TRAIN_BATCHES if split == "train" else CIFAR_TEST_BATCHES
    return [stem + (".bin" if kind == "bin" else "") for stem in stems]


def _cifar_archive(path: Path, split: str) -> Images:
    """Read an official tar archive without unpacking it to disk."""
    try:
        with tarfile.open(path) as tar:
            members = {Path(m.name).name: m for m in tar.getmembers() if m.isfile()}
            for kind in ("py", "bin"):
                names = _batch_names(split, kind)
                if all(name in members for name in names):
                    return _join(_decode_batch(_member_bytes(tar, members[n]), kind, f"{path}:{n}") for n in names)
    except tarfile.TarError as e:
        raise DataError(f"{path}: not a readable tar archive ({e})") from e
    raise DataError(f"{path}: holds no CIFAR-10 {split} batches (expected {', '.join(_batch_names(split, 'py'))})")


def _member_bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    if stream is None:
        raise DataError(f"{member.name}: not a plain file in the archive")
    with stream:
        return stream.read()


def _decode_batch(raw: bytes, kind: str, name: str) -> Images:
    """Decode one official batch: rows of 3072 bytes in CHW order, with labels."""
    size = 3 * CIFAR_SIDE * CIFAR_SIDE
    if kind == "bin":
        if len(raw) == 0 or len(raw) % (size + 1):
            raise DataError(f"{name}: {len(raw)} bytes is not a whole number of {size + 1}-byte records")
        rows = np.frombuffer(raw, np.uint8).reshape(-1, size + 1)
        labels, planes = rows[:, 0], rows[:, 1:]
    else:
        batch = load_restricted_pickle(io.BytesIO(raw), name)
        if not isinstance(batch, dict) or not {b"data", b"labels"} <= set(batch):
            raise DataError(f"{name}: expected a dictionary with the keys data and labels")
        planes, labels = np.asarray(batch[b"data"], np.uint8), np.asarray(batch[b"labels"])
        if planes.ndim != 2 or planes.shape[1] != size:
            raise DataError(f"{name}: data has shape {planes.shape}, expected [n, {size}]")
    pixels = planes.reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE).transpose(0, 2, 3, 1)
    return Images(np.ascontiguousarray(pixels), labels.astype(np.int64))


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that can rebuild plain containers and numpy arrays, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Resolve the three names that a pickled array needs; refuse every other one."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return _encode_latin1
        raise pickle.UnpicklingError(f"refused to load {module}.{name}")


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Stand in for `_codecs.encode`, through which protocol 2 writes bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refused to encode as {encoding}")
    return text.encode("latin1")


def load_restricted_pickle(stream: IO[bytes], name: str) -> Any:
    """Unpickle containers, numbers and numpy arrays only.

    Raises:
        DataError: if the pickle names any other class or function, or is broken.
    """
    try:
        return _ArrayUnpickler(stream, encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError) as e:
        raise DataError(f"{name}: not a CIFAR-10 python batch ({e})") from e


def _join(parts: Iterable[Images]) -> Images:
    parts = list(parts)
    return Images(np.concatenate([p.pixels for p in parts]), np.concatenate([p.labels for p in parts]))


# --- Fashion-MNIST ------------------------------------------------------------------------------


def load_fashion_mnist(data: Path, split: str) -> Images:
    """Read Fashion-MNIST from the shipped subset or from the original IDX files.

    Args:
        data: the subset npz, a folder with it, or a folder with `train-images-idx3-ubyte[.gz]` etc.
        split: "train", "test" or (subset only) "calib". The grey channel is repeated to RGB.
    """
    subset = data if data.is_file() else data / FASHION_SUBSET
    if subset.is_file():
        return _fashion_subset(subset, "calib" if split == "train" else split)
    if split not in FASHION_FILES:
        raise DataError(f"{data}: the IDX files of Fashion-MNIST have the splits train and test, not {split!r}")
    stem = FASHION_FILES[split]
    images = _read_idx(data, f"{stem}-images-idx3-ubyte", 3)
    labels = _read_idx(data, f"{stem}-labels-idx1-ubyte", 1)
    return Images(_grey_to_rgb(images), labels.astype(np.int64))


def _fashion_subset(path: Path, split: str) -> Images:
    with np.load(path, allow_pickle=False) as npz:
        keys = (f"{split}_images", f"{split}_labels")
        if not set(keys) <= set(npz.files):
            raise DataError(f"{path}: no keys {keys[0]} and {keys[1]} (found {', '.join(npz.files)})")
        return Images(_grey_to_rgb(npz[keys[0]]), npz[keys[1]].astype(np.int64))


def _grey_to_rgb(images: np.ndarray) -> np.ndarray:
    """Repeat the grey channel: uint8 [n, h, w] -> uint8 [n, h, w, 3]."""
    return np.repeat(images[..., None], 3, axis=3)


def _read_idx(folder: Path, stem: str, rank: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes, plain or gzipped."""
    for path in (folder / stem, folder / f"{stem}.gz"):
        if path.is_file():
            raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            shape = np.frombuffer(raw, ">i4", rank, offset=4) if len(raw) >= 4 + 4 * rank else np.zeros(0, int)
            if raw[:4] != bytes((0, 0, 8, rank)) or len(raw) != 4 + 4 * rank + int(np.prod(shape)):
                raise DataError(f"{path}: not an IDX file of unsigned bytes with {rank} dimensions")
            return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(tuple(int(n) for n in shape))
    raise DataError(f"{folder}: no {stem}[.gz] and no {FASHION_SUBSET}")


# --- to the input of a model --------------------------------------------------------------------


def split_train_validation(images: Images, validation: int, seed: int) -> tuple[Images, Images]:
    """Shuffle with `seed` and set `validation` images apart; returns (train, validation)."""
    order = np.random.default_rng(seed).permutation(len(images))
    return images.take(order[validation:]), images.take(order[:validation])


def resize(pixels: np.ndarray, side: int) -> np.ndarray:
    """Resize uint8 [n, h, w, 3] to [n, side, side, 3], bilinear with half-pixel centres."""
    from PIL import Image

    if pixels.shape[1:3] == (side, side):
        return pixels
    out = np.empty((len(pixels), side, side, 3), np.uint8)
    for i, image in enumerate(pixels):
        out[i] = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
    return out


def to_input(pixels: np.ndarray, side: int, mean: Iterable[float], std: Iterable[float]) -> np.ndarray:
    """Resize and normalise uint8 [n, h, w, 3] to float32 [n, 3, side, side].

    Args:
        pixels: uint8 RGB images.
        side: model input size in pixels.
        mean: per channel, on the 0..1 scale.
        std: per channel, on the 0..1 scale.
    """
    scaled = resize(pixels, side).astype(np.float32) / np.float32(255)
    normal = (scaled - np.asarray(tuple(mean), np.float32)) / np.asarray(tuple(std), np.float32)
    return np.ascontiguousarray(normal.transpose(0, 3, 1, 2))


def batches(images: Images, size: int) -> Iterator[Images]:
    """Yield consecutive batches of at most `size` images."""
    for start in range(0, len(images), size):
        yield images.take(slice(start, start + size))
