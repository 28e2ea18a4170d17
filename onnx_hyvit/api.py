"""The pipeline on one screen: load, rewrite, find the blocks, plan and fit, convert to Q/DQ, report, save."""

from __future__ import annotations

import os
import time
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from . import calibration as calib
from .backward import check_losses
from .blocks import find_structure
from .config import AUTO_TARGET, QuantConfig
from .convert import convert
from .fit_model import fit_model
from .graph import load_model, model_to_proto, save_proto
from .graph.io import model_bytes
from .limits import read_labels
from .passes import CANONICAL, run_passes
from .prepared import Prepared, check_node_names, describe, prepare
from .processor import find_target
from .quantize_report import build_report
from .recipes import Recipe, find_recipe, with_weighting
from .reconstruct import default_cache_folder, remove_old_runs
from .request import Request, adapted_target, check_output, input_shapes, open_calibration
from .runtime import Progress, observe
from .storage import check_storage, load_for
from .tasks import Workers, check_jobs, local_processes

ModelLike = str | os.PathLike[str] | bytes | onnx.ModelProto


@dataclass(frozen=True)
class QuantResult:
    """What ``quantize`` made.

    Args:
        model: The int8 QDQ model.
        report: Plain values (JSON): what was found, what was done, sizes, choices and what stayed float and why.
        path: Where the model was written, None when no output was asked for.
    """

    model: onnx.ModelProto
    report: dict[str, Any] = field(repr=False)
    path: Path | None = None


def quantize(
    model: ModelLike,
    output: str | os.PathLike[str] | None = None,
    *,
    calibration: Any,
    config: QuantConfig | None = None,
    preprocess: calib.Preprocess | str | os.PathLike[str] | None = None,
    skip_unreadable: bool = False,
    jobs: int = 1,
    executor: Executor | None = None,
    labels: str | os.PathLike[str] | np.ndarray | None = None,
    progress: Progress | None = None,
) -> QuantResult:
    """Quantize a float ONNX model to int8 (QDQ form).

    Args:
        model: Path, serialized bytes, or ModelProto of a float model.
        output: Where to write the result; None keeps it in memory only.
        calibration: Folder of images, ``.npz``, ``.npy``, a dict of float arrays (first axis samples), an iterable of
            feeds, or an ``onnxruntime.quantization.CalibrationDataReader``.
        config: Settings; the defaults when None.
        preprocess: For images: a ``Preprocess``, the name of a preset, or the path of a TOML or JSON file.
        skip_unreadable: Leave out images that cannot be read (each is named in a warning) instead of stopping.
        jobs: Blocks that are reconstructed at the same time, in processes of their own, where the recipe's blocks are
            independent (``ptq4vit``); the result does not depend on it. See ``quantize_many``, too.
        executor: Runs the blocks instead of local processes.
        labels: Class numbers of the calibration samples, for a ``max_drop`` in percent: an array, or a file as for
            ``compare``.
        progress: Called as ``progress(done, total, text)`` during long work.

    Returns:
        The model, a report, and the path.

    Raises:
        HyvitError: The model, the data, a setting or the output cannot be used; one line says which and what to do.
    """
    config = config or QuantConfig()
    with _block_workers(find_recipe(config.recipe), jobs, executor) as workers:
        return _quantize(model, output, calibration, config, preprocess, skip_unreadable, labels, workers, progress)


def _block_workers(recipe: Recipe, jobs: int, executor: Executor | None) -> AbstractContextManager[Workers | None]:
    """Who reconstructs independent blocks; nobody where the blocks depend on each other."""
    check_jobs(jobs)
    settings = recipe.reconstruction
    if settings is None or settings.sequential or (jobs == 1 and executor is None):
        return nullcontext()
    return local_processes(jobs) if executor is None else nullcontext(Workers(executor, jobs))


def _quantize(
    model: ModelLike,
    output: str | os.PathLike[str] | None,
    calibration: Any,
    config: QuantConfig,
    preprocess: calib.Preprocess | str | os.PathLike[str] | None,
    skip_unreadable: bool,
    labels: str | os.PathLike[str] | np.ndarray | None,
    workers: Workers | None,
    progress: Progress | None,
) -> QuantResult:
    started = time.perf_counter()
    chosen, config = config.target == AUTO_TARGET, config.replace(target=os.fspath(find_target(config.target)))
    recipe, target = with_weighting(find_recipe(config.recipe), config.weighting), adapted_target(config)
    check_storage(target, config)
    truth = read_labels(labels, config)
    if output is not None:
        check_output(output, model)
    loaded, float_bytes = load_for(model, config, target), model_bytes(model)
    check_node_names(loaded, config.float_nodes)
    check_losses([tensor.name for tensor in loaded.graph.outputs], config.losses)
    source = open_calibration(loaded, calibration, config, preprocess, skip_unreadable)
    request = Request(source, recipe, target, config, truth, workers, chosen)
    if recipe.reconstruction and config.cache:
        remove_old_runs(default_cache_folder())
    prepared = prepare(loaded, config, input_shapes(source))
    fit = fit_model(prepared, request, progress)
    made = convert(model, fit, request, progress)
    report = build_report(request, fit, made, float_bytes)
    path = None
    if output is not None:
        path = Path(output)
        report["size"]["int8_bytes"] = save_proto(made.model, path)
    for cache in fit.caches:
        cache.remove()
    report["seconds"] = round(time.perf_counter() - started, 2)
    return QuantResult(made.model, report, path)


def inspect(model: ModelLike) -> dict[str, Any]:
    """What is in a model: blocks, bridges, norms, activations, attentions, and what was not recognised and why.

    Args:
        model: Path, serialized bytes, or ModelProto; an already quantized one is accepted.

    Returns:
        Plain values (JSON).
    """
    loaded = load_model(model, quantized_ok=True)
    results = run_passes(loaded, CANONICAL)
    shapes = observe(model_to_proto(loaded)).shapes
    structure = find_structure(loaded, shapes)
    return describe(Prepared(loaded, structure, shapes, tuple(results)))
