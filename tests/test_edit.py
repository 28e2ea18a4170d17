from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_graphsurgeon as gs
import pytest

from onnx_hyvit.graph import edit, load_model, model_to_proto


def model_of(body: str, head: str = "float[2, 3] x) => (float[2, 3] y"):
    text = f'<ir_version: 9, opset_import: ["" : 20]> agraph ({head}) {{ {body} }}'
    return load_model(onnx.parser.parse_model(text))


def node_of(model, op: str):
    return next(node for node in model.graph.nodes if node.op == op)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("c = Constant<value_float = 2.5>() y = Mul(x, c)", np.float32(2.5)),
        ("c = Constant<value = float[1] {3}>() i = Identity(c) y = Mul(x, i)", np.array([3], np.float32)),
        ("c = Constant<value_floats = [1.0, 2.0, 3.0]>() y = Mul(x, c)", np.array([1, 2, 3], np.float32)),
    ],
)
def test_constant_of(body: str, expected: np.ndarray) -> None:
    found = edit.constant_of(node_of(model_of(body), "Mul").inputs[1])
    assert found is not None and found.dtype == np.float32 and found.shape == np.shape(expected)
    np.testing.assert_array_equal(found, expected)


def test_computed_tensors_are_not_constant() -> None:
    model = model_of("s = Sigmoid(x) y = Mul(x, s)")
    assert edit.constant_of(node_of(model, "Mul").inputs[1]) is None
    assert edit.scalar_of(model.graph.inputs[0]) is None
    assert edit.constant_of(None) is None


def test_names_are_unique_over_bodies_too() -> None:
    body = """y = If<then_branch = t () => (float[2, 3] inner) { inner = Relu(x) },
                    else_branch = e () => (float[2, 3] other) { other = Abs(x) }>(c)"""
    model = model_of(body, "float[2, 3] x, bool c) => (float[2, 3] y")
    assert edit.unique_name(model.graph, "inner") == "inner_1"
    assert edit.unique_name(model.graph, "inner") == "inner_2"
    assert edit.unique_name(model.graph, "fresh") == "fresh"
    assert {"inner", "x"} <= edit.names_used_by_subgraphs(model.graph)
    assert edit.has_subgraph(node_of(model, "If"))


def test_new_constants_keep_shape_and_dtype() -> None:
    model = model_of("y = Relu(x)")
    scalar = edit.new_constant(model.graph, "k", np.array(2, np.float16))
    assert scalar.shape == () and scalar.dtype == np.float16
    strided = edit.new_constant(model.graph, "k", np.arange(6, dtype=np.int8).reshape(2, 3).T)
    assert strided.name == "k_1" and strided.values.flags["C_CONTIGUOUS"]


def test_bypass_keeps_the_name_of_a_graph_output() -> None:
    model = model_of("r = Relu(x) y = Identity(r)")
    assert edit.bypass(model.graph, node_of(model, "Identity"))
    model.graph.cleanup().toposort()
    assert [node.op for node in model.graph.nodes] == ["Relu"]
    assert model.graph.nodes[0].outputs[0].name == "y"


def test_bypass_of_output_redirects_the_other_readers() -> None:
    model = model_of(
        "r = Relu(x) s = Abs(r) z = Exp(s) y = Identity(r)", "float[2, 3] x) => (float[2, 3] y, float[2, 3] z"
    )
    assert edit.bypass(model.graph, node_of(model, "Identity"))
    model.graph.cleanup().toposort()
    assert node_of(model, "Abs").inputs[0].name == "y"
    model_to_proto(model, check=True)


@pytest.mark.parametrize(
    ("body", "head"),
    [
        ("y = Identity(x)", "float[2, 3] x) => (float[2, 3] y"),
        ("z = Relu(x) y = Identity(z)", "float[2, 3] x) => (float[2, 3] y, float[2, 3] z"),
    ],
)
def test_bypass_refuses_to_rename_inputs_and_outputs(body: str, head: str) -> None:
    model = model_of(body, head)
    assert not edit.bypass(model.graph, node_of(model, "Identity"))
    assert node_of(model, "Identity").outputs[0].name == "y"


def test_bypass_refuses_a_tensor_that_a_body_reads_by_name() -> None:
    body = """r = Relu(x) z = If<then_branch = t () => (float[2, 3] a) { a = Abs(r) },
              else_branch = e () => (float[2, 3] b) { b = Exp(r) }>(c) y = Identity(r)"""
    model = model_of(body, "float[2, 3] x, bool c) => (float[2, 3] y, float[2, 3] z")
    assert not edit.bypass(model.graph, node_of(model, "Identity"))
    model_to_proto(model, check=True)


def test_take_over_output_of_one_among_several() -> None:
    model = model_of(
        "a, b = Split<axis = 0, num_outputs = 2>(x) y = Abs(a) z = Exp(b)",
        "float[2, 3] x) => (float[1, 3] y, float[1, 3] z",
    )
    split = node_of(model, "Split")
    node = edit.add_node(model.graph, "ReduceMax", [model.graph.inputs[0]], attrs={"keepdims": 1})
    edit.take_over_output(node, split.outputs[0])
    assert [tensor.name for tensor in split.outputs] == ["", "b"]
    assert node.outputs[0].name == "a" and node_of(model, "Abs").i() is node


def test_only_consumer() -> None:
    model = model_of("r = Relu(x) y = Abs(r)")
    relu = node_of(model, "Relu")
    assert edit.only_consumer_of(model.graph, relu.outputs[0]) is node_of(model, "Abs")
    assert edit.only_consumer_of(model.graph, model.graph.outputs[0]) is None
    twice = model_of("r = Relu(x) y = Mul(r, r)")
    assert edit.only_consumer_of(twice.graph, node_of(twice, "Relu").outputs[0]) is None


def test_integers_from_input_or_attribute() -> None:
    model = model_of("s = Constant<value = int64[1] {-1}>() y = Unsqueeze(x, s)", "float[2, 3] x) => (float[2, 3, 1] y")
    assert edit.ints_of(node_of(model, "Unsqueeze"), "axes", 1) == (-1,)
    model = model_of("y = Transpose<perm = [1, 0]>(x)", "float[2, 3] x) => (float[3, 2] y")
    assert edit.ints_of(node_of(model, "Transpose"), "perm") == (1, 0)
    assert edit.ints_of(node_of(model, "Transpose"), "axes", 1) is None


def test_shapes_of_tensors() -> None:
    model = model_of("y = Relu(x)", "float[N, 3] x) => (float[N, 3] y")
    x = model.graph.inputs[0]
    assert edit.static_shape(x) is None and edit.rank_of(x) == 2
    assert edit.dim_of(x, -1) == 3 and edit.dim_of(x, 0) is None and edit.dim_of(x, 5) is None


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (["N", 5], ["N", 5], True),
        (["N", 5], [1, 5], False),
        (["N", 5], ["M", 5], False),
        ([5], [1, 5], False),
        (["unk__0", 5], ["unk__0", 5], False),
        ([None, 5], [None, 5], False),
        (None, None, False),
        ([], [], True),
    ],
)
def test_shapes_are_the_same_only_where_both_are_known(first, second, same: bool) -> None:
    a, b = (gs.Variable(name, np.float32, shape) for name, shape in (("a", first), ("b", second)))
    assert edit.same_shape(a, b) is same
