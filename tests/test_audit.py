from __future__ import annotations

import json

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper
from qdq_graphs import HEADER, parse, quantize, run, weight

from onnx_hyvit.graph import model_to_proto
from onnx_hyvit.kernel_audit import audit, original_name

PAIR = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"


def qdq(body: str, shape: str = "1,16,8,8", **initializers) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(HEADER + f"g (float[1,16,8,8] x) => (float[{shape}] y) {{ {PAIR} {body} }}")
    values = {"s": np.float32(0.02), "z": np.uint8(128), "t": np.float32(1 / 255), "o": np.uint8(0), **initializers}
    for name, value in values.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    for node in proto.graph.node:
        node.name = node.output[0]
    return proto


def test_int8_layers_are_listed_under_their_names():
    text = "g (float[1,16,8,8] x) => (float[1,16,8,8] y) { c = Conv(x, w) s = Sigmoid(c) y = Mul(c, s) }"
    report = audit(quantize(parse(text, w=weight(16, 16, 1, 1)))[1])
    assert [kernel.node for kernel in report.int8] == ["c"] and not report.float and report.clean


def test_float_layers_and_attention_products_are_told_apart():
    text = (
        "g (float[1,8,16] x) => (float[1,8,8] y) { m = MatMul(x, w) t = Transpose<perm=[0,2,1]>(m) y = MatMul(x, t) }"
    )
    report = audit(model_to_proto(parse(text, w=weight(16, 16))))
    assert {kernel.node: kernel.weighted for kernel in report.float} == {"m": True, "y": False}
    assert report.counts["float"] == 2 and report.counts["float_weighted"] == 1 and report.counts["int8"] == 0


def test_a_weight_dequantized_at_run_time_is_found():
    codes = (weight(16, 16, 1, 1) * 100).astype(np.int8)
    body = "wd = DequantizeLinear(w, ws, wz) y = Conv(d, wd)"
    report = audit(qdq(body, w=codes, ws=np.float32(0.01), wz=np.int8(0)))
    assert [kernel.node for kernel in report.dequantized_weights] == ["wd"] and not report.clean
    assert report.counts["float"] == 1


def test_an_orphan_pair_is_found():
    report = audit(qdq("y = Softmax(d)"))
    assert [kernel.node for kernel in report.orphan_pairs] == ["q"]


def test_bad_kernels_are_found():
    body = "e = Softmax<axis=1>(d) f = QuantizeLinear(e, t, o) y = DequantizeLinear(f, t, o)"
    report = audit(qdq(body))
    assert [kernel.op for kernel in report.bad_kernels] == ["QLinearSoftmax"]


def test_the_report_is_json():
    proto = qdq("y = Softmax(d)")
    values = json.loads(json.dumps(audit(proto).to_dict()))
    assert {"int8", "float", "dequantized_weights", "bad_kernels", "orphan_pairs", "counts"} <= set(values)
    assert run(proto, {"x": np.zeros((1, 16, 8, 8), np.float32)}).shape == (1, 16, 8, 8)


def test_names_of_fused_nodes_lead_back():
    names = {"a/Conv": "a/Conv", "a/MatMul": "a/MatMul", "b": "b", "b_output_0": "b"}
    assert original_name("a/Conv_token_83", names) == "a/Conv"
    assert original_name("a/MatMul/MatMulScaleFusion/", names) == "a/MatMul"
    assert original_name("b_nchwc", names) == "b"
    assert original_name("b_output_0_nchwc", names) == "b"
    assert original_name("fused a/MatMul", names) == "a/MatMul"
    assert original_name("unknown_token_1", names) == "unknown_token_1"
