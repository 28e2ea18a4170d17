"""The reverse sweep: paths that meet, targets that gradients do not reach, and what is reported."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from onnx_hyvit.backward import build_backward, linear_loss
from onnx_hyvit.errors import ModelError

HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'


def _parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEAD + text)


def _gradients(proto, targets, run_model, observe_model, feeds):
    values = observe_model(proto, feeds)
    shapes = {name: value.shape for name, value in values.items()}
    outputs = {output.name: shapes[output.name] for output in proto.graph.output}
    model = build_backward(proto, targets, linear_loss(outputs), shapes)
    onnx.checker.check_model(model.proto, full_check=True)
    ones = {f"noise/{name}": np.ones(shape, np.float32) for name, shape in outputs.items()}
    return model, run_model(model.proto, {**feeds, **ones})


def test_gradients_of_several_consumers_add_up(run_model, observe_model) -> None:
    proto = _parse("g (float[2,3] x) => (float[2,3] y) { a = Mul(x, x)  b = Mul(a, x)  y = Add(a, b) }")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    model, found = _gradients(proto, ["x", "a"], run_model, observe_model, {"x": x})
    np.testing.assert_allclose(found[model.gradients["x"]], 2 * x + 3 * x**2, rtol=1e-6)
    np.testing.assert_allclose(found[model.gradients["a"]], 1 + x, rtol=1e-6)


def test_one_tensor_used_twice_by_a_node(run_model, observe_model) -> None:
    proto = _parse("g (float[3,3] x) => (float[3,3] y) { y = MatMul(x, x) }")
    x = np.arange(9, dtype=np.float32).reshape(3, 3)
    model, found = _gradients(proto, ["x"], run_model, observe_model, {"x": x})
    ones = np.ones((3, 3))
    np.testing.assert_allclose(found[model.gradients["x"]], ones @ x.T + x.T @ ones, rtol=1e-6)


def test_an_operator_without_a_rule_blocks_only_what_depends_on_it(run_model, observe_model) -> None:
    proto = _parse(
        """g (float[1,2,4,4] x) => (float[1,2,4,4] y) {
           a = Relu(x)  b = Acosh(a)  c = Tanh(x)  y = Add(b, c)
        }"""
    )
    feeds = {"x": np.random.default_rng(0).uniform(1.5, 3, (1, 2, 4, 4)).astype(np.float32)}
    model, found = _gradients(proto, ["x", "a", "b", "c"], run_model, observe_model, feeds)
    assert [(item.op, item.reason) for item in model.unsupported] == [("Acosh", "no VJP rule")]
    assert model.missing == ("x", "a")
    assert set(found) == {"grad/b", "grad/c"}


def test_a_gradient_stops_at_operators_without_slope(run_model, observe_model) -> None:
    proto = _parse("g (float[4] x, float[4] z) => (float[4] y) { a = Round(x)  y = Mul(a, z) }")
    feeds = {"x": np.ones(4, np.float32), "z": np.full(4, 2, np.float32)}
    model, found = _gradients(proto, ["x", "a"], run_model, observe_model, feeds)
    assert model.disconnected == ("x",)
    assert not model.unsupported
    np.testing.assert_array_equal(found["grad/a"], feeds["z"])


def test_the_sweep_stops_at_the_targets(observe_model) -> None:
    proto = _parse("g (float[4] x) => (float[4] y) { a = Acosh(x)  b = Tanh(a)  y = Tanh(b) }")
    shapes = dict.fromkeys("xaby", (4,))
    model = build_backward(proto, ["b"], linear_loss({"y": (4,)}), shapes)
    assert not model.unsupported
    assert set(model.gradients) == {"b"}


def test_shape_arithmetic_is_followed(run_model, observe_model) -> None:
    proto = _parse(
        """g (float[2,6] x) => (float[2,2] y)
        <int64[1] one = {1}, int64[1] three = {3}, int64[1] axis = {1}, int64 column = {1}> {
           s = Shape(x)  columns = Gather(s, column)  end = Unsqueeze(columns, axis0)
           axis0 = Constant<value = int64[1] {0}>()
           half = Div(columns, two)  two = Constant<value = int64 {2}>()
           start = Reshape(half, one)  last = Sub(columns, column)  stop = Reshape(last, one)
           y = Slice(x, start, stop, axis)
        }"""
    )
    order = ["s", "axis0", "two", "columns", "end", "half", "start", "last", "stop", "y"]
    nodes = sorted(proto.graph.node, key=lambda node: order.index(node.output[0]))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    feeds = {"x": np.zeros((2, 6), np.float32)}
    _, found = _gradients(proto, ["x"], run_model, observe_model, feeds)
    np.testing.assert_array_equal(found["grad/x"], [[0, 0, 0, 1, 1, 0]] * 2)


def test_unknown_targets_and_missing_shapes_are_named() -> None:
    proto = _parse("g (float[4] x) => (float[4] y) { a = Softmax(x)  y = Tanh(a) }")
    loss = linear_loss({"y": (4,)})
    with pytest.raises(ModelError, match="'nowhere'"):
        build_backward(proto, ["nowhere"], loss, {"x": (4,), "y": (4,), "a": (4,)})
    with pytest.raises(ModelError, match="shape of tensor 'x'"):
        build_backward(proto, ["x"], loss, {"y": (4,), "a": (4,)})


def test_old_opsets_are_refused() -> None:
    proto = _parse("g (float[4] x) => (float[4] y) { y = Tanh(x) }")
    proto.opset_import[0].version = 11
    with pytest.raises(ModelError, match="opset 13"):
        build_backward(proto, ["x"], linear_loss({"y": (4,)}), {"x": (4,), "y": (4,)})


def test_the_forward_model_is_left_as_it_was() -> None:
    proto = _parse("g (float[4] x) => (float[4] y) { y = Tanh(x) }")
    before = proto.SerializeToString()
    build_backward(proto, ["x"], linear_loss({"y": (4,)}), {"x": (4,), "y": (4,)})
    assert proto.SerializeToString() == before


def test_max_pool_needs_an_opset_with_scatter_add(observe_model) -> None:
    proto = _parse("g (float[1,1,4,4] x) => (float[1,1,2,2] y) { y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) }")
    proto.opset_import[0].version = 15
    loss = linear_loss({"y": (1, 1, 2, 2)})
    model = build_backward(proto, ["x"], loss, {"x": (1, 1, 4, 4), "y": (1, 1, 2, 2)})
    assert "opset 16" in model.unsupported[0].reason
