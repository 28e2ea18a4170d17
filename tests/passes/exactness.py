"""Shared by the tests of passes: parse, run a pass, compare outputs with ONNX Runtime (optimisations off)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort

from onnx_hyvit.graph import Model, load_model, model_to_proto
from onnx_hyvit.passes import GraphPass, run_passes

RELATIVE = 1e-4


def parse(text: str, opset: int = 20, weights: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """A model from ``graph (inputs) => (outputs) { ... }``; those ``weights`` that it reads become initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]>\n{text}')
    read = {name for node in proto.graph.node for name in node.input}
    for name, values in (weights or {}).items():
        if name in read:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.checker.check_model(proto)
    return proto


def random_inputs(proto: onnx.ModelProto, batch: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Normal inputs; a free first axis becomes ``batch``, other free axes 64."""
    rng = np.random.default_rng(seed)
    fixed = {tensor.name for tensor in proto.graph.initializer}
    feeds: dict[str, np.ndarray] = {}
    for value in proto.graph.input:
        if value.name in fixed:
            continue
        kind = value.type.tensor_type
        shape = [
            dim.dim_value if dim.HasField("dim_value") else (batch if axis == 0 else 64)
            for axis, dim in enumerate(kind.shape.dim)
        ]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        feeds[value.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def assert_same(before: onnx.ModelProto, after: onnx.ModelProto, batches: tuple[int, ...] = (1,)) -> None:
    assert [value.name for value in before.graph.output] == [value.name for value in after.graph.output]
    for batch in batches:
        feeds = random_inputs(before, batch)
        for expected, found in zip(run(before, feeds), run(after, feeds), strict=True):
            assert expected.shape == found.shape and expected.dtype == found.dtype
            assert np.isfinite(expected).all()
            scale = max(float(np.abs(expected).max()), 1e-6)
            assert float(np.abs(expected - found).max()) <= RELATIVE * scale


def apply(proto: onnx.ModelProto, *passes: GraphPass, opset: int = 20, batches: tuple[int, ...] = (1,)) -> Model:
    """Run ``passes``, check the result with the ONNX checker, and that outputs did not change."""
    model = load_model(proto, opset)
    run_passes(model, passes)
    assert_same(proto, model_to_proto(model, check=True), batches)
    return model


def ops(model: Model) -> Counter[str]:
    return Counter(node.op for node in model.graph.nodes)


def count_of(proto: onnx.ModelProto, graph_pass: GraphPass, opset: int = 20) -> int:
    """Number of rewrites of one pass."""
    return run_passes(load_model(proto, opset), [graph_pass])[0].count
