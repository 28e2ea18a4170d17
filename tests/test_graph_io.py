from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

from onnx_hyvit.errors import ModelError, OutputError
from onnx_hyvit.graph import io, load_model, model_to_proto, save_proto, write
from onnx_hyvit.graph.check import default_opset

TEXT = """agraph (float[N, 3, 4, 4] image) => (float[N, 2, 4, 4] scores)
  <float[2, 3, 1, 1] w = {1, 2, 3, 4, 5, 6}> { c = Conv(image, w) scores = Relu(c) }"""


def small(opset: int = 20) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {TEXT}')


def run(proto: onnx.ModelProto, batch: int = 2) -> np.ndarray:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).standard_normal((batch, 3, 4, 4)).astype(np.float32)
    return session.run(None, {"image": image})[0]


def test_path_bytes_and_proto_give_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(small(), path)
    protos = [model_to_proto(load_model(source)) for source in (path, str(path), path.read_bytes(), small())]
    assert len({proto.SerializeToString(deterministic=True) for proto in protos}) == 1
    assert load_model(path).path == str(path)


def test_the_given_proto_is_not_changed() -> None:
    proto = small(13)
    before = proto.SerializeToString(deterministic=True)
    load_model(proto)
    assert proto.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 20, 21])
def test_opset_is_raised_and_outputs_stay(opset: int) -> None:
    proto = small(opset)
    model = load_model(proto)
    assert model.opset == max(opset, 20)
    after = model_to_proto(model, check=True)
    assert default_opset(after) == model.opset
    np.testing.assert_allclose(run(after), run(proto), rtol=1e-6)


def test_dynamic_batch_and_names_are_kept() -> None:
    proto = model_to_proto(load_model(small()), check=True)
    assert proto.graph.input[0].name == "image" and proto.graph.output[0].name == "scores"
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_metadata_and_doc_strings_are_kept() -> None:
    proto = small()
    proto.producer_name, proto.producer_version, proto.doc_string = "maker", "1.2", "about the model"
    proto.domain, proto.model_version = "org.example", 7
    proto.graph.doc_string, proto.graph.name = "about the graph", "net"
    proto.metadata_props.add(key="classes", value="2")
    proto.graph.metadata_props.add(key="graph", value="yes")
    proto.graph.node[1].doc_string = "about the node"
    proto.graph.node[1].metadata_props.add(key="layer", value="act")
    model = load_model(proto)
    assert model.producer == "maker 1.2"
    after = model_to_proto(model, check=True)
    for key in ("producer_name", "producer_version", "doc_string", "domain", "model_version"):
        assert getattr(after, key) == getattr(proto, key)
    assert after.graph.doc_string == "about the graph" and after.graph.name == "net"
    assert [(p.key, p.value) for p in after.metadata_props] == [("classes", "2")]
    assert [(p.key, p.value) for p in after.graph.metadata_props] == [("graph", "yes")]
    assert after.graph.node[1].doc_string == "about the node"
    assert after.graph.node[1].metadata_props[0].value == "act"


def test_local_functions_are_kept_and_run() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        agraph (float[N, 3, 4, 4] image) => (float[N, 3, 4, 4] scores) { a = local.twice(image) scores = Relu(a) }
        <domain: "local", opset_import: ["" : 17]> twice (x) => (y) { y = Add(x, x) }"""
    proto = onnx.parser.parse_model(text)
    model = load_model(proto)
    after = model_to_proto(model)
    assert [function.name for function in after.functions] == ["twice"]
    assert {entry.domain for entry in after.opset_import} == {"", "local"}
    np.testing.assert_allclose(run(after), run(proto))


def test_names_of_nodes_become_unique() -> None:
    proto = small()
    for node in proto.graph.node:
        node.name = "same"
    names = [node.name for node in load_model(proto).graph.nodes]
    assert len(set(names)) == len(names) == 2
    assert all(node.name for node in load_model(small()).graph.nodes)


def test_initializers_among_the_inputs_are_no_inputs() -> None:
    proto = small()
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [2, 3, 1, 1]))
    after = model_to_proto(load_model(proto))
    assert [value.name for value in after.graph.input] == ["image"]
    np.testing.assert_allclose(run(after), run(small()))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello, I am a text file\n" * 20, "not an ONNX model"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "not an ONNX model"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=reason) as caught:
        load_model(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files(tmp_path: Path, share: float) -> None:
    data = small().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load_model(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="folder"):
        load_model(tmp_path)


@pytest.mark.parametrize("opset", [6, 99])
def test_opsets_out_of_range(opset: int) -> None:
    proto = small()
    proto.opset_import[0].version = opset
    with pytest.raises(ModelError, match=f"opset {opset} is not supported"):
        load_model(proto)


def test_custom_domain_is_named() -> None:
    proto = small()
    proto.opset_import.append(onnx.helper.make_opsetid("my.ops", 1))
    proto.graph.node[1].domain = "my.ops"
    with pytest.raises(ModelError, match=r"my\.ops"):
        load_model(proto)


def test_quantized_models_are_refused_unless_wanted() -> None:
    text = """<ir_version: 9, opset_import: ["" : 20]> agraph (float[2] x) => (float[2] y)
        <float s = {0.1}, uint8 z = {0}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"""
    proto = onnx.parser.parse_model(text)
    with pytest.raises(ModelError, match="already quantized"):
        load_model(proto)
    assert len(load_model(proto, quantized_ok=True).graph.nodes) == 2


def test_invalid_graphs_are_refused() -> None:
    proto = small()
    proto.graph.node[1].input[0] = "nowhere"
    with pytest.raises(ModelError, match="invalid model"):
        load_model(proto)


def external(folder: Path) -> Path:
    proto = small()
    weights = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w"))
    path = folder / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (folder / "weights.bin").stat().st_size == 24
    return path


def edit_location(path: Path, **entries: str) -> None:
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key in entries:
            entry.value = entries[entry.key]
    path.write_bytes(proto.SerializeToString())


def test_external_data_is_read(tmp_path: Path) -> None:
    proto = model_to_proto(load_model(external(tmp_path)))
    np.testing.assert_allclose(run(proto), run(small()))


def test_missing_external_data(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"weights\.bin.*missing"):
        load_model(path)


@pytest.mark.parametrize("kind", ["parent", "absolute", "link"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "inner").mkdir()
    path = external(tmp_path / "inner")
    outside = tmp_path / "secret.bin"
    outside.write_bytes(bytes(24))
    if kind == "link":
        (tmp_path / "inner" / "weights.bin").unlink()
        os.symlink(outside, tmp_path / "inner" / "weights.bin")
    else:
        edit_location(path, location="../secret.bin" if kind == "parent" else str(outside))
    with pytest.raises(ModelError, match="outside the model's folder"):
        load_model(path)


@pytest.mark.parametrize("entries", [{"length": "9999"}, {"offset": "-4"}, {"length": "many"}])
def test_external_data_with_impossible_extent(tmp_path: Path, entries: dict[str, str]) -> None:
    path = external(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    tensor = proto.graph.initializer[0]
    known = {entry.key: entry.value for entry in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in known.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="external"):
        load_model(path)


def test_saving_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")
    size = save_proto(small(), path)
    assert path.stat().st_size == size and os.listdir(tmp_path) == ["out.onnx"]
    onnx.checker.check_model(onnx.load(path))
    assert path.stat().st_mode & 0o777 == 0o666 & ~write.umask()


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        save_proto(small(), path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["out.onnx"]


def test_an_interrupt_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(source: str, destination: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_proto(small(), tmp_path / "out.onnx")
    assert os.listdir(tmp_path) == []


def test_impossible_destinations(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        save_proto(small(), tmp_path / "none" / "out.onnx")
    with pytest.raises(OutputError, match="folder"):
        save_proto(small(), tmp_path)


def test_models_above_the_limit_get_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = small()
    big = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "unused")
    proto.graph.initializer.append(big)
    monkeypatch.setattr(write, "PROTO_LIMIT", 1000)
    path = tmp_path / "big.onnx"
    size = save_proto(proto, path)
    assert sorted(os.listdir(tmp_path)) == ["big.onnx", "big.onnx.data"]
    assert size == sum(file.stat().st_size for file in tmp_path.iterdir())
    loaded = onnx.load(path)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(loaded.graph.initializer[-1]), 1.0)


@pytest.mark.parametrize("as_bytes", [True, False])
def test_sizes_that_exporters_write_for_unknown_are_unknown(as_bytes):
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,3,4,5] x) => (float[1,3,4,5] y) { y = Relu(x) }""")
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    dims[0].dim_value, dims[2].dim_param, dims[3].dim_param = -1, "?", "?"
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 0
    known, _ = io.read_proto(proto.SerializeToString() if as_bytes else proto)
    shape = [(dim.dim_value, dim.dim_param) for dim in known.graph.input[0].type.tensor_type.shape.dim]
    assert shape == [(0, ""), (3, ""), (0, ""), (0, "")]
    assert not known.graph.output[0].type.tensor_type.shape.dim[0].HasField("dim_value")
    assert dims[0].dim_value == -1, "the caller's model is not changed"
