"""Kill, interrupt and starve ``quantize``: nothing partial is ever seen, and the next run gives the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import onnx_hyvit
from onnx_hyvit import CalibrationError, ConfigError, QuantConfig
from onnx_hyvit.config import parse_bytes
from onnx_hyvit.graph.write import write_bytes
from onnx_hyvit.runtime import live_bytes, samples_that_fit

TOOLS = Path(__file__).parent.parent / "tools"
sys.path.insert(0, str(TOOLS))

from measure_memory import wide_model  # noqa: E402


def faults(tmp_path: Path, *options: str) -> dict:
    command = [sys.executable, str(TOOLS / "inject_faults.py"), *options, "--json", str(tmp_path / "faults.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((tmp_path / "faults.json").read_text())


def assert_clean(report: dict, kills: int) -> None:
    for kind in ("killed", "interrupted"):
        assert report[kind]["partial"] == report[kind]["rerun_differs"] == 0
    assert report["killed"]["runs"] == kills
    for kind in ("disk_full", "read_only", "reader_raises"):
        assert report[kind]["clean"], report[kind]


@pytest.mark.slow
def test_faults_leave_nothing_and_memory_follows_the_limit(tmp_path: Path) -> None:
    report = faults(tmp_path, "--kills", "10", "--interrupts", "3")
    assert_clean(report, 10)
    growth = [row["peak_mb"] - row["before_mb"] for row in report["max_memory"]]
    assert growth[0] < 1.5 * 64 and growth[1] < 1.5 * 256 and growth[0] < growth[1] / 2 < growth[2] / 2


def test_some_faults_leave_nothing(tmp_path: Path) -> None:
    assert_clean(faults(tmp_path, "--kills", "1", "--interrupts", "1", "--skip-memory"), 1)


@pytest.mark.parametrize(
    ("text", "count"), [("512M", 512 << 20), ("2G", 2 << 30), ("1.5GiB", 3 << 29), (1 << 20, 1 << 20)]
)
def test_sizes(text: object, count: int) -> None:
    assert parse_bytes(text) == count
    assert QuantConfig(max_memory=text).max_memory == count  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "2X", "-1G", "1000", True, [], "9" * 40])
def test_bad_sizes(text: object) -> None:
    with pytest.raises(ConfigError, match="max_memory"):
        QuantConfig(max_memory=text)  # type: ignore[arg-type]


def test_memory_is_known_from_shapes() -> None:
    model = wide_model()
    made = [name for node in model.graph.node for name in node.output]
    shapes = dict.fromkeys(made, (1, 32, 128, 128)) | {"x": (1, 3, 128, 128)}
    one = 4 * 32 * 128 * 128
    assert live_bytes(model, shapes) == 2 * one, "an activation and the one made of it"
    image = 4 * 3 * 128 * 128
    assert live_bytes(model, shapes, made) == image
    assert samples_that_fit(model, shapes, made, 2 * 10 * (24 * one + image)) == 10
    assert samples_that_fit(model, shapes, made, 1) == 1


def test_the_limit_makes_batches_smaller_and_changes_no_extreme() -> None:
    model = wide_model()
    data = {"x": np.random.default_rng(0).normal(size=(3, 3, 128, 128)).astype(np.float32)}
    config = QuantConfig(recipe="minmax", verify=False, threads=1, batch_size=3)
    free, tight = (
        onnx_hyvit.quantize(model, calibration=data, config=config.replace(max_memory=limit)).model
        for limit in (None, "8M")
    )
    assert free.SerializeToString(deterministic=True) == tight.SerializeToString(deterministic=True)


def test_ctrl_c_right_after_the_file_was_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = os.open

    def interrupted(path: object, *arguments: int, **keywords: object) -> int:
        handle = make(path, *arguments, **keywords)  # type: ignore[arg-type]
        assert str(path).endswith(".part") and len(list(tmp_path.iterdir())) == 1
        os.close(handle)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "int8.onnx", b"codes")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_fails_is_named(tmp_path: Path) -> None:
    def feeds():
        yield {"x": np.zeros((1, 3, 128, 128), np.float32)}
        raise ConnectionError("gone")

    with pytest.raises(CalibrationError, match=r"generator failed at sample 1 \(ConnectionError: gone\)"):
        onnx_hyvit.quantize(wide_model(), tmp_path / "o.onnx", calibration=feeds())
    assert list(tmp_path.iterdir()) == []
