"""Running and observing models in tests."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of a model by name."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def observe(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor of a model: inputs, initializers and results."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    present = {output.name for output in model.graph.output}
    for node in proto.graph.node:
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output if name and name not in present)
        present.update(node.output)
    fixed = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    return {**fixed, **feeds, **run(model, feeds)}


def with_delta(proto: onnx.ModelProto, tensor: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    """The model with ``tensor + delta`` in place of ``tensor``."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    position = 0
    for index, node in enumerate(model.graph.node):
        for slot, name in enumerate(node.input):
            if name == tensor:
                node.input[slot] = "moved"
        if tensor in node.output:
            position = index + 1
    model.graph.node.insert(position, onnx.helper.make_node("Add", [tensor, "delta"], ["moved"]))
    model.graph.input.append(onnx.helper.make_tensor_value_info("delta", onnx.TensorProto.FLOAT, shape))
    return model


@pytest.fixture(scope="session")
def run_model():
    return run


@pytest.fixture(scope="session")
def observe_model():
    return observe


@pytest.fixture(scope="session")
def insert_delta():
    return with_delta
