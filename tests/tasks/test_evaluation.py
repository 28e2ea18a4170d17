"""A comparison in parts: the same numbers whoever counts them, and errors that name what is wrong."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
from onnx_hyvit.calibration import inputs_of, open_source
from onnx_hyvit.cli import app
from onnx_hyvit.comparison import compare
from onnx_hyvit.evidence import Disagreements, compare_for_report
from onnx_hyvit.scores import ErrorMeter, Scores

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
    tiny_model: Path, int8_model: Path, kinds: dict[str, Any], labels: np.ndarray, kind: str
) -> None:
    def found(**options: Any) -> dict[str, Any]:
        data = kinds[kind]() if kind == "read once" else kinds[kind]
        return numbers(compare(tiny_model, int8_model, data, labels=labels, samples=SAMPLES, runs=1, **options))

    serial = found()
    assert serial["samples"] == SAMPLES and 0 < serial["top1_agreement"] < 1
    with ThreadPoolExecutor(2) as executor:
        assert found(executor=executor) == serial
    if kind != "read once":
        assert found(jobs=2) == serial


def test_all_parts_count(tiny_model: Path, int8_model: Path, kinds: dict[str, Any], labels: np.ndarray, monkeypatch):
    def found() -> dict[str, Any]:
        return numbers(compare(tiny_model, int8_model, kinds["arrays"], labels=labels, runs=1))

    parts = found()
    monkeypatch.setattr(evaluation, "PART", 1000)
    whole = found()
    for name, output in parts.pop("outputs").items():
        assert output == pytest.approx(whole["outputs"][name], rel=1e-9)
    assert parts == {key: value for key, value in whole.items() if key != "outputs"}


@pytest.mark.parametrize("jobs", [1, 2])
def test_unreadable_images_are_named_once(
    tiny_model: Path, int8_model: Path, images: Path, caplog: pytest.LogCaptureFixture, jobs: int
) -> None:
    caplog.set_level(logging.WARNING, "onnx_hyvit")
    found = compare(tiny_model, int8_model, images, skip_unreadable=True, runs=1, jobs=jobs)
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
    assert jobs > 1 or max(done) == 12  # the end of the part


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
    protos = onnx.load(tiny_model), onnx.load(int8_model)
    with ThreadPoolExecutor(2) as executor:
        found = compare(*protos, kinds["arrays"], runs=1, executor=executor)
    assert found["outputs"] == compare(tiny_model, int8_model, kinds["arrays"], runs=1)["outputs"]


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


class TestParts:
    """``Source.part`` on each kind of data."""

    @pytest.fixture(params=["file", "arrays", "feeds"])
    def source(self, request: pytest.FixtureRequest, kinds: dict[str, Any], tiny_model: Path):
        return open_source(kinds[request.param], inputs_of(onnx.load(tiny_model)), samples=9, seed=3, batch_size=2)

    @pytest.mark.parametrize("travel", [lambda part: part, lambda part: pickle.loads(pickle.dumps(part))])
    def test_parts_are_the_whole(self, source, travel: Callable) -> None:
        whole = list(source)
        size = 2 * source.batch_size
        found = [batch for start in range(0, 9, size) for batch in travel(source.part(start, start + size))]
        assert [ids for ids, _ in found] == [ids for ids, _ in whole]
        for (_, a), (_, b) in zip(found, whole, strict=True):
            for name, values in a.items():
                np.testing.assert_array_equal(values, b[name])

    @pytest.mark.parametrize("kind", ["arrays", "feeds"])
    def test_only_the_samples_of_a_part_travel(self, kinds: dict[str, Any], kind: str, tiny_model: Path) -> None:
        source = open_source(kinds[kind], inputs_of(onnx.load(tiny_model)))
        assert 11 * len(pickle.dumps(source.part(4, 6))) < len(pickle.dumps(source))

    def test_a_part_holds_no_copy(self, kinds: dict[str, Any], tiny_model: Path) -> None:
        source = open_source(kinds["arrays"], inputs_of(onnx.load(tiny_model)))
        (array,) = source.part(0, 5)._arrays.values()
        assert any(array is other for other in kinds["arrays"].values())


def test_meters_and_scores_of_parts_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 12, 7))
    truth = rng.integers(0, 7, 12)
    meters, scores = [ErrorMeter() for _ in range(3)], [Scores() for _ in range(3)]
    for which, rows in ((0, slice(0, 12)), (1, slice(0, 5)), (2, slice(5, 12))):
        meters[which].update(a[rows], b[rows])
        scores[which].update(a[rows], b[rows], len(a[rows]))
        scores[which].count_right(truth[rows])
    meters[1].merge(meters[2])
    scores[1].merge(scores[2])
    assert meters[1].sqnr_db == pytest.approx(meters[0].sqnr_db) and meters[1].largest == meters[0].largest
    assert scores[1].accuracy() == scores[0].accuracy() and scores[1].agree == scores[0].agree
    order = np.argsort(-a, axis=1)
    wanted = {1: (order[:, 0] == truth).mean(), 5: (order[:, :5] == truth[:, None]).any(1).mean()}
    assert scores[0].accuracy()["float_top1"] == wanted[1] and scores[0].accuracy()["float_top5"] == wanted[5]


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
