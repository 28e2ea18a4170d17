"""Several models with the same settings and data, each a task of its own: file in, finished bytes out."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .api import quantize
from .calibration import Preprocess
from .config import QuantConfig
from .errors import CalibrationError, ConfigError, HyvitError, OutputError
from .graph.write import write_bytes
from .processor import find_target
from .recipes import RECIPES, Recipe, find_recipe, with_weighting
from .request import check_output
from .runtime import Progress
from .tasks import Lost, Workers, check_jobs, local_processes, run_tasks, threads_each
from .worker_log import logged

PathLike = str | os.PathLike[str]
LEAST_MEMORY = 1 << 20


@dataclass(frozen=True)
class ModelResult:
    """What became of one of several models.

    Args:
        model: Path of the float model.
        path: Where the int8 model was written, None when it failed.
        report: Plain values as in ``QuantResult``; empty when it failed.
        error: One line that says what was wrong, None when it did not fail.
        internal: Whether the error is a bug of this package.
    """

    model: Path
    path: Path | None = None
    report: dict[str, Any] = field(default_factory=dict, repr=False)
    error: str | None = None
    internal: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the report with ``model`` and ``output``, or ``model`` and ``error``."""
        if self.error is not None:
            return {"model": str(self.model), "error": self.error}
        return {"model": str(self.model), **self.report, "output": str(self.path)}


@dataclass(frozen=True)
class ModelTask:
    """All that decides the bytes of a result; it travels to the worker.

    Args:
        model: Path of the float model.
        calibration: A path, an array, a dict of arrays or a list of feeds.
        config: Settings.
        recipe: The recipe that they name, which a worker may not know.
        preprocess: See ``quantize``.
        skip_unreadable: See ``quantize``.
        labels: See ``quantize``.
        level: From which level on what is logged comes back.
    """

    model: Path
    calibration: Any = field(repr=False)
    config: QuantConfig
    recipe: Recipe
    preprocess: Preprocess | PathLike | None = None
    skip_unreadable: bool = False
    labels: PathLike | np.ndarray | None = field(default=None, repr=False)
    level: int = logging.WARNING


@dataclass(frozen=True)
class _Finished:
    """What a worker gives back: the bytes of the model, or an error; and what was logged."""

    data: bytes = field(default=b"", repr=False)
    report: dict[str, Any] = field(default_factory=dict, repr=False)
    error: str | None = None
    internal: bool = False
    logged: tuple[tuple[str, int, str], ...] = ()


def quantize_many(
    models: Sequence[PathLike],
    folder: PathLike,
    *,
    calibration: Any,
    config: QuantConfig | None = None,
    preprocess: Preprocess | PathLike | None = None,
    skip_unreadable: bool = False,
    labels: PathLike | np.ndarray | None = None,
    jobs: int = 1,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> list[ModelResult]:
    """Quantize several models with the same settings and data; one that fails does not stop the others.

    The files do not depend on ``jobs`` or ``executor``, unless ``max_memory`` is so small that it decides how many
    samples are used. A script that uses processes must call this below ``if __name__ == "__main__":``.

    Args:
        models: Paths of float models, each with a file name of its own.
        folder: Where each result is written, under the name of its model; made when it is missing.
        calibration: As for ``quantize``, except what can be read only once.
        config: Settings; ``threads`` and ``max_memory`` are divided by ``jobs``.
        preprocess: As for ``quantize``.
        skip_unreadable: As for ``quantize``.
        labels: As for ``quantize``.
        jobs: Models at the same time on this machine, each in a process of its own; 1 stays in this process.
        executor: Runs the models instead of local processes: any ``concurrent.futures.Executor``, such as that of a
            dask ``Client``. Its workers must see the same paths.
        progress: Called as ``progress(done, total, text)``.

    Returns:
        What became of each model, in the order given.

    Raises:
        HyvitError: A setting, the kind of data, the names of the models or the folder cannot be used.
    """
    paths, asked = [Path(model) for model in models], config or QuantConfig()
    config = asked.replace(target=os.fspath(find_target(asked.target)))  # workers may have other processors
    check_jobs(jobs)
    _check_data(calibration)
    recipe = find_recipe(config.recipe)
    with_weighting(recipe, config.weighting)  # refused once, not for every model
    _check_paths(paths, Path(folder))
    here = executor is None and (jobs == 1 or len(paths) == 1)
    level = logging.getLogger(__name__).getEffectiveLevel()
    each = config if here else _share(config, jobs)
    tasks = [ModelTask(path, calibration, each, recipe, preprocess, skip_unreadable, labels, level) for path in paths]
    found: dict[Path, ModelResult] = {}
    if here:
        found = {task.model: _alone(task, Path(folder), jobs, progress, len(paths) > 1) for task in tasks}
        return [_with_chosen_target(found[path], asked, config) for path in paths]
    chosen = nullcontext(Workers(executor, jobs)) if executor else local_processes(min(jobs, len(paths)))
    with chosen as workers:
        for task, finished in run_tasks(_in_worker, tasks, workers):
            found[task.model] = _written(task, finished, Path(folder))
            if progress is not None:
                progress(len(found), len(paths), "models")
    return [_with_chosen_target(found[path], asked, config) for path in paths]


def _with_chosen_target(result: ModelResult, asked: QuantConfig, config: QuantConfig) -> ModelResult:
    """``result`` with what its report says of the target, which was found before the models were handed out."""
    if not result.report:
        return result
    return replace(result, report={**result.report, "chosen_target": asked.target != config.target})


def _share(config: QuantConfig, jobs: int) -> QuantConfig:
    """Settings of one of ``jobs`` models that share the threads and the memory."""
    memory = config.max_memory and max(LEAST_MEMORY, config.max_memory // jobs)
    return config.replace(threads=threads_each(config.threads, jobs), max_memory=memory)


def _check_data(calibration: Any) -> None:
    if not isinstance(calibration, (str, os.PathLike, np.ndarray, dict, list, tuple)):
        raise CalibrationError(
            f"calibration data: {type(calibration).__name__} may be readable only once; for several models give a "
            "folder, .npz, .npy, an array, a dict of arrays or a list of feeds"
        )


def _check_paths(paths: Sequence[Path], folder: Path) -> None:
    """Refuse names that clash, and outputs that cannot be written; makes the folder."""
    if not paths:
        raise ConfigError("no model was given; expected the path of at least one")
    first: dict[str, Path] = {}
    for path in paths:
        if path.name in first:
            raise OutputError(f"{path}: has the name of {first[path.name]}; give each model a file name of its own")
        first[path.name] = path
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        what = "is a file, expected a folder" if folder.is_file() else f"cannot be made ({error.strerror or error})"
        raise OutputError(f"{folder}: {what}") from error
    for path in paths:
        check_output(folder / path.name, path)


def quantize_task(task: ModelTask, jobs: int = 1, progress: Progress | None = None) -> _Finished:
    """Quantize one model; what goes wrong is a value."""
    RECIPES[task.recipe.name] = task.recipe  # a worker may know another one by this name from an earlier run
    try:
        result = quantize(
            task.model,
            calibration=task.calibration,
            config=task.config,
            preprocess=task.preprocess,
            skip_unreadable=task.skip_unreadable,
            labels=task.labels,
            jobs=jobs,
            progress=progress,
        )
        return _Finished(result.model.SerializeToString(deterministic=True), result.report)
    except HyvitError as error:
        return _Finished(error=str(error))
    except MemoryError:
        return _Finished(error=f"{task.model}: out of memory; give a smaller max_memory or fewer jobs")
    except OSError as error:
        return _Finished(error=f"{error.filename or task.model}: {error.strerror or error}")
    except Exception as error:
        return _Finished(error=f"{task.model}: internal error ({type(error).__name__}: {error})", internal=True)


def _in_worker(task: ModelTask) -> _Finished:
    """As ``quantize_task`` in a process that shows nothing: what it logs comes back."""
    with logged(task.level) as records:
        finished = quantize_task(task)
    return replace(finished, logged=tuple(records))


def _alone(task: ModelTask, folder: Path, jobs: int, progress: Progress | None, named: bool) -> ModelResult:
    """One model in this process."""

    def update(done: int, total: int, text: str) -> None:
        if progress is not None:
            progress(done, total, f"{task.model.name}: {text}" if named else text)

    return _written(task, quantize_task(task, jobs, update), folder)


def _written(task: ModelTask, finished: _Finished | Lost, folder: Path) -> ModelResult:
    """Write what a worker gave back; no worker writes, so that one that is killed leaves nothing."""
    if isinstance(finished, Lost):
        what = f"its process was ended twice ({finished.reason}); look at memory, and use fewer jobs"
        return ModelResult(task.model, error=f"{task.model}: {what}")
    for name, level, message in finished.logged:
        logging.getLogger(name).log(level, "%s: %s", task.model.name, message)
    if finished.error is not None:
        named = finished.error if str(task.model) in finished.error else f"{task.model}: {finished.error}"
        return ModelResult(task.model, error=named, internal=finished.internal)
    path = folder / task.model.name
    try:
        write_bytes(path, finished.data)
    except OutputError as error:
        return ModelResult(task.model, error=str(error))
    return ModelResult(task.model, path, finished.report)


__all__ = ["ModelResult", "ModelTask", "quantize_many", "quantize_task"]
