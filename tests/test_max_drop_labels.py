"""A limit on the loss of top-1 on labelled calibration samples: kept, counted, told with its coarseness."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from qdq_graphs import parse
from test_cli import run_cli
from test_mixed_precision import DATA, GRAPH, weights

import onnx_hyvit
from onnx_hyvit.config import QuantConfig
from onnx_hyvit.display_quantized import _limit
from onnx_hyvit.errors import CalibrationError, ConfigError
from onnx_hyvit.graph import model_to_proto
from onnx_hyvit.runtime import make_session

MORE = np.random.default_rng(5).standard_normal((40, 16, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def proto():
    return model_to_proto(parse(GRAPH, **weights()))


def answers(model, data=MORE) -> np.ndarray:
    return make_session(model).run({"x": data})["y"].argmax(1)


@pytest.fixture(scope="module")
def labels(proto) -> np.ndarray:
    """What the float model answers, but for two samples."""
    found = answers(proto)
    found[:2] = (found[:2] + 1) % 8
    return found


def quantized(proto, labels, data=MORE, **settings):
    wanted = {"samples": None, "verify": False, "cache": False, "threads": 1, "recipe": "minmax", **settings}
    config = QuantConfig(**wanted)
    return onnx_hyvit.quantize(proto, calibration={"x": data}, config=config, labels=labels)


def loss(proto, model, labels) -> tuple[int, int]:
    """Samples lost and won, counted here."""
    before, after = answers(proto) == labels, answers(model) == labels
    return int((before & ~after).sum()), int((~before & after).sum())


@pytest.mark.parametrize("asked", ["5%", "0 %"])
def test_the_limit_is_kept_and_what_is_told_is_true(proto, labels, asked):
    free = quantized(proto, None, bits="w2a2")
    lost, won = loss(proto, free.model, labels)
    assert (lost - won) / 40 > 0.05, "the case is hard enough"
    held = quantized(proto, labels, bits="w2a2", max_drop=asked)
    told = held.report["precision"]
    lost, won = loss(proto, held.model, labels)
    assert told["reached"] == (lost - won) / 40 <= float(asked.strip("% ")) / 100
    top1 = told["top1"]
    assert (top1["lost"], top1["won"], top1["samples"]) == (lost, won, 40)
    assert top1["float"] == 38 / 40 and top1["int8"] == pytest.approx(38 / 40 - told["reached"])
    assert top1["one_sample"] == 1 / 40 and top1["standard_error"] == pytest.approx(math.sqrt(lost + won) / 40)
    assert held.report["plan"]["int8_nodes"] < free.report["plan"]["int8_nodes"]
    assert "one sample is 2.5%" in _limit(told) and "bold red" not in _limit(told)


def test_a_limit_that_holds_already_changes_nothing(proto, labels):
    plain, held = quantized(proto, None), quantized(proto, labels, max_drop="100%")
    assert plain.model.SerializeToString() == held.model.SerializeToString()
    assert held.report["precision"]["max_drop"] == "100%"


def test_a_percentage_needs_labels_and_labels_a_percentage(proto, labels):
    with pytest.raises(ConfigError, match=r"max_drop 0.5% is a loss of top-1 and needs labels"):
        quantized(proto, None, max_drop="0.5%")
    for value in (None, 0.01, "0.01"):
        with pytest.raises(ConfigError, match="labels need a max_drop in percent"):
            quantized(proto, labels, max_drop=value)


def test_a_sample_without_a_label_is_named(proto, labels):
    with pytest.raises(CalibrationError, match="there is none for sample 39"):
        quantized(proto, labels[:39], max_drop="1%")


def test_outputs_without_classes_are_refused():
    text = "g (float[1,16] x) => (float[1,1] y) { y = Gemm(x, w) }"
    model = model_to_proto(parse(text, w=weights()["w4"][:, :1].copy()))
    with pytest.raises(CalibrationError, match="no class scores"):
        quantized(model, np.zeros(16, np.int64), DATA[:, :, 0, 0], max_drop="1%")


@pytest.mark.parametrize(("given", "kept", "share"), [("0.50 %", "0.5%", 0.005), ("0.01", 0.01, None), (2, 2.0, None)])
def test_numbers_stay_divergences(given, kept, share):
    config = QuantConfig(max_drop=given)
    assert config.max_drop == kept and config.max_loss == share


@pytest.mark.parametrize("value", ["-1%", "101%", "nan%", "%", "1%%", "half"])
def test_percentages_that_make_no_sense_are_refused(value):
    with pytest.raises(ConfigError, match="max_drop"):
        QuantConfig(max_drop=value)


def test_the_command_line_is_the_same_function(proto, labels, tmp_path: Path):
    onnx.save(proto, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", MORE)
    (tmp_path / "labels.txt").write_text("\n".join(map(str, labels)))
    common = ("quantize", tmp_path / "m.onnx", "-o", tmp_path / "q.onnx", "--calib", tmp_path / "x.npy")
    options = (
        "--max-drop",
        "5%",
        "--bits",
        "w2a2",
        "--recipe",
        "minmax",
        "--no-verify",
        "--no-cache",
        "--threads",
        "1",
    )
    done = run_cli(*common, *options, "--labels", tmp_path / "labels.txt", "--json")
    assert done.returncode == 0, done.stderr
    wanted = quantized(proto, labels, bits="w2a2", max_drop="5%").report["precision"]
    assert json.loads(done.stdout)["precision"]["top1"] == wanted["top1"]
    refused = run_cli(*common, *options)
    assert refused.returncode == 2 and "needs labels" in refused.stderr
