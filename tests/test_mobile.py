"""Export for devices: what is written, that it equals the .onnx, and that bad input leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from qdq_graphs import HEADER, parse, quantize, weight
from test_cli import assert_one_line_error, run_cli

from onnx_hyvit import ConfigError, HyvitError, MobileConfig, ModelError, OutputError, ValidationError, export_mobile
from onnx_hyvit.graph.fix_shapes import fix_shapes, free_inputs
from onnx_hyvit.graph.zero_points import add_zero_points
from onnx_hyvit.mobile import measure
from onnx_hyvit.mobile.config import parse_fixed_shape
from onnx_hyvit.mobile.staging import staged_folder
from onnx_hyvit.runtime import REPLAY_OPTION, parse_operators
from onnx_hyvit.targets import load_target

QUICK = MobileConfig(runs=1)


def dynamic_model() -> onnx.ModelProto:
    """A small int8 model whose batch is free and whose biases have no zero points."""
    text = "g (float[1,16,8,8] x) => (float[1,16,8,8] y) { c = Conv(x, w, b) s = Sigmoid(c) y = Mul(c, s) }"
    _, proto, _ = quantize(parse(text, w=weight(16, 16, 1, 1), b=np.linspace(-1, 1, 16, dtype=np.float32)))
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    del proto.graph.value_info[:]
    return proto


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The small model, exported by the command line."""
    folder = tmp_path_factory.mktemp("mobile")
    onnx.save(dynamic_model(), folder / "small.onnx")
    done = run_cli("export-mobile", folder / "small.onnx", "-o", folder / "out", "--runs", 1, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder / "out", json.loads(done.stdout)


def test_all_files_are_there_and_nothing_else(exported: tuple[Path, dict]):
    folder, report = exported
    assert {path.name for path in folder.iterdir()} == set(report["files"].values())
    assert [path.name for path in folder.parent.iterdir() if path.name.endswith(".part")] == []
    assert report["inputs"] == [{"name": "x", "shape": [1, 16, 8, 8], "was": ["N", 16, 8, 8]}]
    assert report["forms"]["Fixed"]["bytes"] == (folder / report["files"]["Fixed"]).stat().st_size
    for form in report["forms"].values():
        assert form["load_ms"] > 0 and form["run_ms"] > 0


def test_ort_files_give_the_bits_of_the_onnx_in_plain_sessions(exported: tuple[Path, dict]):
    """Checked here once more with nothing but onnxruntime."""
    folder, report = exported
    feed = {"x": np.random.default_rng(5).standard_normal((1, 16, 8, 8)).astype(np.float32)}

    def run(name: str, entries: dict[str, str]) -> np.ndarray:
        options = ort.SessionOptions()
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        path = str(folder / report["files"][name])
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feed)[0]

    expected = run("fixed_shape", {})
    assert np.array_equal(run("Fixed", {}), expected)
    assert np.array_equal(run("Runtime", REPLAY_OPTION), expected)
    assert report["forms"]["Fixed"]["identical"] and report["forms"]["Runtime"]["identical"]


def test_the_report_names_what_a_build_needs(exported: tuple[Path, dict]):
    folder, report = exported
    assert report["contrib_operators"] == ["QLinearConv", "QLinearMul", "QLinearSigmoid"]
    assert report["operators"]["Fixed"]["ai.onnx"]["QuantizeLinear"] == ["uint8_t"]
    assert "Conv" in report["operators"]["Runtime"]["ai.onnx"]  # what remains when the options are not replayed
    config = (folder / report["files"]["Fixed operators"]).read_text()
    assert parse_operators(config) == report["operators"]["Fixed"]
    assert str(folder.parent) not in config and "/tmp" not in config
    assert set(report["partitions"]) == {"NNAPI", "CoreML NeuralNetwork", "CoreML MLProgram"}
    assert 0 < report["partitions"]["NNAPI"]["supported_nodes"] <= report["partitions"]["NNAPI"]["nodes"]


def test_the_readme_tells_about_the_session_option(exported: tuple[Path, dict]):
    folder, report = exported
    text = (folder / "README.md").read_text()
    option, value = next(iter(REPLAY_OPTION.items()))
    assert report["session_options"]["Runtime"][option] == value
    assert option not in report["session_options"]["Fixed"]
    for word in (option, "--minimal_build extended", "QLinearConv", *report["files"].values()):
        if word not in ("report.json", "README.md"):
            assert word in text, word


def test_a_float_model_of_an_old_opset_works_for_both_platforms(tmp_path: Path):
    text = '<ir_version: 8, opset_import: ["" : 11]> g (float[n,3,8,8] x) => (float[n,4,8,8] y) { y = Conv(x, w) }'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(weight(4, 3, 1, 1), "w"))
    report = export_mobile(proto, tmp_path / "float", MobileConfig(runs=1, platform="amd64", batch=2))
    assert report["inputs"][0]["shape"] == [2, 3, 8, 8]
    assert report["forms"]["Fixed"]["identical"] and report["files"]["Fixed"] == "model.ort"
    assert any("float" in note for note in report["notes"])


def test_free_dimensions_can_stay(tmp_path: Path):
    report = export_mobile(dynamic_model(), tmp_path / "out", MobileConfig(runs=1, batch=None))
    assert report["inputs"][0]["shape"] == ["N", 16, 8, 8]
    assert any("--fixed-shape x=SIZES" in note for note in report["notes"])
    assert report["partitions"]["NNAPI"]["dynamic_nodes"] > 0


def test_a_runtime_style_that_cannot_be_made_is_left_out_and_named(tmp_path: Path):
    """ONNX Runtime 1.32 quantizes a float bias itself, and cannot save what it made of it in this style."""
    text = "g (float[1,16,8,8] x) => (float[1,16,8,8] y) { c = Conv(x, w, b) s = Sigmoid(c) y = Mul(c, s) }"
    model = parse(text, w=weight(16, 16, 1, 1), b=np.linspace(-1, 1, 16, dtype=np.float32))
    report = export_mobile(quantize(model, load_target("tensorrt"))[1], tmp_path / "out", QUICK)
    assert report["forms"]["Fixed"]["identical"]
    left_out = "Runtime" not in report["files"]  # a later ONNX Runtime may be able to make it
    assert left_out == any("no file in Runtime style" in note for note in report["notes"])
    assert left_out == ("## The Runtime style" not in (tmp_path / "out" / "README.md").read_text())
    assert left_out == (not list((tmp_path / "out").glob("*with_runtime_opt*")))
    assert ("Runtime" in report["forms"]) == ("Runtime" in report["operators"]) == (not left_out)


def test_bad_input_is_one_line_and_writes_nothing(tmp_path: Path):
    onnx.save(dynamic_model(), tmp_path / "small.onnx")
    model, out = tmp_path / "small.onnx", tmp_path / "out"
    assert_one_line_error(run_cli("export-mobile", model, "-o", out, "--fixed-shape", "x=1,3,8,8"), "'x'", "1x3x8x8")
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x01broken")
    assert_one_line_error(run_cli("export-mobile", tmp_path / "broken.onnx", "-o", out), "broken.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"small.onnx", "broken.onnx"}


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"platform": "mips"}, "platform 'mips'"),
        ({"runs": 0}, "runs must be"),
        ({"batch": True}, "batch must be"),
        ({"fixed_shapes": {"x": (1, 0)}}, "fixed shape of 'x'"),
    ],
)
def test_a_bad_setting_is_refused(config: dict, match: str):
    with pytest.raises(ConfigError, match=match):
        MobileConfig(**config)


def test_fixed_shapes_are_read_from_text():
    assert parse_fixed_shape("input=1,3,256,256") == ("input", (1, 3, 256, 256))
    assert parse_fixed_shape("a=b=2") == ("a=b", (2,))
    for text in ("1,3", "input=", "input=1,x", "=1"):
        with pytest.raises(ConfigError, match="not understood"):
            parse_fixed_shape(text)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: onnx.helper.make_model(onnx.GraphProto(name="g")), ModelError, "no graph"),
        (lambda: _with_opset(99), ModelError, "opset 99 is not supported"),
        (lambda: _with_domain("my.ops"), HyvitError, "my.ops"),
    ],
)
def test_a_model_that_cannot_be_exported_leaves_nothing(tmp_path: Path, make, error, match):
    with pytest.raises(error, match=match) as caught:
        export_mobile(make().SerializeToString(), tmp_path / "out", QUICK)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def _with_opset(version: int) -> onnx.ModelProto:
    proto = dynamic_model()
    proto.opset_import[0].version = version
    return proto


def _with_domain(domain: str) -> onnx.ModelProto:
    proto = dynamic_model()
    proto.graph.node[0].domain = domain
    proto.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    return proto


def test_other_outputs_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A reference of other weights stands for a conversion that went wrong."""
    other = dynamic_model()
    for tensor in other.graph.initializer:
        if tensor.name == "w_scale":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))
    onnx.save(other, tmp_path / "other.onnx")
    find = measure.find_forms
    monkeypatch.setattr("onnx_hyvit.mobile.export.find_forms", lambda path, *rest: find(tmp_path / "other.onnx", *rest))
    with pytest.raises(ValidationError, match=r"differs from the \.onnx by up to"):
        export_mobile(dynamic_model(), tmp_path / "out", QUICK)
    assert not (tmp_path / "out").exists()


def test_a_staged_folder_appears_whole_or_not_at_all(tmp_path: Path):
    place = tmp_path / "out"
    with pytest.raises(RuntimeError), staged_folder(place) as staged:
        (staged / "a").write_text("new")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    place.mkdir()
    (place / "a").write_text("old")
    (place / "b").write_text("kept")
    with staged_folder(place) as staged:
        (staged / "a").write_text("new")
    assert {path.name: path.read_text() for path in place.iterdir()} == {"a": "new", "b": "kept"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"), staged_folder(tmp_path / "file"):
        pass
    with pytest.raises(OutputError, match="does not exist"), staged_folder(tmp_path / "no" / "where"):
        pass


def test_named_dimensions_are_fixed_everywhere():
    text = HEADER + "g (float[n,2] a, float[n,2] b, float[m,k] e) => (float[n,2] y, float[m,k] f)"
    proto = onnx.parser.parse_model(text + " { y = Add(a, b) f = Relu(e) }")
    fixed = fix_shapes(proto, {"a": (3, 2)}, batch=5)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*fixed.graph.input]}
    assert shapes == {"a": [3, 2], "b": [3, 2], "e": [5, 0]}
    assert [dim.dim_value for dim in fixed.graph.output[0].type.tensor_type.shape.dim] == [3, 2]
    assert free_inputs(fixed) == {"e": [5, "k"]} and set(free_inputs(proto)) == {"a", "b", "e"}
    with pytest.raises(ConfigError, match="no input 'z'"):
        fix_shapes(proto, {"z": (1,)})
    with pytest.raises(ConfigError, match="contradicts"):
        fix_shapes(proto, {"a": (3, 4)})
    with pytest.raises(ConfigError, match="contradicts"):
        fix_shapes(proto, {"a": (3, 2), "b": (4, 2)})


def test_missing_zero_points_are_written_and_change_nothing():
    proto = onnx.shape_inference.infer_shapes(dynamic_model())
    missing = sum(node.op_type == "DequantizeLinear" and len(node.input) == 2 for node in proto.graph.node)
    feed = {"x": np.random.default_rng(0).standard_normal((1, 16, 8, 8)).astype(np.float32)}
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    before = ort.InferenceSession(proto.SerializeToString(), options).run(None, feed)[0]
    assert missing > 0 and add_zero_points(proto) == missing and add_zero_points(proto) == 0
    onnx.checker.check_model(proto, full_check=True)
    assert np.array_equal(ort.InferenceSession(proto.SerializeToString(), options).run(None, feed)[0], before)
