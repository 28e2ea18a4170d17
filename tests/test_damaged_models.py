"""Models that ``make fuzz`` found: each used to end in a traceback."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnx_hyvit
from onnx_hyvit import CalibrationError, ModelError
from onnx_hyvit.graph import load_model, model_to_proto
from onnx_hyvit.inference import propagate_shapes
from onnx_hyvit.labels import load_labels

HEAD = '<ir_version: 9, opset_import: ["": 20, "local": 1]> g (float[1,3,8,8] x) => (float[1,3,8,8] y)'


def branch(nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, "branch", [], [helper.make_empty_tensor_value_info(output)])


def with_if(text: str, then: onnx.GraphProto, other: onnx.GraphProto) -> onnx.ModelProto:
    """A model whose first node is an If with the given branches, which makes ``c``."""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(helper.make_tensor("condition", TensorProto.BOOL, [], [True]))
    made = helper.make_node("If", ["condition"], ["c"], "if", then_branch=then, else_branch=other)
    proto.graph.node.insert(0, made)
    return proto


def test_local_functions_beside_bodies() -> None:
    """Sorting functions never ended where the graph had bodies."""
    relu = branch([helper.make_node("Relu", ["x"], ["a"])], "a")
    proto = with_if(f"{HEAD} {{ y = local.twice(c) }}", relu, relu)
    twice = helper.make_node("Add", ["v", "v"], ["w"])
    proto.functions.append(helper.make_function("local", "twice", ["v"], ["w"], [twice], [helper.make_opsetid("", 20)]))
    assert onnx_hyvit.inspect(proto)["opset"] == 20
    assert model_to_proto(load_model(proto), check=True).functions[0] == proto.functions[0]


def test_names_of_a_body_that_come_again_outside() -> None:
    """A body's own name was taken for the outer tensor made later, which put the nodes in a circle."""
    relu = branch([helper.make_node("Neg", ["x"], ["b"]), helper.make_node("Relu", ["b"], ["a"])], "a")
    proto = with_if(f"{HEAD} {{ b = Neg(c) y = Relu(b) }}", relu, relu)
    assert onnx_hyvit.inspect(proto)["blocks"]


@pytest.mark.parametrize("kind", ["input", "output"])
def test_optional_values_are_refused(kind: str) -> None:
    proto = onnx.parser.parse_model(f"{HEAD} {{ y = Relu(x) }}")
    value = getattr(proto.graph, kind)[0]
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
    value.type.CopyFrom(helper.make_optional_type_proto(tensor))
    with pytest.raises(ModelError, match=f"{kind} .* is of type optional"):
        load_model(proto)


def test_constants_of_strings_are_refused() -> None:
    proto = onnx.parser.parse_model(f"{HEAD} {{ y = Relu(x) }}")
    proto.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [1], [b"word"]))
    with pytest.raises(ModelError, match="'words' holds strings"):
        load_model(proto)


@pytest.mark.parametrize(("limit", "known"), [(100, True), (10**11, False)])
def test_a_long_range_is_kept_from_shape_inference(limit: int, known: bool) -> None:
    text = (
        f"{HEAD} {{ a = Constant<value = int64 {{0}}>() b = Constant<value = int64 {{{limit}}}>() "
        "d = Constant<value = int64 {1}>() r = Range(a, b, d) y = Relu(x) }"
    )
    proto = onnx.parser.parse_model(text)
    found = propagate_shapes(proto)
    assert [node.domain for node in found.graph.node] == [""] * 5
    assert list(found.opset_import) == list(proto.opset_import)
    assert any(value.name == "r" for value in found.graph.value_info) == known


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "99999999999999999999999"),
        ("a.csv", "file,label\n0.png,\u00b2\n1.png,\u00b2\n"),
        ("a.csv", f"0.png,{'9' * (csv.field_size_limit() + 1)}"),
        ("a.txt", "\ud800"),
    ],
)
def test_labels_that_are_no_numbers(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CalibrationError, match=name):
        load_labels(tmp_path / name)


def test_labels_beyond_the_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(4))
    data = (tmp_path / "a.npy").read_bytes().replace(b"(4,)", b"(9999999,)")
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(CalibrationError, match=r"a\.npy"):
        load_labels(tmp_path / "a.npy")
