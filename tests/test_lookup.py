"""Tables of a graph: fixed tensors, who makes and who reads one."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper

from onnx_hyvit.graph.lookup import Lookup, by_longest_name

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[2] x, bool c) => (float[2] y, float[2] z) <float[2] w = {1, 2}> {
        k = Constant<value = float[2] {3, 4}>()
        a = Add(x, x)
        y = If(c) <
            then_branch = t () => (float[2] p) { p = Mul(a, w) },
            else_branch = e () => (float[2] q) { q = Mul(k, k) }>
        z = Add(a, w) }"""


def test_constants_makers_and_readers() -> None:
    graph = onnx.parser.parse_model(TEXT).graph
    view = Lookup(graph)
    constant, add, branch, last = graph.node
    assert set(view.constants) == {"w", "k"} and view.outputs == {"y", "z"}
    np.testing.assert_array_equal(view.value("k"), [3, 4])
    assert view.value("a") is None
    assert view.makers == {"k": constant, "a": add, "y": branch, "z": last}
    assert view.readers["x"] == [add], "each node once"
    assert view.readers["a"] == [branch, last], "bodies read, too"
    assert view.readers["k"] == [branch]
    np.testing.assert_array_equal(view.operand(last, 1), [1, 2])
    assert view.operand(last, 2) is None


def test_narrow_codes_are_read_in_eight_bits() -> None:
    codes = {"signed": (TensorProto.INT4, [-8, 7, -1]), "unsigned": (TensorProto.UINT4, [15, 0, 9])}
    tensors = [helper.make_tensor(name, kind, [3], values) for name, (kind, values) in codes.items()]
    view = Lookup(helper.make_graph([], "g", [], [], tensors))
    for name, dtype in (("signed", np.int8), ("unsigned", np.uint8)):
        found = view.value(name)
        assert found is not None and found.dtype == dtype
        np.testing.assert_array_equal(found, codes[name][1])


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("/MatMul", 1),
        ("/MatMul_gemm", 1),
        ("/MatMul_1", 2),
        ("/MatMul_1_gemm_1_unflatten", 2),
        ("/MatMul_12", 1),
        ("/Mat", None),
        ("/MatMul2", None),
        ("a__b", 3),
        ("_", None),
        ("", None),
    ],
)
def test_the_longest_known_name_counts(name: str, found: int | None) -> None:
    assert by_longest_name(name, {"/MatMul": 1, "/MatMul_1": 2, "a_": 3}) == found
