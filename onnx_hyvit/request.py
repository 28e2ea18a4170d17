"""What was asked for, opened and checked before the work begins: target, calibration data, output."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import calibration as calib
from .config import QuantConfig
from .errors import OutputError
from .graph import Model, model_to_proto
from .processor import find_target
from .recipes import Recipe
from .targets import Target, load_target
from .tasks import Workers


@dataclass(frozen=True)
class Request:
    """What every stage behind the exact rewrites is given.

    Args:
        source: Calibration data.
        recipe: How scales are found.
        target: Rules of the runtime, see ``adapted_target``.
        config: Settings, with the target by its name.
        labels: Class numbers of the samples in ``source``; None without.
        workers: Who reconstructs independent blocks, None for this process.
        chosen_target: Whether the target was found for this processor.
    """

    source: calib.Source
    recipe: Recipe
    target: Target
    config: QuantConfig
    labels: Mapping[str, int] | np.ndarray | None = None
    workers: Workers | None = None
    chosen_target: bool = False


def adapted_target(config: QuantConfig) -> Target:
    """The target of ``config`` with the types and granularity that the config asks for instead."""
    target = load_target(find_target(config.target))
    activation, weight = target.activation, target.weight
    if config.activation_type is not None:
        activation = replace(activation, dtype=config.activation_type)
    if config.activation_symmetric is not None:
        activation = replace(activation, scheme="symmetric" if config.activation_symmetric else "asymmetric")
    if not config.per_channel:
        weight = replace(weight, granularity="per_tensor")
    return replace(target, activation=activation, weight=weight)


def open_calibration(
    model: Model, calibration: Any, config: QuantConfig, preprocess: Any = None, skip_unreadable: bool = False
) -> calib.Source:
    """Open calibration data for the inputs of ``model``; see ``quantize`` for the kinds accepted."""
    if isinstance(preprocess, (str, os.PathLike)):
        preprocess = calib.load_preprocess(preprocess)
    return calib.open_source(
        calibration,
        calib.inputs_of(model_to_proto(model)),
        preprocess=preprocess,
        samples=config.samples,
        seed=config.seed,
        batch_size=config.batch_size,
        skip_unreadable=skip_unreadable,
    )


def input_shapes(source: calib.Source) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs for one sample like the first one; a batch that the model fixes is kept."""
    free = {info.name for info in source.inputs if info.shape and not isinstance(info.shape[0], int)}
    return {name: (1, *array.shape[1:]) if name in free else array.shape for name, array in first_feed(source).items()}


def first_feed(source: calib.Source) -> dict[str, np.ndarray]:
    """The first batch of ``source``, by input name."""
    return next(iter(source))[1]


def check_output(output: str | os.PathLike[str], model: Any = None) -> None:
    """Refuse an output that cannot be written, before any work is done.

    Raises:
        OutputError: The folder is missing or read-only, the path is a folder, or it is the input model itself.
    """
    path = Path(output)
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"{path}: the folder {folder} does not exist")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, expected a file name")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{path}: the folder {folder} is not writable ({error.strerror or error})") from error
    if isinstance(model, (str, os.PathLike)) and path.exists() and Path(model).exists() and path.samefile(model):
        raise OutputError(f"{path}: is the input model; choose another output")
