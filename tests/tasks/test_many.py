"""Several models: the same files whoever makes them; neither one failure nor a killed worker stops the others."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import pytest
from pieces import DeadlyFeeds

import onnx_hyvit
from onnx_hyvit import CalibrationError, ConfigError, OutputError, QuantConfig, quantize_many
from onnx_hyvit.config import parse_bytes
from onnx_hyvit.many import ModelResult, ModelTask, _share, quantize_task
from onnx_hyvit.numerics import RangeMethod
from onnx_hyvit.recipes import RECIPES, Recipe
from onnx_hyvit.tasks import Workers
from onnx_hyvit.worker_log import logged

CORPUS = Path(__file__).parent.parent / "corpus"
CONFIG = QuantConfig(recipe="minmax", verify=False, samples=4, batch_size=2, threads=2)
IMAGES = np.random.default_rng(0).normal(size=(4, 3, 64, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("float")
    names = ("mobilenetv2.dynamo-20.onnx", "resnet.dynamo-20.onnx", "repvgg.dynamo-20.onnx")
    return [Path(shutil.copy(CORPUS / name, folder)) for name in names]


@pytest.fixture(scope="module")
def expected(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that ``quantize`` makes of each model, one after the other."""
    folder = tmp_path_factory.mktemp("serial")
    for model in models:
        onnx_hyvit.quantize(model, folder / model.name, calibration=IMAGES, config=CONFIG)
    return {model.name: (folder / model.name).read_bytes() for model in models}


def written(results: list[ModelResult]) -> dict[str, bytes]:
    assert all(result.error is None for result in results), results
    return {result.path.name: result.path.read_bytes() for result in results if result.path is not None}


def test_a_worker_uses_the_recipe_that_comes_with_the_task(models: list[Path], monkeypatch) -> None:
    """A worker of a cluster outlives a run, and may know another recipe by the same name from the run before."""
    mine, older = Recipe("mine", "ranges of least error", RangeMethod("mse")), Recipe("mine", "plain extremes")
    config = CONFIG.replace(recipe="mine")
    monkeypatch.setitem(RECIPES, "mine", mine)
    wanted = onnx_hyvit.quantize(models[0], calibration=IMAGES, config=config).model
    monkeypatch.setitem(RECIPES, "mine", older)
    found = quantize_task(ModelTask(models[0], IMAGES, config, mine))
    assert found.error is None and found.data == wanted.SerializeToString(deterministic=True)
    assert RECIPES["mine"] is mine


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_the_files_are_those_of_quantize_for_any_number_of_jobs(
    models: list[Path], expected: dict[str, bytes], tmp_path: Path, jobs: int
) -> None:
    steps: list[tuple[int, int, str]] = []
    results = quantize_many(
        models,
        tmp_path / "out",
        calibration=IMAGES,
        config=CONFIG,
        jobs=jobs,
        progress=lambda *step: steps.append(step),
    )
    assert [result.model for result in results] == models
    assert written(results) == expected
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(expected)
    if jobs > 1:
        assert steps == [(done, 3, "models") for done in (1, 2, 3)]
    assert json.loads(json.dumps(results[0].to_dict()))["output"] == str(results[0].path)


def deadly(marker: Path) -> DeadlyFeeds:
    feeds = DeadlyFeeds({"input": image[None]} for image in IMAGES)
    feeds.marker = marker
    return feeds


def assert_survives_a_killed_worker(
    models: list[Path], expected: dict[str, bytes], folder: Path, jobs: int, executor: Executor | None
) -> None:
    """A worker is killed in the middle of its data; the files are the same."""
    marker = folder / "killed"
    results = quantize_many(
        models, folder / "out", calibration=deadly(marker), config=CONFIG, jobs=jobs, executor=executor
    )
    assert marker.exists()
    assert written(results) == expected


def test_a_killed_worker_changes_no_file(
    models: list[Path], expected: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "onnx_hyvit.tasks")
    assert_survives_a_killed_worker(models, expected, tmp_path, 2, None)
    assert "a worker was lost (BrokenProcessPool" in caplog.text


@pytest.mark.dask
def test_dask_makes_the_same_files(models: list[Path], expected: dict[str, bytes], tmp_path: Path, cluster) -> None:
    from onnx_hyvit.tasks import dask_executor

    with dask_executor(cluster) as executor:
        results = quantize_many(models, tmp_path, calibration=IMAGES, config=CONFIG, executor=executor)
        assert written(results) == expected


@pytest.mark.dask
def test_the_workers_of_a_cluster_are_counted(cluster) -> None:
    from onnx_hyvit.tasks import dask_executor

    with dask_executor(cluster) as executor:
        assert Workers(executor).at_once == 2


@pytest.mark.dask
def test_a_killed_dask_worker_changes_no_file(
    models: list[Path], expected: dict[str, bytes], tmp_path: Path, cluster
) -> None:
    from onnx_hyvit.tasks import dask_executor

    with dask_executor(cluster) as executor:
        assert_survives_a_killed_worker(models, expected, tmp_path, 1, executor)


@pytest.mark.dask
def test_the_command_line_uses_a_dask_cluster(
    models: list[Path], expected: dict[str, bytes], tmp_path: Path, cluster
) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    common = ["--recipe", "minmax", "--no-verify", "--samples", "4", "--batch-size", "2", "--threads", "2", "--json"]
    common += ["--target", "ort-x86"]
    done = run_cli(*models, "-o", tmp_path / "out", "--calib", tmp_path / "images.npy", *common, "--dask", cluster)
    assert done.returncode == 0, done.stderr
    assert {Path(entry["output"]).name: Path(entry["output"]).read_bytes() for entry in json.loads(done.stdout)} == (
        expected
    )


@pytest.mark.dask
def test_a_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_hyvit import tasks

    monkeypatch.setattr(tasks, "CONNECT_SECONDS", 1)
    with pytest.raises(ConfigError, match=r"no scheduler answers at 'tcp://127.0.0.1:1'"):
        tasks.dask_executor("tcp://127.0.0.1:1").__enter__()


def run_cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onnx_hyvit", "quantize", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
        timeout=600,
    )


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_command_line_lists_all_and_fails_for_one(
    models: list[Path], expected: dict[str, bytes], tmp_path: Path, jobs: int
) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    bad = tmp_path / "bad.onnx"
    bad.write_text("this is not a model")
    common = ["--calib", tmp_path / "images.npy", "--recipe", "minmax", "--no-verify", "--samples", 4]
    common += ["--batch-size", 2, "--threads", 2, "--jobs", jobs, "--target", "ort-x86"]
    done = run_cli(bad, *models[:2], "-o", tmp_path / "out", *common, "--json")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "bad.onnx" in done.stderr
    listed = json.loads(done.stdout)
    assert [Path(entry["model"]).name for entry in listed] == ["bad.onnx", models[0].name, models[1].name]
    assert "not an ONNX model" in listed[0]["error"] and "output" not in listed[0]
    for entry in listed[1:]:
        assert Path(entry["output"]).read_bytes() == expected[Path(entry["model"]).name]
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_the_command_line_shows_a_line_for_each_model_in_a_folder(models: list[Path], tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    (tmp_path / "out").mkdir()
    common = ["--calib", tmp_path / "images.npy", "--recipe", "minmax", "--no-verify", "-o", tmp_path / "out"]
    done = run_cli(models[0], *common)
    assert done.returncode == 0 and "1 of 1 models quantized" in done.stdout, done.stderr
    assert (tmp_path / "out" / models[0].name).is_file()
    done = run_cli(models[0], *common, "--report", tmp_path / "page.html")
    assert done.returncode == 2 and "is about one model" in done.stderr
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("finished", [0, 1])
def test_ctrl_c_leaves_no_file_and_no_process(models: list[Path], tmp_path: Path, finished: int) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "onnx_hyvit", "quantize", *models, "-o", out, "--calib", tmp_path / "images.npy"]
    process = subprocess.Popen(
        [*command, "--jobs", "2", "--no-cache", "-q"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(out.is_dir)  # made just before the workers start
    wait_for(lambda: len(list(out.glob("*.onnx"))) >= finished)  # of three, two at a time: one is hardly begun then
    os.killpg(process.pid, signal.SIGINT)  # a terminal tells the whole group
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert stderr.startswith("error: interrupted") and stderr.count("\n") == 1, stderr
    assert all(path.suffix == ".onnx" for path in out.iterdir())  # models that were finished before, whole
    wait_for(lambda: not group_exists(process.pid))


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


class TestBadInput:
    """Refused before any work, and nothing is written."""

    def test_two_models_of_one_name(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match=r"b/x\.onnx: has the name of a/x\.onnx"):
            quantize_many(["a/x.onnx", "b/x.onnx"], tmp_path / "out", calibration=IMAGES)
        assert list(tmp_path.iterdir()) == []

    def test_the_folder_of_the_models(self, models: list[Path]) -> None:
        before = [model.read_bytes() for model in models]
        with pytest.raises(OutputError, match="is the input model"):
            quantize_many(models, models[0].parent, calibration=IMAGES)
        assert [model.read_bytes() for model in models] == before

    def test_a_file_instead_of_a_folder(self, models: list[Path], tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="is a file, expected a folder"):
            quantize_many(models, tmp_path / "file", calibration=IMAGES)

    def test_data_that_can_be_read_once(self, models: list[Path], tmp_path: Path) -> None:
        with pytest.raises(CalibrationError, match="generator may be readable only once"):
            quantize_many(models, tmp_path, calibration=({"input": image} for image in IMAGES))

    def test_no_model_and_no_jobs(self, models: list[Path], tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no model was given"):
            quantize_many([], tmp_path, calibration=IMAGES)
        with pytest.raises(ConfigError, match="reconstructs no blocks"):
            quantize_many(models, tmp_path, calibration=IMAGES, config=CONFIG.replace(weighting="mse"))
        with pytest.raises(ConfigError, match="jobs must be"):
            quantize_many(models, tmp_path, calibration=IMAGES, jobs=0)


def test_threads_and_memory_are_divided_among_the_jobs() -> None:
    shared = _share(QuantConfig(threads=8, max_memory="512M"), 4)  # type: ignore[arg-type]
    assert (shared.threads, shared.max_memory) == (2, parse_bytes("128M"))
    assert _share(QuantConfig(threads=8), 4).max_memory is None


def test_the_logger_is_as_before_after_threads_that_overlap() -> None:
    """As in a thread pool: the one that began first ends first."""
    logger = logging.getLogger("onnx_hyvit")
    inner = logging.getLogger("onnx_hyvit.tasks")
    before = logger.level, logger.propagate, list(logger.handlers), inner.isEnabledFor(logging.WARNING)
    begun, ended = threading.Event(), threading.Event()
    found: list[list[tuple[str, int, str]]] = []

    def first() -> None:
        with logged(logging.ERROR) as records:
            begun.wait(60)
            inner.warning("too little")
            inner.error("of the first")
        ended.set()
        found.append(records)

    thread = threading.Thread(target=first)
    try:
        thread.start()
        wait_for(lambda: not logger.propagate)
        with logged(logging.WARNING) as records:
            begun.set()
            assert ended.wait(60)
            assert not logger.propagate, "still silent for the second"
            inner.warning("of the second")
        thread.join()
        after = logger.level, logger.propagate, list(logger.handlers), inner.isEnabledFor(logging.WARNING)
        assert after == before
    finally:
        logger.setLevel(before[0])
        logger.propagate = before[1]
    assert records == [("onnx_hyvit.tasks", logging.WARNING, "of the second")]
    assert found == [[("onnx_hyvit.tasks", logging.ERROR, "of the first")]]
