from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_graphsurgeon as gs
import pytest

from onnx_hyvit.graph import load_model
from onnx_hyvit.graph.pattern import Const, Match, NearMiss, OneOf, Op, Var, find_matches, match_at


def graph_of(body: str, outputs: str = "float[2, 3] y"):
    text = f'<ir_version: 9, opset_import: ["" : 20]> agraph (float[2, 3] x, float[2, 3] z) => ({outputs}) {{ {body} }}'
    return load_model(onnx.parser.parse_model(text)).graph


def silu() -> Op:
    x = Var("x")
    return Op("Mul", x, Op("Sigmoid", x, name="gate"))


@pytest.mark.parametrize("body", ["s = Sigmoid(x) y = Mul(x, s)", "s = Sigmoid(x) y = Mul(s, x)"])
def test_commutative_operands_match_in_either_order(body: str) -> None:
    (match,) = find_matches(graph_of(body), silu())
    assert match.tensor("x").name == "x"
    assert match.node("gate").op == "Sigmoid"
    assert match.output.name == "y"
    assert [node.op for node in match.nodes] == ["Mul", "Sigmoid"]


def test_the_same_var_is_the_same_tensor() -> None:
    assert list(find_matches(graph_of("s = Sigmoid(z) y = Mul(x, s)"), silu())) == []


def test_the_same_op_object_is_the_same_node() -> None:
    x = Var("x")
    root = Op("Exp", x)
    pattern = Op("Div", Op("Relu", root), Op("Abs", root))
    assert len(list(find_matches(graph_of("e = Exp(x) r = Relu(e) a = Abs(e) y = Div(r, a)"), pattern))) == 1
    split = "e = Exp(x) f = Exp(x) r = Relu(e) a = Abs(f) y = Div(r, a)"
    assert list(find_matches(graph_of(split), pattern)) == []


def test_order_matters_where_operands_do_not_commute() -> None:
    pattern = Op("Sub", Op("Relu", Var("a")), Var("b"))
    assert len(list(find_matches(graph_of("r = Relu(x) y = Sub(r, z)"), pattern))) == 1
    assert list(find_matches(graph_of("r = Relu(x) y = Sub(z, r)"), pattern)) == []


def test_alternatives_are_tried_on_backtracking() -> None:
    x = Var("x")
    pattern = Op("Add", OneOf(Op("Relu", x), Op("Abs", x)), Op("Exp", x))
    assert len(list(find_matches(graph_of("a = Abs(x) e = Exp(x) y = Add(e, a)"), pattern))) == 1


def test_constants_are_seen_through_constant_and_identity_nodes() -> None:
    pattern = Op("Mul", Var("x"), Const("k", value=0.5))
    for body in (
        "c = Constant<value = float {0.5}>() y = Mul(x, c)",
        "c = Constant<value_float = 0.5>() i = Identity(c) y = Mul(i, x)",
    ):
        (match,) = find_matches(graph_of(body), pattern)
        assert float(match.value("k")) == 0.5
    assert list(find_matches(graph_of("c = Constant<value = float {0.6}>() y = Mul(x, c)"), pattern)) == []


def test_a_constant_check_sees_the_array() -> None:
    pattern = Op("Mul", Var("x"), Const("k", check=lambda array: array.shape == (3,)))
    assert len(list(find_matches(graph_of("c = Constant<value = float[3] {1, 2, 3}>() y = Mul(x, c)"), pattern))) == 1
    assert list(find_matches(graph_of("c = Constant<value = float[1] {1}>() y = Mul(x, c)"), pattern)) == []


def test_identity_between_nodes_is_seen_through() -> None:
    assert len(list(find_matches(graph_of("s = Sigmoid(x) i = Identity(s) y = Mul(x, i)"), silu()))) == 1


def test_closed_matches_refuse_leaks_and_name_the_reader() -> None:
    near: list[NearMiss] = []
    graph = graph_of("s = Sigmoid(x) r = Relu(s) m = Mul(x, s) y = Add(m, r)")
    assert list(find_matches(graph, silu(), near_misses=near)) == []
    assert "also read by Relu" in near[0].reason
    assert len(list(find_matches(graph, silu(), closed=False))) == 1


def test_closed_matches_refuse_inner_graph_outputs() -> None:
    graph = graph_of("s = Sigmoid(x) y = Mul(x, s)", "float[2, 3] y, float[2, 3] s")
    found = match_at(graph, silu(), graph.nodes[-1])
    assert isinstance(found, NearMiss) and "is a graph output" in found.reason


def test_near_miss_names_the_deepest_culprit() -> None:
    x = Var("x")
    pattern = Op("Mul", x, Op("Sigmoid", Op("Exp", x)))
    graph = graph_of("a = Abs(x) s = Sigmoid(a) y = Mul(x, s)")
    found = match_at(graph, pattern, graph.nodes[-1])
    assert isinstance(found, NearMiss)
    assert found.reason == "expected Exp, found Abs"
    assert found.node == next(node.name for node in graph.nodes if node.op == "Abs")


def test_extra_check_and_attributes() -> None:
    pattern = Op("LeakyRelu", Var("x"), attrs=lambda attrs: attrs.get("alpha") == 0.25)
    graph = graph_of("y = LeakyRelu<alpha = 0.25>(x)")
    assert isinstance(match_at(graph, pattern, graph.nodes[0]), Match)
    refused = match_at(graph, pattern, graph.nodes[0], lambda match: "not today")
    assert isinstance(refused, NearMiss) and refused.reason == "not today"
    other = graph_of("y = LeakyRelu<alpha = 0.5>(x)")
    assert isinstance(match_at(other, pattern, other.nodes[0]), NearMiss)


def test_number_of_inputs_is_exact_unless_told() -> None:
    graph = graph_of("c = Constant<value = float {0.0}>() y = Clip(x, c)")
    assert list(find_matches(graph, Op("Clip", Var("x")))) == []
    assert len(list(find_matches(graph, Op("Clip", Var("x"), more_inputs=True)))) == 1


def test_a_chosen_output_of_a_node() -> None:
    graph = graph_of("w = Concat<axis = 1>(x, z) a, b = Split<axis = 1, num_outputs = 2>(w) y = Relu(b)")
    assert list(find_matches(graph, Op("Relu", Op("Split", Var("w"), output=0)))) == []
    assert len(list(find_matches(graph, Op("Relu", Op("Split", Var("w"), output=1)), closed=False))) == 1


def test_other_domains_do_not_match() -> None:
    x, y = gs.Variable("x", np.float32, [2]), gs.Variable("y", np.float32, [2])
    graph = gs.Graph([gs.Node("Gelu", "g", inputs=[x], outputs=[y], domain="com.microsoft")], [x], [y])
    assert list(find_matches(graph, Op("Gelu", Var("x")))) == []


def test_the_graph_may_be_edited_between_matches() -> None:
    graph = graph_of("a = Relu(x) b = Relu(a) y = Relu(b)")
    seen = []
    for match in find_matches(graph, Op("Relu", Var("x"))):
        seen.append(match.root.name)
        match.root.attrs["visited"] = 1
    assert len(seen) == len(set(seen)) == 3
