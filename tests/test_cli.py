"""The command line as a user meets it: good runs print what was asked for, bad input one line, exit code 2, no file."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from onnx_hyvit.version import __version__

PROGRESS = re.compile(r"\w+: \d+/\d+")  # a line now and then of what takes long, as on a busy machine


def run_cli(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m onnx_hyvit`` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "onnx_hyvit", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "NO_COLOR": "1", **environment},
        timeout=300,
    )


def assert_one_line_error(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.strip().splitlines() if not PROGRESS.fullmatch(line)]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0], lines[0]
    assert done.stdout == ""


def test_version_and_help() -> None:
    assert run_cli("--version").stdout.strip() == f"onnx-hyvit {__version__}"
    text = run_cli("quantize", "--help").stdout
    for option in ("--calib", "--recipe", "--bits", "--target", "--samples", "--seed", "--config", "--json"):
        assert option in text


@pytest.fixture(scope="module")
def quantized(tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The tiny model quantized by the command line, and the report it printed."""
    output = tmp_path_factory.mktemp("out") / "int8.onnx"
    done = run_cli("quantize", tiny_model, "-o", output, "--calib", tiny_data, "--samples", 8, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return output, json.loads(done.stdout)


def test_quantize_writes_a_valid_smaller_model(quantized: tuple[Path, dict], tiny_model: Path) -> None:
    output, report = quantized
    onnx.checker.check_model(onnx.load(output), full_check=True)
    assert report["output"] == str(output)
    assert report["size"]["int8_bytes"] == output.stat().st_size
    assert report["audit"]["counts"]["int8"] > 0
    assert report["calibration"]["samples"] == 8
    assert sum(block["kind"] == "bridge" for block in report["found"]["blocks"]) == 3


def test_quantize_is_deterministic(quantized, tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.onnx"
    done = run_cli("quantize", tiny_model, "-o", again, "--calib", tiny_data, "--samples", 8, "-q")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert again.read_bytes() == quantized[0].read_bytes()


def test_quantize_from_a_folder_of_images(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images" / "deeper"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index, suffix in enumerate(("png", "jpg", "webp", "bmp")):
        Image.fromarray(rng.integers(0, 256, (80, 100, 3), np.uint8)).save(folder / f"{index}.{suffix}")
    output = tmp_path / "out.onnx"
    done = run_cli("quantize", tiny_model, "-o", output, "--calib", folder.parent, "--preprocess", "unit")
    assert done.returncode == 0, done.stderr
    assert output.is_file()
    for word in ("bridge", "int8", "Written", "smaller"):
        assert word in done.stdout


def test_inspect_lists_the_structure(tiny_model: Path) -> None:
    done = run_cli("inspect", tiny_model, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["opset"] == 17
    for key in ("producer", "blocks", "norms", "activations", "attentions", "unrecognised"):
        assert key in report
    kinds = [block["kind"] for block in report["blocks"]]
    assert kinds.count("bridge") == 3
    assert set(kinds) <= {"stem", "conv", "bridge", "transformer", "head"}
    for block in report["blocks"]:
        assert block["nodes"] and block["name"]
        assert all({"name", "shape"} <= set(edge) for edge in block["inputs"] + block["outputs"])
    shown = run_cli("inspect", tiny_model)
    assert shown.returncode == 0
    assert "bridge" in shown.stdout


def test_compare_measures_the_pair(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    int8 = tmp_path / "int8.onnx"
    everywhere = ("--target", "ort-x86-avx2")  # right on processors with and without VNNI
    assert run_cli("quantize", tiny_model, "-o", int8, "--calib", tiny_data, *everywhere, "-q").returncode == 0
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(["0"] * 24))
    arguments = ("compare", tiny_model, int8, "--data", tiny_data, "--labels", labels, "--runs", 3)
    done = run_cli(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    output = next(iter(report["outputs"].values()))
    assert output["sqnr_db"] > 5
    assert 0.9 < output["cosine"] <= 1
    assert 0 <= report["top1_agreement"] <= 1
    assert set(report["latency"]) >= {"float_ms", "int8_ms", "speedup"}
    assert report["fused_matches_unfused"] is True
    assert report["saturation"] is None
    assert report["accuracy"]["float_top1"] >= 0
    errors = [entry["sqnr_db"] for entry in report["tensors"]]
    assert len(errors) > 10
    assert errors == sorted(errors)
    shown = run_cli(*arguments)
    assert shown.returncode == 0, shown.stderr
    for word in ("agreement", "latency", "SQNR", "smaller"):
        assert word in shown.stdout


def test_compare_fails_below_a_threshold(tiny_model: Path, quantized: tuple[Path, dict], tiny_data: Path) -> None:
    arguments = ("compare", tiny_model, quantized[0], "--data", tiny_data, "--samples", 4, "--runs", 2, "-q")
    assert run_cli(*arguments, "--min-agreement", 0, "--min-speedup", 0).returncode == 0
    slow = run_cli(*arguments, "--min-speedup", 1000)
    assert slow.returncode == 1
    assert slow.stderr.startswith("error: speed-up is") and slow.stderr.strip().endswith("expected at least 1000")
    same = run_cli("compare", tiny_model, tiny_model, "--data", tiny_data, "--samples", 2, "--min-agreement", 1, "-q")
    assert same.returncode == 0, same.stderr
    assert run_cli(*arguments, "--min-agreement", 1.5).returncode == 2


class TestBadInput:
    """Each bad input: one line that names it, exit code 2, nothing written."""

    @pytest.fixture()
    def quantize(self, tiny_model: Path, tiny_data: Path, tmp_path: Path):
        def run(model: object = tiny_model, calib: object = tiny_data, *more: object, output: str = "out.onnx"):
            before = sorted(tmp_path.rglob("*"))
            done = run_cli("quantize", model, "-o", tmp_path / output, "--calib", calib, *more)
            assert sorted(tmp_path.rglob("*")) == before, "something was written"
            return done

        return run

    def test_missing_model(self, quantize) -> None:
        assert_one_line_error(quantize("nothing.onnx"), "nothing.onnx", "no such file")

    def test_not_onnx(self, quantize, tmp_path: Path) -> None:
        (tmp_path / "text.onnx").write_text("this is not a model")
        assert_one_line_error(quantize(tmp_path / "text.onnx"), "text.onnx", "not an ONNX model")

    def test_truncated_model(self, quantize, tmp_path: Path, tiny_model: Path) -> None:
        data = tiny_model.read_bytes()
        (tmp_path / "cut.onnx").write_bytes(data[: len(data) // 2])
        assert_one_line_error(quantize(tmp_path / "cut.onnx"), "cut.onnx")

    def test_already_quantized(self, quantize, quantized: tuple[Path, dict]) -> None:
        assert_one_line_error(quantize(quantized[0]), "already quantized")

    def test_a_weighting_without_a_reconstruction(self, quantize, tiny_model: Path, tiny_data: Path) -> None:
        found = quantize(tiny_model, tiny_data, "--recipe", "minmax", "--weighting", "auto")
        assert_one_line_error(found, "minmax", "reconstructs no blocks", "q-hyvit")
        assert_one_line_error(quantize(tiny_model, tiny_data, "--weighting", "best"), "best", "mse, fisher, auto")

    def test_losses_that_make_no_sense(self, quantize, tiny_model: Path, tiny_data: Path) -> None:
        unknown = quantize(tiny_model, tiny_data, "--loss", "boxes")
        assert_one_line_error(unknown, "loss 'boxes'", "regression")
        assert_one_line_error(quantize(tiny_model, tiny_data, "--loss", "boxes=regression"), "no output 'boxes'")
        twice = quantize(tiny_model, tiny_data, "--loss", "regression,embedding")
        assert_one_line_error(twice, "says twice")

    def test_nothing_to_quantize(self, quantize, tmp_path: Path) -> None:
        text = '<ir_version: 8, opset_import: ["": 17]> g (float[1,3,8,8] x) => (float[1,3,8,8] y) { y = Relu(x) }'
        onnx.save(onnx.parser.parse_model(text), tmp_path / "relu.onnx")
        np.savez(tmp_path / "x.npz", x=np.ones((2, 3, 8, 8), np.float32))
        assert_one_line_error(quantize(tmp_path / "relu.onnx", tmp_path / "x.npz"), "no node can be quantized")

    def test_custom_domain(self, quantize, tmp_path: Path) -> None:
        text = '<ir_version: 8, opset_import: ["": 17, "acme": 1]> g (float[1] x) => (float[1] y) { y = acme.Magic(x) }'
        onnx.save(onnx.parser.parse_model(text), tmp_path / "custom.onnx")
        assert_one_line_error(quantize(tmp_path / "custom.onnx"), "acme")

    @pytest.mark.parametrize("opset", [3, 999])
    def test_unsupported_opset(self, quantize, tmp_path: Path, opset: int) -> None:
        text = f'<ir_version: 8, opset_import: ["": {opset}]> g (float[1,3] x) => (float[1,3] y) {{ y = Relu(x) }}'
        onnx.save(onnx.parser.parse_model(text), tmp_path / "opset.onnx")
        assert_one_line_error(quantize(tmp_path / "opset.onnx"), f"opset {opset}")

    def test_external_data_missing_or_outside(self, quantize, tmp_path: Path, tiny_model: Path) -> None:
        model = onnx.load(tiny_model)
        onnx.save(model, tmp_path / "ext.onnx", save_as_external_data=True, location="ext.data", size_threshold=0)
        (tmp_path / "ext.data").unlink()
        assert_one_line_error(quantize(tmp_path / "ext.onnx"), "ext.data", "missing")
        proto = onnx.load(tmp_path / "ext.onnx", load_external_data=False)
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "../../etc/passwd"
        (tmp_path / "outside.onnx").write_bytes(proto.SerializeToString())
        assert_one_line_error(quantize(tmp_path / "outside.onnx"), "outside the model's folder")

    def test_wrong_input_name(self, quantize, tmp_path: Path, tiny_input) -> None:
        np.savez(tmp_path / "x.npz", pixels=np.ones((2, *tiny_input[1]), np.float32))
        assert_one_line_error(quantize(calib=tmp_path / "x.npz"), "pixels", tiny_input[0])

    def test_wrong_shape_and_dtype(self, quantize, tmp_path: Path, tiny_input) -> None:
        name, (channels, height, width) = tiny_input
        np.savez(tmp_path / "nhwc.npz", **{name: np.ones((2, height, width, channels), np.float32)})
        assert_one_line_error(quantize(calib=tmp_path / "nhwc.npz"), name, "NHWC")
        np.savez(tmp_path / "bytes.npz", **{name: np.ones((2, *tiny_input[1]), np.uint8)})
        assert_one_line_error(quantize(calib=tmp_path / "bytes.npz"), name, "uint8")

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_nan_names_the_sample(self, quantize, tmp_path: Path, tiny_input, bad: float) -> None:
        values = np.zeros((5, *tiny_input[1]), np.float32)
        values[3, 0, 1, 2] = bad
        np.savez(tmp_path / "nan.npz", **{tiny_input[0]: values})
        assert_one_line_error(quantize(calib=tmp_path / "nan.npz"), "3")

    def test_empty_folder_and_missing_path(self, quantize, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert_one_line_error(quantize(calib=tmp_path / "empty"), "empty")
        assert_one_line_error(quantize(calib=tmp_path / "nowhere"), "nowhere")

    def test_unreadable_image_is_named_and_skipped_on_request(self, quantize, tmp_path: Path, tiny_model: Path) -> None:
        folder = tmp_path / "images"
        folder.mkdir()
        Image.new("RGB", (64, 64), (200, 30, 90)).save(folder / "good.png")
        (folder / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
        assert_one_line_error(quantize(calib=folder), "broken.jpg")
        output = tmp_path / "out.onnx"
        done = run_cli("quantize", tiny_model, "-o", output, "--calib", folder, "--skip-unreadable", "--json")
        assert done.returncode == 0, done.stderr
        assert "broken.jpg" in done.stderr
        assert output.is_file()

    @pytest.mark.parametrize(
        "options", [("--bits", "w99a8"), ("--recipe", "soup"), ("--target", "toaster"), ("--samples", "0")]
    )
    def test_bad_settings(self, quantize, tiny_model: Path, tiny_data: Path, options: tuple[str, str]) -> None:
        assert_one_line_error(quantize(tiny_model, tiny_data, *options), options[0].strip("-"), options[1])

    def test_output_cannot_be_written(self, quantize, tiny_model: Path, tiny_data: Path) -> None:
        assert_one_line_error(quantize(output="none/out.onnx"), "does not exist")
        done = run_cli("quantize", tiny_model, "-o", "/proc/out.onnx", "--calib", tiny_data)
        assert_one_line_error(done, "/proc")
        assert_one_line_error(run_cli("quantize", tiny_model, "-o", tiny_model, "--calib", tiny_data), "input model")


def test_disk_full_leaves_nothing(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """A limit on file size stands for the full disk: the write fails, the error is ours, no partial file stays."""
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from onnx_hyvit.graph import save_proto\n"
        "from onnx_hyvit.errors import OutputError\n"
        "import onnx\n"
        f"proto = onnx.load({str(tiny_model)!r})\n"
        "try:\n"
        f"    save_proto(proto, {str(tmp_path / 'out.onnx')!r})\n"
        "except OutputError as error:\n"
        "    print('caught', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("caught"), done.stderr
    assert list(tmp_path.iterdir()) == []


INTERRUPTED = """
import os, signal, sys
from onnx_hyvit.__main__ import main

place, breaks = sys.argv.pop(1), sys.argv.pop(1) == "breaks"
sent = []

def interrupt(event, arguments):
    if event in ("import", "open") and str(arguments[0]).endswith(place) and not sent:
        sent.append(True)
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            if breaks:
                raise ImportError("the module was not loaded to its end")
            raise

sys.addaudithook(interrupt)
main()
"""


@pytest.mark.parametrize(
    ("place", "breaks"),
    [
        ("typer", "raises"),  # while the program loads
        ("onnxruntime", "raises"),  # while the command loads what it needs
        ("onnxruntime", "breaks"),  # in the code of an extension module, which makes another error of it
        ("onnx_hyvit.insert_qdq", "breaks"),
        (".part", "raises"),  # while the model is written
        ("onnx_hyvit.display_deploy", "raises"),
    ],
)
def test_ctrl_c_is_one_line_and_130(tiny_model: Path, tiny_data: Path, tmp_path: Path, place: str, breaks: str) -> None:
    arguments = ["quantize", tiny_model, "-o", tmp_path / "out.onnx", "--calib", tiny_data, "--recipe", "minmax", "-q"]
    script = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n" + INTERRUPTED
    command = [sys.executable, "-c", script, place, breaks, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode in (130, -signal.SIGINT), done.stderr  # a shell shows both as 130
    assert done.stderr == "error: interrupted; no partial file is left\n"
    assert done.stdout == "" and list(tmp_path.iterdir()) == []


def test_ctrl_c_stays_ignored_where_it_is(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    script = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + INTERRUPTED
    arguments = ["quantize", tiny_model, "-o", tmp_path / "out.onnx", "--calib", tiny_data, "--recipe", "minmax", "-q"]
    command = [sys.executable, "-c", script, ".part", "raises", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert (tmp_path / "out.onnx").is_file()


@pytest.mark.parametrize("delay", [1.5, 4.0])
def test_ctrl_c_leaves_no_partial_file(tiny_model: Path, tiny_data: Path, tmp_path: Path, delay: float) -> None:
    """Whenever it comes, the folder holds nothing, or the whole model when the run was already over."""
    output = tmp_path / "out.onnx"
    arguments = ["quantize", str(tiny_model), "-o", str(output), "--calib", str(tiny_data), "-q"]
    process = subprocess.Popen(
        [sys.executable, "-m", "onnx_hyvit", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    code = process.wait(120)
    if code == 0:
        onnx.checker.check_model(onnx.load(output), full_check=True)
    else:
        assert list(tmp_path.iterdir()) == []


def test_objective_says_what_the_costs_decided(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    common = ("quantize", tiny_model, "--calib", tiny_data, "--samples", 4, "--recipe", "minmax", "--no-verify")
    done = run_cli(*common, "-o", tmp_path / "a.onnx", "--target", "ort-x86-avx2", "--objective", "speed")
    assert done.returncode == 0, done.stderr
    assert "objective speed:" in done.stdout and "us more than float" in done.stdout
    without = run_cli(*common, "-o", tmp_path / "b.onnx", "--target", "generic", "--objective", "speed")
    assert "its rules decide" in without.stdout
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    assert_one_line_error(run_cli(*common, "-o", tmp_path / "c.onnx", "--profile", bad), "bad.json", "not a profile")
    assert_one_line_error(run_cli(*common, "-o", tmp_path / "c.onnx", "--objective", "fast"), "objective 'fast'")
    assert not (tmp_path / "c.onnx").exists()


def test_numpy_is_loaded_after_its_blas_was_told_to_use_one_thread() -> None:
    code = """
import os, sys
from onnx_hyvit import __main__ as entry
assert "numpy" not in sys.modules
sys.argv = ["onnx-hyvit", "--version"]
try:
    entry.main()
except SystemExit:
    print(os.environ["OPENBLAS_NUM_THREADS"])
"""
    for given, found in (({}, "1"), ({"OPENBLAS_NUM_THREADS": "3"}, "3")):
        bare = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
        done = subprocess.run(
            [sys.executable, "-c", code], env={**bare, **given}, capture_output=True, text=True, check=True
        )
        assert done.stdout.split()[-1] == found
