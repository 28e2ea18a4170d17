"""From whatever the user has to a ``Source``."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CalibrationError, ConfigError
from .array_file import ArrayFile, open_npy, open_npz
from .array_sources import ArraySource, FeedSource, check_arrays, check_feeds
from .images import MAX_PIXELS, SUFFIXES, find_images
from .inputs import InputInfo, as_inputs, check_names, fixed_batch
from .preprocess import Preprocess
from .presets import PRESETS
from .sources import ImageSource, Source
from .spool import Spool


def open_source(
    data: Any,
    inputs: Iterable[Sequence],
    *,
    preprocess: Preprocess | None = None,
    samples: int | None = None,
    seed: int = 0,
    batch_size: int = 1,
    skip_unreadable: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Source:
    """Open calibration data for a model.

    Args:
        data: Folder of images (or one image), ``.npz`` keyed by input name, ``.npy`` for a one-input model; an array
            for a one-input model; a dict of arrays; these have samples on the first axis. Or a list or iterable of
            complete feeds (dicts), or an object with ``get_next()`` as onnxruntime's CalibrationDataReader; what can
            be read once only is buffered in a temporary file.
        inputs: What the model takes: ``(name, dtype, shape)``, free dimensions None or a name.
        preprocess: For images; None is the ``imagenet`` preset.
        samples: Use at most this many; None is all. A subset is drawn at random, except of feeds that are read once:
            there the first ones are used.
        seed: For the subset, which keeps its order.
        batch_size: Samples in one batch where the model leaves it free.
        skip_unreadable: Skip unreadable or too large images, with a warning, instead of raising.
        max_pixels: Images beyond this are not decoded.

    Returns:
        A re-iterable source.

    Raises:
        CalibrationError: The data do not fit; one line that names the file or sample, and the input.
        ConfigError: ``samples`` or ``batch_size`` is below 1.
    """
    for name, value in (("samples", samples), ("batch_size", batch_size), ("max_pixels", max_pixels)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be 1 or more, found {value}")
    infos = as_inputs(inputs)
    if not infos:
        raise CalibrationError("the model has no inputs to calibrate with")
    if isinstance(data, Source):
        check_names([info.name for info in data.inputs], infos, "calibration source")
        return data
    path = _path_of(data)
    if path is None:
        return _open_object(data, infos, samples, seed, batch_size)
    if not path.exists():
        raise CalibrationError(f"{path}: no such file or folder")
    suffix = path.suffix.lower()
    if path.is_dir() or suffix in SUFFIXES:
        paths = find_images(path) if path.is_dir() else [path]
        chosen = [paths[index] for index in subset(len(paths), samples, seed)]
        return _open_images(chosen, path, infos, preprocess, batch_size, skip_unreadable, max_pixels)
    if suffix == ".npz":
        return _open_arrays(open_npz(path), infos, samples, seed, batch_size, str(path))
    if suffix == ".npy":
        only = _only_input(infos, f"{path}: an .npy holds one array")
        return _open_arrays({only.name: open_npy(path)}, infos, samples, seed, batch_size, str(path))
    raise CalibrationError(f"{path}: expected a folder of images, an image, .npz or .npy, found {suffix or 'a file'}")


def _path_of(data: object) -> Path | None:
    """``data`` as a path, when it is one."""
    return Path(data) if isinstance(data, (str, os.PathLike)) else None


def subset(count: int, samples: int | None, seed: int) -> list[int]:
    """Indices of at most ``samples`` of ``count`` items, ascending; the same for the same seed."""
    if samples is None or samples >= count:
        return list(range(count))
    return sorted(np.random.default_rng(seed).permutation(count)[:samples].tolist())


def _only_input(inputs: Sequence[InputInfo], what: str) -> InputInfo:
    if len(inputs) != 1:
        names = ", ".join(repr(info.name) for info in inputs)
        raise CalibrationError(f"{what}, but the model takes {names}; use an .npz or a dict keyed by input name")
    return inputs[0]


def _open_images(
    paths: Sequence[Path],
    root: Path,
    inputs: Sequence[InputInfo],
    preprocess: Preprocess | None,
    batch_size: int,
    skip_unreadable: bool,
    max_pixels: int,
) -> Source:
    _only_input(inputs, f"{root}: images fill one input")
    size = fixed_batch(inputs) or batch_size
    folder = root if root.is_dir() else root.parent
    preprocess = preprocess or PRESETS["imagenet"]
    return ImageSource(paths, folder, inputs, preprocess, size, skip_unreadable=skip_unreadable, max_pixels=max_pixels)


def _open_arrays(
    arrays: Mapping[str, np.ndarray | ArrayFile],
    inputs: Sequence[InputInfo],
    samples: int | None,
    seed: int,
    batch_size: int,
    where: str,
) -> Source:
    size = fixed_batch(inputs) or batch_size
    count = check_arrays(arrays, inputs, where)
    return ArraySource(arrays, inputs, subset(count, samples, seed), size)


def _open_object(data: Any, inputs: Sequence[InputInfo], samples: int | None, seed: int, batch_size: int) -> Source:
    if isinstance(data, np.ndarray):
        data = {_only_input(inputs, "one array was passed").name: data}
    if isinstance(data, Mapping):
        arrays = {str(name): np.asarray(value) for name, value in data.items()}
        return _open_arrays(arrays, inputs, samples, seed, batch_size, "calibration data")
    if isinstance(data, (list, tuple)):
        if not data:
            raise CalibrationError("calibration data: the list is empty; expected dicts of input name to array")
        indices = subset(len(data), samples, seed)
        for index in indices:
            check_feeds(data[index], inputs, f"sample {index}")
        return FeedSource(data, inputs, indices)
    spool = Spool()
    for index, feeds in enumerate(_feeds_of(data)):
        spool.append(check_feeds(feeds, inputs, f"sample {index}"))
        if samples is not None and len(spool) >= samples:
            break
    if not len(spool):
        raise CalibrationError(
            f"calibration data: the {type(data).__name__} gave no samples; if it was read before, rewind it first"
        )
    return FeedSource(spool, inputs, range(len(spool)))  # type: ignore[arg-type]


def _feeds_of(data: Any) -> Iterator[Any]:
    """Feeds of a reader with ``get_next`` or of an iterable."""
    if hasattr(data, "get_next"):
        feeds: Iterator[Any] = iter(data.get_next, None)
    elif isinstance(data, Iterable):
        feeds = iter(data)
    else:
        raise CalibrationError(
            f"calibration data: cannot use {type(data).__name__}; expected a folder, .npz, .npy, array, dict of "
            "arrays, iterable of dicts, or an object with get_next()"
        )
    for index in itertools.count():
        try:
            feed = next(feeds)
        except StopIteration:
            return
        except Exception as error:  # the user's own code
            what = f"{type(error).__name__}: {error}"
            raise CalibrationError(
                f"calibration data: {type(data).__name__} failed at sample {index} ({what})"
            ) from error
        yield feed
