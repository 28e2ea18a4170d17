"""Running and observing models in tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

Feeds = dict[str, np.ndarray]


def open_model(proto: onnx.ModelProto) -> Callable[[Feeds], Feeds]:
    """A function from inputs to outputs by name; no graph optimisation."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


def run(proto: onnx.ModelProto, feeds: Feeds) -> Feeds:
    """Outputs of a model by name."""
    return open_model(proto)(feeds)


def observe(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor of a model: inputs, initializers and results."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    present = {output.name for output in model.graph.output}
    for node in proto.graph.node:
        model.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in node.output if name and name not in present
        )
        present.update(node.output)
    fixed = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    return {**fixed, **feeds, **run(model, feeds)}


def with_deltas(proto: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    """The model with ``tensor + delta/tensor`` in place of each tensor of ``shapes``."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    nodes = []
    for node in model.graph.node:
        node.input[:] = [f"moved/{name}" if name in shapes else name for name in node.input]
        nodes.append(node)
        for name in node.output:
            if name in shapes:
                nodes.append(onnx.helper.make_node("Add", [name, f"delta/{name}"], [f"moved/{name}"]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for name, shape in shapes.items():
        model.graph.input.append(onnx.helper.make_tensor_value_info(f"delta/{name}", onnx.TensorProto.FLOAT, shape))
    return model


@pytest.fixture(scope="session")
def run_model():
    return run


@pytest.fixture(scope="session")
def observe_model():
    return observe


@pytest.fixture(scope="session")
def insert_deltas():
    return with_deltas


@pytest.fixture(scope="session")
def load_model():
    return open_model
