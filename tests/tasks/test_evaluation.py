"""A comparison in parts: the same numbers whoever counts them, and errors that name what is wrong."""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from pieces import DeadlySource
from PIL import Image
from typer.testing import CliRunner

import onnx_hyvit
from onnx_hyvit import CalibrationError, ConfigError, QuantConfig, evaluation
from onnx_hyvit.calibration import FirstSamples, inputs_of, open_source
from onnx_hyvit.cli import app
from onnx_hyvit.comparison import compare
from onnx_hyvit.evidence import Disagreements, compare_for_report
from onnx_hyvit.scores import Scores, answers_of

TIMED = ("latency", "fused", "audit")
SAMPLES = 20


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "PART", 6)


@pytest.fixture(scope="module")
def int8_model(tiny_model: Path, tiny_data: Path, rules_target: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "int8.onnx"
    config = QuantConfig(recipe="minmax", bits="w4a4", verify=False, target=rules_target)
    onnx_hyvit.quantize(tiny_model, path, calibration=tiny_data, config=config)
    return path


@pytest.fixture(scope="module")
def images(tiny_input: tuple[str, tuple[int, ...]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, one of which cannot be read."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(5)
    for number in range(SAMPLES):
        Image.fromarray(rng.integers(0, 256, (70, 80, 3), np.uint8)).save(folder / f"{number:02}.png")
    (folder / "08.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.random.default_rng(6).integers(0, 8, 24)


class Counting(ThreadPoolExecutor):
    """Counts what it is asked to do."""

    tasks = 0

    def submit(self, *arguments: Any, **options: Any) -> Future[Any]:
        self.tasks += 1
        return super().submit(*arguments, **options)


def numbers(report: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on clocks."""
    return {key: value for key, value in report.items() if key not in TIMED}


@pytest.fixture(scope="module")
def kinds(tiny_model: Path, tiny_data: Path) -> dict[str, Any]:
    """The same samples in all the forms that data can have."""
    with np.load(tiny_data) as file:
        arrays = dict(file)
    (name,) = arrays
    feeds = [{name: row[None]} for row in arrays[name]]
    return {"file": tiny_data, "arrays": arrays, "feeds": feeds, "read once": lambda: iter(feeds)}


@pytest.mark.parametrize("kind", ["file", "arrays", "feeds", "read once"])
def test_numbers_do_not_depend_on_who_counts(
    tiny_model: Path, int8_model: Path, kinds: dict[str, Any], labels: np.ndarray, kind: str, monkeypatch
) -> None:
    def found(**options: Any) -> dict[str, Any]:
        data = kinds[kind]() if kind == "read once" else kinds[kind]
        return numbers(compare(tiny_model, int8_model, data, labels=labels, samples=SAMPLES, runs=1, **options))

    serial = found()
    assert serial["samples"] == SAMPLES and 0 < serial["top1_agreement"] < 1
    with Counting(2) as executor:
        assert found(executor=executor) == serial
        assert executor.tasks == 4
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "run_batches", None)  # here; processes have their own
        assert found(jobs=2) == serial


def test_a_relative_folder_is_found_from_another_one(
    tiny_model: Path, int8_model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images.parent)
    common: dict[str, Any] = {"skip_unreadable": True, "runs": 1}
    serial = compare(tiny_model, int8_model, images.name, **common)
    with ProcessPoolExecutor(1, get_context("spawn"), os.chdir, (tmp_path,)) as executor:
        assert numbers(compare(tiny_model, int8_model, images.name, executor=executor, **common)) == numbers(serial)


def test_a_worker_that_does_not_see_the_images_is_told(
    tiny_model: Path, int8_model: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere(ThreadPoolExecutor):
        def submit(self, function: Any, task: Any) -> Future[Any]:  # type: ignore[override]
            task.source.folder = Path("/not/here")
            task.source._paths = [Path("/not/here") / path.name for path in task.source._paths]
            return super().submit(function, task)

    with Elsewhere(1) as executor, pytest.raises(CalibrationError, match=r"not.here.*workers must see the same paths"):
        compare(tiny_model, int8_model, images, skip_unreadable=True, executor=executor, runs=1)


@pytest.mark.parametrize("jobs", [1, 2])
def test_nothing_readable_is_an_error(tiny_model: Path, int8_model: Path, tmp_path: Path, jobs: int) -> None:
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(CalibrationError, match=r"no (image|sample) could be read"):
        compare(tiny_model, int8_model, tmp_path, skip_unreadable=True, jobs=jobs, runs=1)


def test_what_the_data_warn_of_is_told_whoever_counts(
    tiny_model: Path, int8_model: Path, kinds: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    arrays = {name: np.abs(60 * array).clip(0, 255) for name, array in kinds["arrays"].items()}
    with ThreadPoolExecutor(2) as executor:
        for options in ({}, {"executor": executor}, {"jobs": 2}):
            caplog.clear()
            compare(tiny_model, int8_model, arrays, runs=1, **options)
            assert sum("255" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("jobs", [1, 2])
def test_unreadable_images_are_named_once(
    tiny_model: Path, int8_model: Path, images: Path, caplog: pytest.LogCaptureFixture, jobs: int
) -> None:
    caplog.set_level(logging.WARNING, "onnx_hyvit")
    told: list[tuple[int, int]] = []
    found = compare(
        tiny_model, int8_model, images, skip_unreadable=True, runs=1, jobs=jobs,
        progress=lambda done, total, text: told.append((done, total)),
    )  # fmt: skip
    assert told[-1][0] == told[-1][1]
    assert found["samples"] == SAMPLES - 1
    assert sum("08.png" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_unreadable_image_stops_it(tiny_model: Path, int8_model: Path, images: Path, jobs: int) -> None:
    with pytest.raises(CalibrationError, match=r"08\.png.*skip_unreadable"):
        compare(tiny_model, int8_model, images, runs=1, jobs=jobs)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_missing_label_is_named_before_all_is_counted(
    tiny_model: Path, int8_model: Path, kinds: dict[str, Any], jobs: int
) -> None:
    done: list[int] = []
    with pytest.raises(CalibrationError, match="none for sample 7"):
        compare(
            tiny_model, int8_model, kinds["arrays"], labels=np.zeros(7, int), runs=1, jobs=jobs,
            progress=lambda count, total, text: done.append(count),
        )  # fmt: skip
    assert max(done, default=0) <= 12


def test_a_page_does_not_depend_on_who_counts(tiny_model: Path, int8_model: Path, images: Path, tmp_path: Path) -> None:
    rows = [f"{number:02}.png,{number % 5}" for number in range(SAMPLES)]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    options: dict[str, Any] = {"labels": tmp_path / "labels.csv", "skip_unreadable": True, "runs": 1}
    serial, parallel = (compare_for_report(tiny_model, int8_model, images, jobs=jobs, **options) for jobs in (1, 2))
    assert numbers(serial) == numbers(parallel)
    evidence = serial["evidence"]
    assert 0 < len(evidence["pictures"]) <= evidence["disagreements"]
    for entry in evidence["pictures"]:
        assert entry["label"] == int(Path(entry["sample"]).stem) % 5
    json.dumps(serial)


def test_parts_of_a_worker_that_is_killed_are_counted_again(
    tiny_model: Path, int8_model: Path, kinds: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "onnx_hyvit.tasks")
    proto = onnx.load(tiny_model)
    source = DeadlySource(kinds["arrays"], inputs_of(proto), range(SAMPLES), 1)
    source.marker = tmp_path / "killed"
    found = numbers(compare(tiny_model, int8_model, source, runs=1, jobs=2))
    assert source.marker.exists() and "a worker was lost" in caplog.text
    plain = {name: array[:SAMPLES] for name, array in kinds["arrays"].items()}
    assert found == numbers(compare(tiny_model, int8_model, plain, runs=1))


def test_models_in_memory_travel(tiny_model: Path, int8_model: Path, kinds: dict[str, Any]) -> None:
    wanted = compare(tiny_model, int8_model, kinds["arrays"], runs=1)["outputs"]
    for models in (
        (onnx.load(tiny_model), onnx.load(int8_model)),
        (tiny_model.read_bytes(), int8_model.read_bytes()),
    ):
        with Counting(2) as executor:
            assert compare(*models, kinds["arrays"], runs=1, executor=executor)["outputs"] == wanted
            assert executor.tasks == 4


@pytest.mark.parametrize("jobs", [0, True, 257])
def test_a_number_of_jobs_that_is_none_is_refused(tiny_model: Path, int8_model: Path, tiny_data: Path, jobs) -> None:
    with pytest.raises(ConfigError, match="jobs must be"):
        compare(tiny_model, int8_model, tiny_data, jobs=jobs)


@pytest.mark.dask
def test_a_cluster_counts_the_same(tiny_model: Path, int8_model: Path, kinds: dict[str, Any], cluster: str) -> None:
    common = ["compare", str(tiny_model), str(int8_model), "--data", str(kinds["file"]), "--json", "--runs", "1"]
    results = [CliRunner().invoke(app, [*common, *more]) for more in ([], ["--dask", cluster])]
    serial, parallel = (numbers(json.loads(result.stdout)) for result in results)
    assert serial == parallel


@pytest.mark.parametrize("kind", ["file", "compressed", "arrays", "feeds", "read once", "images", "first"])
@pytest.mark.parametrize("travel", [lambda part: part, lambda part: pickle.loads(pickle.dumps(part))])
def test_parts_are_the_whole(
    kinds: dict[str, Any], images: Path, tiny_model: Path, tmp_path: Path, kind: str, travel: Callable
) -> None:
    np.savez_compressed(tmp_path / "x.npz", **kinds["arrays"])
    others = {"compressed": tmp_path / "x.npz", "images": images, "first": kinds["arrays"]}
    data = kinds["read once"]() if kind == "read once" else {**kinds, **others}[kind]
    inputs = inputs_of(onnx.load(tiny_model))
    source = open_source(data, inputs, samples=9, seed=3, batch_size=2, skip_unreadable=True)
    source = FirstSamples(source, 6) if kind == "first" else source
    size = 2 * source.batch_size
    parts = list(source.parts(size))
    assert len(parts) == -(-len(source) // size) > 2
    whole = list(source)
    found = [batch for part in parts for batch in travel(part)]
    assert [name for ids, _ in found for name in ids] == [name for ids, _ in whole for name in ids]
    for (name,) in {tuple(feeds) for _, feeds in whole}:
        rows = [np.concatenate([feeds[name] for _, feeds in batches]) for batches in (found, whole)]
        np.testing.assert_array_equal(*rows)


def test_only_the_samples_of_a_part_travel(kinds: dict[str, Any], tiny_model: Path) -> None:
    source = open_source(kinds["arrays"], inputs_of(onnx.load(tiny_model)))
    sizes = [len(pickle.dumps(part)) for part in source.parts(2)]
    assert len(sizes) == 12 and 11 * max(sizes) < sum(array.nbytes for array in kinds["arrays"].values())


def test_right_answers_of_outputs_of_any_width() -> None:
    rng, scores = np.random.default_rng(0), Scores()
    right = {1: 0, 5: 0}
    for width in (1, 2, 3):
        a, b = rng.standard_normal((2, 4, width, 3))
        truth = rng.integers(0, 3, 4)
        scores.add(answers_of(a, b, 4), truth)
        order = np.argsort(-a.reshape(4, -1), axis=1)
        for top in right:
            right[top] += (order[:, :top] == truth[:, None]).any(1).sum()
    accuracy = scores.accuracy()
    assert accuracy["float_top1"] == right[1] / 12 and "float_top5" not in accuracy


def test_top_five_of_many_classes() -> None:
    rng, scores = np.random.default_rng(0), Scores()
    a, b = rng.standard_normal((2, 12, 7))
    truth = rng.integers(0, 7, 12)
    scores.add(answers_of(a, b, 12), truth)
    order = np.argsort(-a, axis=1)
    found = scores.accuracy()
    assert found["float_top1"] == (order[:, 0] == truth).mean()
    assert found["float_top5"] == (order[:, :5] == truth[:, None]).any(1).mean()
    assert scores.agree == (a.argmax(1) == b.argmax(1)).sum() and scores.positions == 12


def test_the_surest_disagreements_are_kept_in_parts_too() -> None:
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((2, 60, 5)).astype(np.float32)
    image = rng.standard_normal((60, 3, 8, 8)).astype(np.float32)

    def seen(*bounds: tuple[int, int]) -> Disagreements:
        parts = []
        for start, stop in bounds:
            part, rows = Disagreements(), slice(start, stop)
            part.update(list(range(start, stop)), {"x": image[rows]}, {"y": scores[0][rows]}, {"y": scores[1][rows]})
            parts.append(part)
        for part in parts[1:]:
            parts[0].merge(part)
        return parts[0]

    whole, parts = seen((0, 60)), seen((0, 20), (20, 25), (25, 60))
    assert whole.count == parts.count > 12
    assert sorted(entry[:2] for entry in whole._kept) == sorted(entry[:2] for entry in parts._kept)
