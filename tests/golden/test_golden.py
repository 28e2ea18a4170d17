"""Where Q/DQ pairs go in small graphs, as text: operators and edges, no weights, all scales equal.

``python tests/golden/test_golden.py`` writes the expected files again; read the difference before you commit it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
from qdq_graphs import parse, plan_of, weight

from onnx_hyvit.graph import Model, model_to_proto
from onnx_hyvit.insert_qdq import insert_qdq
from onnx_hyvit.numerics import QParams

FOLDER = Path(__file__).parent
W1, W3 = weight(16, 16, 1, 1), weight(16, 16, 3, 3)
BIAS = np.linspace(-1, 1, 16, dtype=np.float32)
LINEAR = weight(16, 16)


def inverted_residual() -> Model:
    text = """g (float[1,16,8,8] x) => (float[1,16,8,8] y) {
        c0 = Conv(x, w1, b) s0 = Sigmoid(c0) m0 = Mul(c0, s0)
        c1 = Conv<group=16, pads=[1,1,1,1]>(m0, wd, b) s1 = Sigmoid(c1) m1 = Mul(c1, s1)
        c2 = Conv(m1, w2, b) a = Add(m0, c2) y = Conv(a, w2, b) }"""
    return parse(text, w1=W1, w2=W1, wd=weight(16, 1, 3, 3), b=BIAS)


def transformer_block() -> Model:
    text = """g (float[1,8,16] x) => (float[1,8,16] y) {
        n0 = LayerNormalization(x, s, b)
        q = MatMul(n0, wq) qb = Add(q, b) k = MatMul(n0, wk) kb = Add(k, b) v = MatMul(n0, wv) vb = Add(v, b)
        kt = Transpose<perm=[0,2,1]>(kb) l = MatMul(qb, kt) p = Softmax(l) o = MatMul(p, vb)
        j = MatMul(o, wo) jb = Add(j, b) a0 = Add(x, jb)
        n1 = LayerNormalization(a0, s, b) f = MatMul(n1, w1) fb = Add(f, b) g = Gelu(fb)
        h = MatMul(g, w2) hb = Add(h, b) y = Add(a0, hb) }"""
    ones = np.ones(16, np.float32)
    return parse(text, s=ones, b=BIAS, wq=LINEAR, wk=LINEAR, wv=LINEAR, wo=LINEAR, w1=LINEAR, w2=LINEAR)


def bridge() -> Model:
    text = """g (float[1,16,4,4] x) => (float[1,16,4,4] y) {
        c = Conv(x, w1) r = Reshape(c, flat) t = Transpose<perm=[0,2,1]>(r)
        n = LayerNormalization(t, s) m = MatMul(n, l) a = Add(t, m)
        n1 = LayerNormalization(a, s) u = Transpose<perm=[0,2,1]>(n1) k = Reshape(u, back)
        e = Concat<axis=1>(c, k) y = Conv(e, w2) }"""
    shapes = {"flat": np.array([1, 16, 16]), "back": np.array([1, 16, 4, 4])}
    return parse(text, w1=W1, w2=weight(16, 32, 1, 1), l=LINEAR, s=np.ones(16, np.float32), **shapes)


def pooling_and_excitation() -> Model:
    text = """g (float[1,16,8,8] x) => (float[1,16,8,8] y) {
        c = Conv<pads=[1,1,1,1]>(x, w3) r = Relu(c) p = GlobalAveragePool(r) d = Conv(p, w1) e = Relu(d)
        f = Conv(e, w1) h = HardSigmoid(f) m = Mul(r, h)
        q = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(m) y = Conv(q, w1) }"""
    return parse(text, w1=W1, w3=W3)


def head() -> Model:
    text = """g (float[1,16,8,8] x) => (float[1,16] y) {
        c = Conv(x, w1) t = Clip(c, low, high) p = GlobalAveragePool(t) f = Flatten(p) y = Gemm<transB=1>(f, l, b) }"""
    return parse(text, w1=W1, l=LINEAR, b=BIAS, low=np.float32(0), high=np.float32(6))


GRAPHS = (inverted_residual, transformer_block, bridge, pooling_and_excitation, head)


def render(model: Model) -> str:
    plan = plan_of(model)
    qparams = {name: QParams(np.float32(0.05), np.uint8(100), spec) for name, spec in plan.activations.items()}
    proto = model_to_proto(insert_qdq(model, plan, qparams), check=True)
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    lines = [_line(node, constants) for node in proto.graph.node]
    return "\n".join([*lines, "", *(f"float {name}: {reason}" for name, reason in plan.float_nodes.items())]) + "\n"


def _line(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> str:
    return f"{', '.join(node.output)} = {node.op_type}({', '.join(_operand(name, constants) for name in node.input)})"


def _operand(name: str, constants: dict[str, onnx.TensorProto]) -> str:
    if name not in constants:
        return name
    kind = onnx.TensorProto.DataType.Name(constants[name].data_type).lower()
    return f"{kind}{list(constants[name].dims)}"


@pytest.mark.parametrize("make", GRAPHS, ids=lambda make: make.__name__)
def test_positions_are_those_of_the_golden_file(make):
    assert render(make()) == (FOLDER / f"{make.__name__}.txt").read_text()


if __name__ == "__main__":
    for make in GRAPHS:
        (FOLDER / f"{make.__name__}.txt").write_text(render(make()))
