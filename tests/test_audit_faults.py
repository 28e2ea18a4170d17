"""Each fault that the audit knows is built, found and named; a quantized model that ships is clean."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from qdq_graphs import HEADER, weight
from test_cli import assert_one_line_error, run_cli

import onnx_hyvit
from onnx_hyvit.calibration import load_preprocess
from onnx_hyvit.demo import IMAGES, INPUT, MODEL, PREPROCESS, find_models, to_arrays
from onnx_hyvit.kernel_audit import FAULTS

CODES = (weight(16, 16, 1, 1) * 100).astype(np.int8)
ROWS = (weight(16, 16) * 100).astype(np.int8)
VALUES = {
    "s": np.float32(0.02),
    "z": np.uint8(128),
    "t": np.float32(1 / 255),
    "o": np.uint8(0),
    "ws": np.float32(0.01),
    "wz": np.int8(0),
    "w": CODES,
    "v": ROWS,
    "b": np.ones(16, np.float32),
}
PAIR = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"
QUANTIZED = "r = QuantizeLinear(c, s, z) y = DequantizeLinear(r, s, z)"
FAULTY = {
    # a float Conv on int8 weights: its output has no Q, so no int8 kernel is chosen
    "float_int8_weights": ("4", f"{PAIR} wd = DequantizeLinear(w, ws, wz) y = Conv(d, wd)", "y"),
    # the same layer, seen from its weight: dequantized again in every run
    "dequantized_weights": ("4", f"{PAIR} wd = DequantizeLinear(w, ws, wz) y = Conv(d, wd)", "wd"),
    "bad_kernels": (
        "4",
        f"{PAIR} c = Softmax<axis=1>(d) f = QuantizeLinear(c, t, o) y = DequantizeLinear(f, t, o)",
        "c",
    ),
    "orphan_pairs": ("4", f"{PAIR} y = Softmax(d)", "q"),
}


def build(rank: str, body: str) -> onnx.ModelProto:
    shape = "1,16,8,8" if rank == "4" else "8,16"
    proto = onnx.parser.parse_model(HEADER + f"g (float[{shape}] x) => (float[{shape}] y) {{ {body} }}")
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in VALUES.items() if k in used)
    for node in proto.graph.node:
        node.name = node.output[0]
    return proto


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_and_named(fault):
    rank, body, node = FAULTY[fault]
    report = onnx_hyvit.audit(build(rank, body))
    assert [kernel.node for kernel in getattr(report, fault)] == [node]
    assert not report.clean and report.counts[fault] == 1


def test_a_float_gemm_on_int8_weights_is_found():
    body = f"{PAIR} vd = DequantizeLinear(v, ws, wz) c = Gemm(d, vd, b) y = Relu(c)"  # a float bias, and no Q behind it
    report = onnx_hyvit.audit(build("2", body))
    assert [kernel.node for kernel in report.float_int8_weights] == ["c"]
    assert "v" in report.float_int8_weights[0].detail


def test_an_int8_average_pool_is_a_bad_kernel():
    body = f"{PAIR} c = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(d) {QUANTIZED}"
    assert [kernel.op for kernel in onnx_hyvit.audit(build("4", body)).bad_kernels] == ["QLinearAveragePool"]


def test_the_same_layer_between_pairs_is_clean():
    report = onnx_hyvit.audit(build("4", f"{PAIR} wd = DequantizeLinear(w, ws, wz) c = Conv(d, wd) {QUANTIZED}"))
    assert report.clean and [kernel.node for kernel in report.int8] == ["c"]


def test_the_command_exits_with_1_when_something_is_wrong(tmp_path: Path):
    rank, body, node = FAULTY["bad_kernels"]
    path = tmp_path / "bad.onnx"
    onnx.save(build(rank, body), path)
    done = run_cli("audit", path, "--json")
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert not report["clean"] and [entry["node"] for entry in report["bad_kernels"]] == [node]
    shown = run_cli("audit", path)
    assert shown.returncode == 1 and "QLinearSoftmax" in shown.stdout


def test_bad_input_is_one_line(tmp_path: Path):
    assert_one_line_error(run_cli("audit", tmp_path / "nowhere.onnx"), "no such file")
    assert_one_line_error(run_cli("audit", "m.onnx", "--target", "tpu"), "tpu")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model that ships, quantized for u8 and for s8 activations."""
    folder, models = tmp_path_factory.mktemp("shipped"), find_models()
    with np.load(models / IMAGES, allow_pickle=False) as images:
        calibration = images["calib_images"][:8]
    data = {INPUT: to_arrays(calibration, load_preprocess(models / PREPROCESS))}
    paths = {}
    for target in ("ort-x86", "ort-arm"):
        paths[target] = folder / f"{target}.onnx"
        config = onnx_hyvit.QuantConfig(target=target, recipe="minmax", objective="size", verify=False)
        onnx_hyvit.quantize(models / MODEL, paths[target], calibration=data, config=config)
    return paths


@pytest.mark.parametrize("target", ["ort-x86", "ort-arm"])
def test_a_shipped_model_is_clean_when_quantized(shipped: dict[str, Path], target: str):
    done = run_cli("audit", shipped[target], "--target", target, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["clean"]
    assert report["counts"]["int8"] == 72 and report["counts"]["float_weighted"] == 0


def test_check_says_what_is_wrong_and_what_to_do(shipped: dict[str, Path]):
    assert onnx_hyvit.check(shipped["ort-x86"], "ort-x86")["problems"] == []
    done = run_cli("check", shipped["ort-x86"], "--target", "ort-arm", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1 and report["target"] == "ort-arm"
    assert any("activation is uint8, ort-arm takes int8" in entry["problem"] for entry in report["problems"])
    assert all(entry["node"] and entry["advice"] for entry in report["problems"])
    assert any("--target ort-arm" in entry["advice"] for entry in report["problems"])


def test_check_refuses_a_float_model(tiny_model: Path):
    assert_one_line_error(run_cli("check", tiny_model), "no Q/DQ pair")
