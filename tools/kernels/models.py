"""Build a model of one operator, in float or between Q/DQ pairs, so that ONNX Runtime runs one kernel of interest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20


@dataclass(frozen=True)
class Case:
    """One operator on given shapes.

    Args:
        op: ONNX operator; ``Silu`` is Sigmoid and Mul.
        inputs: Shapes of its activations.
        weight: Shape of its weight, None without one.
        attributes: Attributes of the node.
        constants: Constant inputs behind the activations (the shape of a Reshape).
        int8: Whether the operator has an int8 form.
    """

    op: str
    inputs: tuple[tuple[int, ...], ...]
    weight: tuple[int, ...] | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    constants: tuple[tuple[int, ...], ...] = ()
    int8: bool = True


class _Builder:
    """Nodes and initializers of a model while it is built."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, values: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def pair(self, name: str, scale: float = 0.03) -> str:
        params = [
            self.constant(f"{name}_scale", np.float32(scale)),
            self.constant(f"{name}_zero", np.array(128, np.uint8)),
        ]
        codes = self.add("QuantizeLinear", [name, *params], f"{name}_q")
        return self.add("DequantizeLinear", [codes, *params], f"{name}_dq")


def build(case: Case, int8: bool, seed: int = 0) -> onnx.ModelProto:
    """The model of ``case``; with ``int8`` behind and before Q/DQ pairs, weights as int8 codes per channel."""
    builder = _Builder(seed)
    names = [f"x{index}" for index in range(len(case.inputs))]
    operands = [builder.pair(name) for name in names] if int8 else list(names)
    if case.weight is not None:
        operands += _weights(builder, case, int8)
    operands += [
        builder.constant(f"c{index}", np.array(values, np.int64)) for index, values in enumerate(case.constants)
    ]
    _operator(builder, case, operands, int8)
    output = builder.pair("y") if int8 else "y"
    graph = helper.make_graph(
        builder.nodes,
        "case",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in zip(names, case.inputs, strict=True)
        ],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        builder.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


def _operator(builder: _Builder, case: Case, operands: list[str], int8: bool) -> None:
    if case.op == "Silu":
        gate = builder.add("Sigmoid", operands, "s")
        builder.add("Mul", [operands[0], builder.pair(gate, 1 / 255) if int8 else gate], "y")
    elif case.op == "LayerNormalization":
        size = case.inputs[0][-1]
        scale = builder.constant("scale", np.ones(size, np.float32))
        bias = builder.constant("bias", np.full(size, 0.1, np.float32))
        builder.add(case.op, [*operands, scale, bias], "y", axis=-1)
    else:
        builder.add(case.op, operands, "y", **case.attributes)


def _weights(builder: _Builder, case: Case, int8: bool) -> list[str]:
    """Names of the weight and bias that the operator reads."""
    shape = case.weight or ()
    axis = 0 if case.op == "Conv" else 1
    channels = shape[axis]
    if not int8:
        weight = builder.random.standard_normal(shape).astype(np.float32) * 0.05
        bias = builder.random.standard_normal(channels).astype(np.float32)
        return [builder.constant("w", weight), builder.constant("b", bias)]
    codes = builder.random.integers(-63, 64, shape).astype(np.int8)
    bias_codes = builder.random.integers(-999, 999, channels).astype(np.int32)
    scale = np.full(channels, 0.001, np.float32)
    weight_params = [builder.constant("w_scale", scale), builder.constant("w_zero", np.zeros(channels, np.int8))]
    bias_params = [
        builder.constant("b_scale", np.float32(0.03) * scale),
        builder.constant("b_zero", np.zeros(channels, np.int32)),
    ]
    weight = builder.add("DequantizeLinear", [builder.constant("w", codes), *weight_params], "w_dq", axis=axis)
    bias = builder.add("DequantizeLinear", [builder.constant("b", bias_codes), *bias_params], "b_dq", axis=0)
    return [weight, bias]


def build_chain(length: int) -> onnx.ModelProto:
    """``length`` tiny nodes in a row, whose time is that of going from node to node."""
    builder = _Builder(0)
    name = "x0"
    for index in range(length):
        name = builder.add("Softplus" if index % 2 else "Softsign", [name], f"n{index}")
    graph = helper.make_graph(
        builder.nodes,
        "chain",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
