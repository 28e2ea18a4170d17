"""A small convolutional graph, planned and calibrated at bits that leave something to improve."""

from __future__ import annotations

import numpy as np
from qdq_graphs import HEADER, parse, weight

from onnx_hyvit.activation_scales import activation_qparams, weight_scales
from onnx_hyvit.config import QuantConfig
from onnx_hyvit.graph import model_to_proto
from onnx_hyvit.placement import make_plan
from onnx_hyvit.prepared import prepare
from onnx_hyvit.recipes import find_recipe
from onnx_hyvit.reconstruct import give_biases
from onnx_hyvit.request import adapted_target, open_calibration

GRAPH = """g (float[N,16,8,8] x) => (float[N,8] y) {
    c = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(c)
    d = Conv<group=16, pads=[1,1,1,1]>(r, w2, b2) s = Sigmoid(d) m = Mul(d, s)
    e = Conv(m, w3) a = Add(e, x) f = Conv<strides=[2,2], auto_pad="SAME_UPPER">(a, w4, b4)
    p = GlobalAveragePool(f) q = Flatten(p) y = Gemm(q, w5, b5) }"""
DATA = np.random.default_rng(0).standard_normal((16, 16, 8, 8)).astype(np.float32)


def graph(header: str = HEADER):
    """A small convolutional graph with a residual addition and a classifier."""
    return parse(
        GRAPH,
        header,
        w1=weight(16, 16, 3, 3), b1=np.zeros(16, np.float32),
        w2=weight(16, 1, 3, 3, seed=1), b2=np.ones(16, np.float32),
        w3=weight(16, 16, 1, 1, seed=2),
        w4=weight(32, 16, 3, 3, seed=3), b4=np.zeros(32, np.float32),
        w5=weight(32, 8, seed=4), b5=np.zeros(8, np.float32),
    )  # fmt: skip


def prepared_for(bits: str, model, data, biases: int = 1, wide: tuple[str, ...] = ()):
    """Rewritten model, plan (with 16 bits for ``wide`` nodes), scales, source and data."""
    config = QuantConfig(bits=bits, samples=None, batch_size=4)
    source = open_calibration(model, {"x": data}, config)
    prepared = prepare(model, config)

    def plan_now():
        return make_plan(
            prepared.model,
            prepared.shapes,
            adapted_target(config),
            weight_bits=config.weight_bits,
            activation_bits=config.activation_bits,
            wide_nodes=dict.fromkeys(wide, "a test"),
        )

    plan = plan_now()
    assert give_biases(prepared.model, plan) == biases
    plan = plan_now()
    recipe = find_recipe("mse")
    qparams = activation_qparams(model_to_proto(prepared.model), plan, source, recipe)
    return prepared, plan, qparams | weight_scales(prepared.model, plan, recipe), source, data
