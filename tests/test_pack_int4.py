"""4-bit weights as INT4: the same codes in half the bytes, the same values, told and refused where it must be."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, numpy_helper
from qdq_graphs import parse
from test_mixed_precision import DATA, GRAPH, kl, weights

import onnx_hyvit
from onnx_hyvit.config import QuantConfig
from onnx_hyvit.errors import ConfigError, ModelError, TargetError
from onnx_hyvit.graph import model_to_proto
from onnx_hyvit.graph.int4 import int4_codes, is_int4, pack_int4, unpack_int4
from onnx_hyvit.runtime import make_session

SIGNED = np.array([[-8, 7, 0], [1, -1, 5], [-7, 3, 2]], np.int8)  # an odd number of codes
UNSIGNED = (SIGNED + 8).astype(np.uint8)
FEEDS = {"x": np.random.default_rng(3).standard_normal((4, 3)).astype(np.float32)}


def layer(codes: np.ndarray) -> onnx.ModelProto:
    """A MatMul on dequantized ``codes``, with a scale per column."""
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
        g (float[4,3] x) => (float[4,3] y) { wd = DequantizeLinear<axis=1>(w, s, z) y = MatMul(x, wd) }""")
    middle = np.full(3, 8 if codes.dtype == np.uint8 else 0, codes.dtype)
    for name, value in {"w": codes, "s": np.array([0.5, 2, 3], np.float32), "z": middle}.items():
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    proto.graph.node[1].name = "y"
    return proto


def tensor(proto: onnx.ModelProto, name: str) -> TensorProto:
    return next(entry for entry in proto.graph.initializer if entry.name == name)


@pytest.mark.parametrize("codes", [SIGNED, UNSIGNED])
def test_two_codes_share_a_byte_and_no_value_changes(codes):
    proto = layer(codes)
    before = make_session(proto, optimize="none").run(FEEDS)["y"]
    packed = pack_int4(proto, {"y"})
    halves = [int(code) % 16 for code in codes.reshape(-1)] + [0]
    wanted = bytes(low + 16 * high for low, high in zip(halves[::2], halves[1::2], strict=True))
    assert tensor(proto, "w").raw_data == wanted
    assert (packed.weights, packed.bytes_before, packed.bytes_after) == (("w",), 9, 5)
    assert np.array_equal(int4_codes(tensor(proto, "w")), codes)
    onnx.checker.check_model(proto, full_check=True)
    assert np.array_equal(make_session(proto, optimize="none").run(FEEDS)["y"], before)
    unpack_int4(proto)
    assert np.array_equal(numpy_helper.to_array(tensor(proto, "w")), codes)


def test_onnx_reads_what_is_packed():
    proto = layer(SIGNED)
    pack_int4(proto, {"y"})
    assert np.array_equal(numpy_helper.to_array(tensor(proto, "w")).astype(np.int8), SIGNED)


def test_codes_stored_without_raw_data_are_read():
    stored = onnx.helper.make_tensor("w", TensorProto.INT4, (3, 3), SIGNED.reshape(-1))
    assert not stored.raw_data and np.array_equal(int4_codes(stored), SIGNED)


def test_other_layers_and_wider_codes_are_left_alone():
    proto = layer(SIGNED)
    untouched = proto.SerializeToString()
    assert pack_int4(proto, {"another"}).weights == () and proto.SerializeToString() == untouched
    with pytest.raises(ModelError, match="do not fit into 4 bits"):
        pack_int4(layer(SIGNED * 2), {"y"})


@pytest.fixture(scope="module")
def proto():
    return model_to_proto(parse(GRAPH, **weights()))


def quantized(proto, **settings):
    config = QuantConfig(
        **{"samples": None, "cache": False, "threads": 1, "recipe": "minmax", "objective": "size", **settings}
    )
    return onnx_hyvit.quantize(proto, calibration={"x": DATA}, config=config)


@pytest.mark.parametrize("bits", ["w4a8", "w2a4"])
def test_a_packed_model_has_the_values_of_the_plain_one(proto, bits):
    plain, packed = quantized(proto, bits=bits, opset=21), quantized(proto, bits=bits, pack_int4=True)
    runs = [make_session(result.model, optimize="none").run({"x": DATA})["y"] for result in (plain, packed)]
    assert np.array_equal(*runs)
    assert kl(plain.model, packed.model) < 1e-4, "and about the same where kernels are fused"
    saved = sum(value.size for value in weights().values() if value.ndim > 1) // 2
    assert packed.report["size"]["int4_saved_bytes"] == saved and packed.report["size"]["int4_weights"] == 4
    assert plain.model.ByteSize() - packed.model.ByteSize() == pytest.approx(saved, abs=64)
    assert sum(map(is_int4, packed.model.graph.initializer)) == 8, "4 weights with their zero points"


def test_it_is_told_once_and_is_no_fault(proto):
    result = quantized(proto, bits="w4a8", pack_int4=True)
    assert [note.split(":")[0] for note in result.report["findings"]] == ["opset", "int4-weights"]
    assert "raised to 21" in result.report["findings"][0] and "in float" in result.report["findings"][1]
    found = onnx_hyvit.audit(result.model)
    assert found.clean and found.counts["float_by_type"] == found.counts["float_weighted"] == 4


def test_nothing_is_said_of_the_opset_that_was_asked_for(proto):
    result = quantized(proto, bits="w4a8", pack_int4=True, opset=22)
    assert result.model.opset_import[0].version == 22
    assert not any(note.startswith("opset") for note in result.report["findings"])


def test_a_wasted_int8_weight_is_still_a_fault_beside_a_packed_one():
    body = """q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
        wd = DequantizeLinear(w, s, z4) c = Conv(d, wd) ud = DequantizeLinear(u, s, z8) e = Conv(d, ud) y = Sub(c, e)"""
    text = f'<ir_version: 10, opset_import: ["" : 21]> g (float[1,16,8,8] x) => (float[1,16,8,8] y) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    codes = np.random.default_rng(0).integers(-7, 8, (16, 16, 1, 1)).astype(np.int8)
    values = {"s": np.float32(0.02), "z": np.uint8(128), "z4": np.int8(0), "z8": np.int8(0), "w": codes, "u": codes}
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())
    for node in proto.graph.node:
        node.name = node.output[0]
    pack_int4(proto, {"c"})
    found = onnx_hyvit.audit(proto)
    assert [kernel.node for kernel in found.float_by_type] == ["c"]
    assert [kernel.node for kernel in found.float_int8_weights] == ["e"]
    assert [kernel.node for kernel in found.dequantized_weights] == ["ud"] and not found.clean


def test_inspect_compare_and_check_read_it(proto):
    model = quantized(proto, bits="w4a8", pack_int4=True).model
    assert onnx_hyvit.inspect(model)["opset"] == 21
    assert onnx_hyvit.compare(proto, model, {"x": DATA}, runs=2)["fused_matches_unfused"]
    problems = {entry["problem"] for entry in onnx_hyvit.check(model, "tensorrt")["problems"]}
    assert "the weight is INT4, which tensorrt cannot read" in problems
    assert not any("INT4" in entry["problem"] for entry in onnx_hyvit.check(model, "qnn")["problems"])


def test_export_mobile_says_that_it_cannot(proto, tmp_path):
    with pytest.raises(ModelError, match="holds INT4 weights"):
        onnx_hyvit.export_mobile(quantized(proto, bits="w4a8", pack_int4=True).model, tmp_path / "mobile")


@pytest.mark.parametrize("bits", ["w8a8", "w5a8"])
def test_wider_weights_cannot_be_packed(bits):
    with pytest.raises(ConfigError, match="pack_int4 needs weights of 4 bits or fewer"):
        QuantConfig(bits=bits, pack_int4=True)


def test_a_target_that_cannot_read_it_refuses(proto, tmp_path):
    with pytest.raises(TargetError, match="target tensorrt cannot read INT4 weights; leave out pack_int4"):
        quantized(proto, bits="w4a8", pack_int4=True, target="tensorrt")
    old = tmp_path / "old.toml"
    old.write_text('extends = "ort-x86"\nname = "old"\n[options]\nopsets = [13, 19]\n')
    with pytest.raises(TargetError, match="target old takes opsets up to 19, pack_int4 needs 21"):
        quantized(proto, bits="w4a8", pack_int4=True, target=str(old))


def test_a_model_whose_opset_cannot_be_raised_is_refused(proto):
    stuck = onnx.ModelProto()
    stuck.CopyFrom(proto)
    function = onnx.helper.make_function(
        "local", "Same", ["a"], ["b"], [onnx.helper.make_node("Identity", ["a"], ["b"])],
        [onnx.helper.make_opsetid("", 20)],
    )  # fmt: skip
    stuck.functions.append(function)
    with pytest.raises(ModelError, match="opset 20 cannot be raised to 21, which pack_int4 needs"):
        quantized(stuck, bits="w4a8", pack_int4=True)
