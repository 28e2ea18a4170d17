"""Files whose codes are converted between widths: each pair has a name of its own, and can be switched off."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from qdq_graphs import HEADER_21, feeds_of, parse, quantize, weight

import onnx_hyvit
from onnx_hyvit.diagnosis.pairs import GraphIndex, find_pairs
from onnx_hyvit.graph import model_to_proto
from onnx_hyvit.targets import load_target

TEXT = """g (float[1,16,8,8] x) => (float[1,16] y) {
    a = Conv(x, w, k) r = Relu(a) b = Conv(r, v, k) c = Conv(x, u, k) s = Add(b, c)
    p = GlobalAveragePool(s) y = Flatten(p) }"""


CONSTANTS = {name: weight(16, 16, 1, 1, seed=seed) for seed, name in enumerate("wvu")}
CONSTANTS["k"] = np.zeros(16, np.float32)


def models() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A float model, and its int8 model with 16 bits for one layer in each branch."""
    model = parse(TEXT, HEADER_21, **CONSTANTS)
    _, proto, _ = quantize(model, load_target("qnn"), wide_nodes=dict.fromkeys(("b", "c"), "a test"))
    return model_to_proto(model), proto


def test_a_converted_tensor_is_not_taken_for_the_tensor_itself():
    pairs = {pair.tensor: pair for pair in find_pairs(GraphIndex(models()[1].graph))}
    assert set(pairs) == {"x", "x_as_uint16", "r", "r_as_uint16", "b", "b_as_uint8", "c", "c_as_uint8", "s", "p", "y"}
    assert {name for name, pair in pairs.items() if pair.levels == 65536} == {"x_as_uint16", "r_as_uint16", "b", "c"}
    assert pairs["r_as_uint16"].source == "r" and pairs["x_as_uint16"].source == "x"
    assert [name for name, pair in pairs.items() if pair.tied] == ["y"]


@pytest.mark.parametrize("order", ["b = Conv(x, v) a = Conv(x, w)", "a = Conv(x, w) b = Conv(x, v)"])
def test_names_do_not_depend_on_which_reader_comes_first(order: str):
    text = f"g (float[1,16,8,8] x) => (float[1,16,8,8] y) {{ {order} y = Add(a, b) }}"
    model = parse(text, HEADER_21, **{name: CONSTANTS[name] for name in "wv"})
    _, proto, _ = quantize(model, load_target("qnn"), wide_nodes={"b": "a test"})
    names = [pair.tensor for pair in find_pairs(GraphIndex(proto.graph))]
    assert {"x", "x_as_uint16", "a", "b"} <= set(names) and len(names) == len(set(names))


def test_where_accuracy_is_lost_is_found_between_conversions():
    exact, int8 = models()
    found = onnx_hyvit.debug(exact, int8, feeds_of(parse(TEXT, **CONSTANTS)))
    rows = {row["name"]: row for row in found["tensors"]}
    assert rows["r"]["entering_db"] < rows["r_as_uint16"]["entering_db"], "from 8 to 16 bits little is lost"
    assert rows["b_as_uint8"]["entering_db"] < 60 < rows["r_as_uint16"]["entering_db"]
    assert not onnx_hyvit.audit(int8).orphan_pairs
