"""Small graphs for the tests of placement and insertion, from text, and the steps around them."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from onnx_hyvit.graph import Model, load_model, model_to_proto
from onnx_hyvit.insert_qdq import insert_qdq
from onnx_hyvit.numerics import QParams, qparams_from_range
from onnx_hyvit.placement import Plan, make_plan
from onnx_hyvit.runtime import make_session, observe_shapes
from onnx_hyvit.targets import load_target

HEADER = '<ir_version: 9, opset_import: ["" : 20]>\n'
HEADER_21 = '<ir_version: 10, opset_import: ["" : 21]>\n'
ORT = load_target("ort-x86")


def parse(text: str, header: str = HEADER, **initializers: np.ndarray) -> Model:
    """A model from the text of its graph; nodes are named by their first output."""
    proto = onnx.parser.parse_model(header + text)
    for name, value in initializers.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    for node in proto.graph.node:
        node.name = node.output[0]
    return load_model(proto)


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


@functools.lru_cache(maxsize=4)
def _observed(serialized: bytes) -> dict[str, tuple[int, ...]]:
    return observe_shapes(onnx.load_from_string(serialized))


def shapes_of(model: Model) -> dict[str, tuple[int, ...]]:
    return _observed(model_to_proto(model).SerializeToString(deterministic=True))


def plan_of(model: Model, target=ORT, **options) -> Plan:
    return make_plan(model, shapes_of(model), target, **options)


def feeds_of(model: Model, seed: int = 1) -> dict[str, np.ndarray]:
    shapes = shapes_of(model)
    generator = np.random.default_rng(seed)
    return {
        tensor.name: generator.standard_normal(shapes[tensor.name]).astype(np.float32) for tensor in model.graph.inputs
    }


def values_of(proto: onnx.ModelProto, names: list[str], feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Values of float tensors of a graph, inputs included."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(proto)
    del exposed.graph.output[:]
    made = [name for name in names if name not in feeds]
    exposed.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in made)
    found = make_session(exposed, optimize="none").run(feeds) if made else {}
    return {**found, **{name: feeds[name] for name in names if name in feeds}}


def minmax(model: Model, plan: Plan, feeds: dict[str, np.ndarray]) -> dict[str, QParams]:
    names = [name for name in plan.activations if name not in plan.tied]
    tensors = {name: plan.values_of(name) for name in names}
    values = values_of(model_to_proto(model), list(dict.fromkeys(tensors.values())), feeds)
    ranges = {name: (values[tensor].min(), values[tensor].max()) for name, tensor in tensors.items()}
    return {name: qparams_from_range(*ranges[name], plan.activations[name]) for name in names}


def quantize(model: Model, target=ORT, **options) -> tuple[Plan, onnx.ModelProto, dict[str, np.ndarray]]:
    """Plan, quantized proto and the feeds that gave the ranges."""
    plan, feeds = plan_of(model, target, **options), feeds_of(model)
    quantized = insert_qdq(model, plan, minmax(model, plan, feeds))
    return plan, model_to_proto(quantized, check=True), feeds


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], optimize: str = "all") -> np.ndarray:
    return next(iter(make_session(proto, optimize=optimize).run(feeds).values()))


def ops(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]
