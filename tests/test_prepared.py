"""What must stay float is found again after the rewrites."""

from __future__ import annotations

import numpy as np
import pytest
from qdq_graphs import parse, weight

from onnx_hyvit.config import QuantConfig
from onnx_hyvit.prepared import kept_float, prepare

TEXT = """g (float[N,5,8] x) => (float[N,5,4] y) {
    h0 = MatMul(x, w) h = Add(h0, b) r = Relu(h) k0 = MatMul(r, v) y = Add(k0, b) }"""
NAMES = ("/MatMul", "/Add", "/Relu", "/MatMul_1", "/Add_1")


@pytest.mark.parametrize("wanted", ["/MatMul", "/MatMul_1"])
def test_new_nodes_are_kept_for_the_node_that_they_come_from(wanted: str) -> None:
    model = parse(TEXT, w=weight(8, 4), v=weight(4, 4), b=np.ones(4, np.float32))
    for node, name in zip(model.graph.nodes, NAMES, strict=True):
        node.name = name
    prepared = prepare(model, QuantConfig())
    of_second = {node.name for node in prepared.model.graph.nodes if node.name.startswith("/MatMul_1")}
    of_first = {node.name for node in prepared.model.graph.nodes if node.name.startswith("/MatMul")} - of_second
    assert of_first > {"/MatMul"} and of_second > {"/MatMul_1"}, "both have new nodes"
    assert set(kept_float(prepared, [wanted])) == (of_first if wanted == "/MatMul" else of_second)
