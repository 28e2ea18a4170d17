"""One test for each claim of SECURITY.md: models, images, arrays and settings are not to be trusted."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

import onnx_hyvit
from onnx_hyvit import CalibrationError, ConfigError, HyvitError, ModelError, QuantConfig
from onnx_hyvit.calibration import InputInfo, load_preprocess, open_source
from onnx_hyvit.checked import MAX_TEXT_BYTES
from onnx_hyvit.config import load_config
from onnx_hyvit.errors import printable
from onnx_hyvit.graph import load_model
from onnx_hyvit.targets import load_target

TEXT = '<ir_version: 9, opset_import: ["": 20]> g (float[1,3,8,8] x) => (float[1,16,8,8] y)'
INPUT = InputInfo("x", np.dtype("float32"), (None, 3, 8, 8))
EVIL = "\x1b[31mred\x1b[0m\n[bold]\u202edeb\x9b2J\r"
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def convolution(name: str = "conv") -> onnx.ModelProto:
    """One convolution, 3 to 16 channels."""
    proto = onnx.parser.parse_model(f"{TEXT} {{ y = Conv(x, w) }}")
    proto.graph.node[0].name = name
    weights = np.random.default_rng(0).normal(size=(16, 3, 1, 1)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    return proto


def data(count: int = 2) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(size=(count, 3, 8, 8)).astype(np.float32)}


def run_cli(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnx_hyvit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


class TestModels:
    @pytest.mark.parametrize("location", ["/etc/passwd", "../secret", "a/../../secret", "secret\0", ""])
    @pytest.mark.parametrize("place", ["initializer", "constant", "body", "function"])
    def test_external_data_stay_in_the_models_folder(self, tmp_path: Path, location: str, place: str) -> None:
        folder = tmp_path / "model"
        folder.mkdir()
        (tmp_path / "secret").write_bytes(bytes(192))
        proto = convolution()
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        if place != "initializer":
            constant = helper.make_node("Constant", [], ["c"], value=tensor)
            del proto.graph.initializer[:]
            if place == "constant":
                proto.graph.node.insert(0, constant)
            elif place == "body":
                graph = helper.make_graph([constant], "b", [], [helper.make_empty_tensor_value_info("c")])
                proto.graph.node.insert(0, helper.make_node("If", ["x"], ["w"], then_branch=graph, else_branch=graph))
            else:
                opsets = [helper.make_opsetid("", 20)]
                proto.functions.append(helper.make_function("local", "f", [], ["c"], [constant], opsets))
        (folder / "m.onnx").write_bytes(proto.SerializeToString())
        with pytest.raises(ModelError, match=r"outside the model's folder|malformed location"):
            load_model(folder / "m.onnx")

    def test_external_data_behind_a_link_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(bytes(192))
        folder = tmp_path / "model"
        folder.mkdir()
        onnx.save(convolution(), folder / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
        (folder / "w.bin").unlink()
        (folder / "w.bin").symlink_to(tmp_path / "secret")
        with pytest.raises(ModelError, match="outside the model's folder"):
            load_model(folder / "m.onnx")

    def test_a_model_in_memory_has_no_external_data(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        onnx.save(convolution(), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
        monkeypatch.chdir(tmp_path)
        proto = onnx.load("m.onnx", load_external_data=False)
        for model in (proto, proto.SerializeToString()):
            with pytest.raises(ModelError, match="in memory has no folder"):
                load_model(model)

    @pytest.mark.parametrize("depth", [20, 400])
    def test_deeply_nested_bodies(self, depth: int) -> None:
        """Nested as bytes: protobuf itself refuses more than a hundred levels, and so do we, by name."""
        node = helper.make_node("Relu", ["x"], ["y0"]).SerializeToString()
        for level in range(1, depth):
            graph = field(1, node) + field(12, field(1, f"y{level - 1}".encode()))
            attribute = field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"
            node = field(1, b"x") + field(2, f"y{level}".encode()) + field(4, b"If") + field(5, attribute)
        graph = field(1, node) + field(2, b"g") + field(12, field(1, f"y{depth - 1}".encode()))
        data = b"\x08\x09" + field(7, graph) + field(8, b"\x10\x14")
        with pytest.raises(ModelError):
            load_model(data)

    def test_a_chain_of_thousands_of_nodes(self) -> None:
        """Nothing recurses along the graph."""
        proto = convolution()
        proto.graph.node[0].output[0] = "n0"
        for index in range(1500):
            proto.graph.node.append(helper.make_node("Neg", [f"n{index}"], [f"n{index + 1}" if index < 1499 else "y"]))
        config = QuantConfig(recipe="minmax", verify=False, threads=1)
        result = onnx_hyvit.quantize(proto, calibration=data(), config=config)
        assert result.report["audit"]["counts"]["int8"] == 1

    @pytest.mark.parametrize("size", [2**40, 2**62, 10**5])
    def test_huge_declared_inputs_are_refused_before_they_are_made(self, size: int) -> None:
        proto = convolution()
        for axis in (2, 3):
            proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
        proto.graph.output[0].type.tensor_type.ClearField("shape")
        with pytest.raises(ModelError):
            onnx_hyvit.inspect(proto)

    @pytest.mark.parametrize(
        "body",
        [
            "s = Constant<value = int64[2] {100000, 100000}>() c = ConstantOfShape(s) m = ReduceSum<keepdims = 0>(c)",
            "o = Constant<value = float[1] {1.0}>() s = Constant<value = int64[2] {99999, 99999}>() "
            "c = Expand(o, s) m = ReduceSum<keepdims = 0>(c)",
            "o = Constant<value = float[1] {1.0}>() s = Constant<value = int64[1] {9999999999}>() "
            "c = Tile(o, s) m = ReduceSum<keepdims = 0>(c)",
            "a = Constant<value = int64 {0}>() b = Constant<value = int64 {99999999999}>() "
            "d = Constant<value = int64 {1}>() c = Range(a, b, d) f = Cast<to = 1>(c) m = ReduceSum<keepdims = 0>(f)",
        ],
    )
    def test_constants_are_not_blown_up_by_folding(self, body: str) -> None:
        from onnx_hyvit.passes import CANONICAL, run_passes

        text = f"{TEXT.replace('float[1,16,8,8] y', 'float[1,3,8,8] y, float m')} {{ {body} y = Relu(x) }}"
        proto = onnx.parser.parse_model(text)
        tracemalloc.start()
        run_passes(load_model(proto), CANONICAL)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100e6

    def test_declared_weights_without_data_are_refused(self) -> None:
        proto = convolution()
        proto.graph.initializer[0].dims[0] = 2**40
        with pytest.raises(ModelError, match="invalid model"):
            load_model(proto)

    def test_strings_that_are_no_text_are_refused(self) -> None:
        raw = convolution("MARKMARK").SerializeToString().replace(b"MARKMARK", b"\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8")
        with pytest.raises(ModelError, match="UTF-8"):
            load_model(raw)


def field(number: int, data: bytes) -> bytes:
    """A length-delimited protobuf field."""
    length, size = b"", len(data)
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


class TestImages:
    def test_a_picture_of_enormous_declared_size_is_refused_undecoded(self, tmp_path: Path) -> None:
        def chunk(kind: bytes, body: bytes) -> bytes:
            return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

        header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
        png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
        (tmp_path / "bomb.png").write_bytes(png + chunk(b"IEND", b""))
        with pytest.raises(CalibrationError, match=r"bomb\.png.*pixels"):
            list(open_source(tmp_path, [INPUT]))

    def test_a_sliver_is_not_blown_up_by_a_resize_that_keeps_its_ratio(self, tmp_path: Path) -> None:
        Image.new("RGB", (60000, 1)).save(tmp_path / "sliver.png")
        info = INPUT._replace(shape=(None, 3, 224, 224))
        with pytest.raises(CalibrationError, match=r"sliver\.png.*ratio"):
            list(open_source(tmp_path, [info]))

    def test_only_four_decoders_are_reachable(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
        with pytest.raises(CalibrationError, match="not a JPEG, PNG, WebP or BMP"):
            list(open_source(tmp_path, [INPUT]))


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


class TestArrays:
    @pytest.mark.parametrize("suffix", ["npz", "npy"])
    def test_nothing_is_unpickled(self, tmp_path: Path, suffix: str) -> None:
        trace = tmp_path / "trace"
        values = np.empty(2, object)
        values[:] = Bomb(trace)
        if suffix == "npz":
            np.savez(tmp_path / "a.npz", x=values)
        else:
            np.save(tmp_path / "a.npy", values, allow_pickle=True)
        with pytest.raises(CalibrationError, match="pickled"):
            open_source(tmp_path / f"a.{suffix}", [INPUT])
        assert not trace.exists()

    def test_labels_are_not_unpickled(self, tmp_path: Path) -> None:
        from onnx_hyvit.labels import load_labels

        trace = tmp_path / "trace"
        values = np.empty(2, object)
        values[:] = Bomb(trace)
        np.save(tmp_path / "a.npy", values, allow_pickle=True)
        with pytest.raises(CalibrationError):
            load_labels(tmp_path / "a.npy")
        assert not trace.exists()

    @pytest.mark.parametrize("shape", ["(99999999999, 3, 8, 8)", "(2, 999999, 999999, 8)", "(2, -3, 8, 8)", "(" * 500])
    def test_shapes_are_checked_against_the_file(self, tmp_path: Path, shape: str) -> None:
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
        member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(4096)
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("x.npy", member)
        with pytest.raises(CalibrationError):
            open_source(tmp_path / "a.npz", [INPUT])

    def test_zip_bombs_are_refused_by_their_ratio(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("onnx_hyvit.calibration.array_file.MAX_INFLATION", 50)  # 500 would need a slow test
        with (
            zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("x.npy", "w", force_zip64=True) as stream,
        ):
            for _ in range(60):
                stream.write(bytes(1 << 20))
        with pytest.raises(CalibrationError, match="zip bomb"):
            open_source(tmp_path / "a.npz", [INPUT])


class TestSettings:
    @pytest.mark.parametrize("load", [load_config, load_preprocess, load_target])
    @pytest.mark.parametrize(
        "text", ["a = " + "[" * 20000, "x" * (MAX_TEXT_BYTES + 1), "a." * 100_000 + "b = 1", "a = " + "9" * 9000, "\0"]
    )
    def test_toml_of_silly_size_or_depth(self, tmp_path: Path, load, text: str) -> None:
        path = tmp_path / "a.toml"
        path.write_text(text)
        with pytest.raises(HyvitError, match=r"a\.toml"):
            load(path)

    @pytest.mark.parametrize("text", ['{"a":' * 20000, "[" * 100_000, " " * (MAX_TEXT_BYTES + 1), '{"size": 1e999}'])
    def test_json_of_silly_size_or_depth(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "a.json"
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"a\.json"):
            load_preprocess(path)

    @pytest.mark.parametrize(
        "setting",
        [
            "threads = 1000000",
            "target = 5",
            "target = {}",
            "recipe = []",
            'float_nodes = "abc"',
            "verify = 1",
            "opset = 20.0",
        ],
    )
    def test_settings_of_a_wrong_type_or_size(self, tmp_path: Path, setting: str) -> None:
        path = tmp_path / "a.toml"
        path.write_text(setting)
        with pytest.raises(ConfigError, match=setting.split()[0]):
            load_config(path)

    @pytest.mark.parametrize(
        "lines",
        [
            "extends = 5",
            "[int8]\nConv = {min_channels = {}}",
            "[options]\nopsets = [13, inf]",
            "float = 3",
            "options = []",
        ],
    )
    def test_targets_with_values_of_a_wrong_type(self, tmp_path: Path, lines: str) -> None:
        path = tmp_path / "a.toml"
        base = "" if lines.startswith("extends") else 'extends = "ort-x86"\n'
        path.write_text(f'name = "a"\ndescription = "b"\n{base}{lines}\n')
        with pytest.raises(HyvitError, match=r"a\.toml"):
            load_target(path)


class TestOutput:
    def test_only_the_output_is_written(self, tmp_path: Path) -> None:
        folders = {name: tmp_path / name for name in ("in", "out", "cwd", "tmp", "home")}
        for folder in folders.values():
            folder.mkdir()
        proto = convolution("../../../evil")
        proto.graph.name = "../evil"
        proto.producer_name = "../evil"
        onnx.save(proto, folders["in"] / "m.onnx")
        np.savez(folders["in"] / "d.npz", **data())
        before = sorted(folders["in"].iterdir())
        command = [sys.executable, "-m", "onnx_hyvit", "quantize", str(folders["in"] / "m.onnx"), "-q"]
        command += ["-o", str(folders["out"] / "a.onnx"), "--calib", str(folders["in"] / "d.npz")]
        command += ["--target", "ort-x86"]  # whatever the processor: others may find that int8 does not pay here
        root = str(Path(__file__).parent.parent)
        environment = {**os.environ, "TMPDIR": str(folders["tmp"]), "HOME": str(folders["home"]), "PYTHONPATH": root}
        subprocess.run(command, check=True, cwd=folders["cwd"], env=environment, timeout=300)
        assert [path.name for path in folders["out"].iterdir()] == ["a.onnx"]
        assert sorted(folders["in"].iterdir()) == before
        assert not [*folders["cwd"].iterdir(), *folders["tmp"].iterdir(), *folders["home"].iterdir()]

    def test_a_link_as_output_is_replaced_and_its_target_kept(self, tmp_path: Path) -> None:
        (tmp_path / "precious").write_text("keep me")
        (tmp_path / "out.onnx").symlink_to(tmp_path / "precious")
        config = QuantConfig(recipe="minmax", verify=False)
        onnx_hyvit.quantize(convolution(), tmp_path / "out.onnx", calibration=data(), config=config)
        assert (tmp_path / "precious").read_text() == "keep me"
        assert not (tmp_path / "out.onnx").is_symlink()


class TestTerminal:
    @pytest.fixture(scope="class")
    @staticmethod
    def evil(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
        """A model whose every name carries escape codes, markup and line breaks; and data for it."""
        folder = tmp_path_factory.mktemp("evil")
        proto = onnx.parser.parse_model(f"{TEXT} {{ a = Conv(x, w) s = Sigmoid(a) y = Softmax(s) }}")
        proto.graph.initializer.append(convolution().graph.initializer[0])
        proto.producer_name = proto.producer_version = proto.graph.name = proto.doc_string = EVIL
        for index, node in enumerate(proto.graph.node):
            node.name = f"{EVIL}{index}"
            node.input[:] = [name if name == "w" else f"{name}{EVIL}" for name in node.input]
            node.output[:] = [f"{name}{EVIL}" for name in node.output]
        for value in (*proto.graph.input, *proto.graph.output):
            value.name += EVIL
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = EVIL
        onnx.save(proto, folder / "m.onnx")
        with zipfile.ZipFile(folder / "d.npz", "w") as archive, archive.open(f"x{EVIL}.npy", "w") as stream:
            np.save(stream, data()["x"])
        return folder / "m.onnx", folder / "d.npz"

    def assert_harmless(self, done: subprocess.CompletedProcess[str]) -> None:
        assert not CONTROL.search(done.stdout), repr(done.stdout)
        assert not CONTROL.search(done.stderr), repr(done.stderr)
        assert "Traceback" not in done.stderr

    def test_names_cannot_control_the_terminal(self, evil: tuple[Path, Path], tmp_path: Path) -> None:
        model, samples = evil
        inspected = run_cli("inspect", model)
        self.assert_harmless(inspected)
        assert "\\x1b[31mred" in inspected.stdout
        assert "[bold]" in inspected.stdout
        output = tmp_path / "o.onnx"
        done = run_cli("quantize", model, "-o", output, "--calib", samples, "-v")
        assert done.returncode == 0, done.stderr
        self.assert_harmless(done)
        compared = run_cli("compare", model, output, "--data", samples, "--runs", 2)
        assert compared.returncode == 0, compared.stderr
        self.assert_harmless(compared)

    def test_names_cannot_do_it_in_what_is_said_of_a_finished_model(
        self, evil: tuple[Path, Path], tmp_path: Path
    ) -> None:
        model, samples = evil
        output = tmp_path / "o.onnx"
        done = run_cli("quantize", model, "-o", output, "--calib", samples, "--objective", "size")
        assert done.returncode == 0, done.stderr
        for command in (("debug", model, output, "--data", samples), ("check", output, "--target", "qnn")):
            done = run_cli(*command)
            assert done.returncode in (0, 1), done.stderr
            assert "\\x1b[31mred" in done.stdout
            self.assert_harmless(done)

    def test_errors_cannot_either(self, evil: tuple[Path, Path], tmp_path: Path) -> None:
        np.savez(tmp_path / "d.npz", **data())
        done = run_cli("quantize", evil[0], "-o", tmp_path / "o.onnx", "--calib", tmp_path / "d.npz")
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        self.assert_harmless(done)

    def test_json_is_json_whatever_the_names(self, evil: tuple[Path, Path]) -> None:
        done = run_cli("inspect", evil[0], "--json")
        assert json.loads(done.stdout)["producer"].startswith("\x1b[31m")
        assert not CONTROL.search(done.stdout)

    def test_every_error_is_one_printable_line(self) -> None:
        error = ModelError(f"bad\n{EVIL}")
        assert str(error) == printable(f"bad {EVIL}")
        assert not CONTROL.search(str(error)) and "\n" not in str(error)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **keywords: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    result = onnx_hyvit.quantize(convolution(), tmp_path / "o.onnx", calibration=data())
    onnx_hyvit.compare(convolution(), result.model, data(), samples=2, runs=2)
    onnx_hyvit.inspect(convolution())
