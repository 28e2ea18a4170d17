"""Find the nodes with constant weights, and say why one cannot be int8 on a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.edit import constant_of
from ..targets import OpRule, Target

WEIGHTED_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
DEFAULT_DOMAINS = (None, "", "ai.onnx")


@dataclass(frozen=True)
class Weighted:
    """A node with a constant weight that can be int8.

    Args:
        node: The Conv, ConvTranspose, Gemm or MatMul.
        axis: Axis of the weight that counts output channels; None when only one scale is possible.
        bias: Its bias, when it has one.
    """

    node: gs.Node
    axis: int | None
    bias: gs.Tensor | None

    @property
    def activation(self) -> gs.Tensor:
        """The activation that it reads."""
        return self.node.inputs[0]

    @property
    def weight(self) -> gs.Tensor:
        """Its constant weight."""
        return self.node.inputs[1]


def is_quantizable(node: gs.Node) -> bool:
    """Whether the node is a Conv, ConvTranspose or Gemm, or a MatMul with a constant operand."""
    if node.op not in WEIGHTED_OPS or node.domain not in DEFAULT_DOMAINS:
        return False
    return node.op != "MatMul" or any(constant_of(tensor) is not None for tensor in node.inputs)


def inspect_weighted(node: gs.Node, target: Target, reads_codes: bool = False) -> Weighted | str:
    """What is needed to quantize ``node``, or the reason why it stays float.

    Args:
        node: A node for which ``is_quantizable`` holds.
        target: Rules of the runtime.
        reads_codes: Its activation is made by an int8 node; a narrow convolution then costs less in int8 than the DQ
            and Q around a float one.
    """
    rule = target.int8.get(node.op)
    if rule is None:
        return target.float.get(node.op, f"{node.op} has no int8 kernel on {target.name}")
    weight = constant_of(node.inputs[1])
    if weight is None:
        return "its weights are not constant"
    if constant_of(node.inputs[0]) is not None:
        return "its activation is constant"
    if weight.dtype != np.float32:
        return f"its weights are {weight.dtype}, expected float32"
    if weight.size == 0 or not np.isfinite(weight).all():
        return "its weights are empty, infinite or NaN"
    reason = rule.refuses_attributes(node.attrs) or _refuse_shape(node, weight, rule, reads_codes)
    if reason is not None:
        return reason
    bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    if bias is not None:
        reason = _refuse_bias(constant_of(bias), _output_channels(node, weight))
        if reason is not None:
            return reason
    return Weighted(node, channel_axis(node, weight), bias)


def channel_axis(node: gs.Node, weight: np.ndarray) -> int | None:
    """Axis of ``weight`` that counts the output channels of ``node``; None when the kernel takes one scale only."""
    if node.op == "Conv":
        return 0
    if node.op == "ConvTranspose":
        return 1 if int(node.attrs.get("group", 1)) == 1 else None
    if node.op == "Gemm":
        return 0 if node.attrs.get("transB", 0) else 1
    return 1 if weight.ndim == 2 else None


def _output_channels(node: gs.Node, weight: np.ndarray) -> int:
    if node.op == "ConvTranspose":
        return weight.shape[1] * int(node.attrs.get("group", 1))
    if node.op == "MatMul":
        return weight.shape[-1]
    return weight.shape[channel_axis(node, weight) or 0]


def _refuse_shape(node: gs.Node, weight: np.ndarray, rule: OpRule, reads_codes: bool) -> str | None:
    if node.op == "MatMul":
        return "its weight is a vector" if weight.ndim < 2 else None
    if node.op == "Gemm":
        return _refuse_gemm(node.attrs)
    group = int(node.attrs.get("group", 1))
    channels_in = weight.shape[1] * group if node.op == "Conv" else weight.shape[0]
    channels_out = _output_channels(node, weight)
    if not reads_codes and max(channels_in, channels_out) < rule.min_channels:
        return f"{max(channels_in, channels_out)} channels, int8 pays from {rule.min_channels}"
    depthwise = group > 1 and group == channels_in
    if depthwise and not rule.depthwise:
        return "depthwise convolutions stay float on this target"
    taps = int(np.prod(weight.shape[2:]))
    if depthwise and channels_in % rule.depthwise_block and taps > rule.unblocked_taps:
        return f"a depthwise kernel of {taps} on {channels_in} channels, no multiple of {rule.depthwise_block}"
    if group > 1 and not depthwise and not rule.grouped:
        return "grouped convolutions stay float on this target"
    return None


def _refuse_gemm(attrs: Mapping[str, object]) -> str | None:
    if attrs.get("transA", 0):
        return "its activation is transposed (transA)"
    if attrs.get("alpha", 1.0) != 1.0 or attrs.get("beta", 1.0) != 1.0:
        return "its alpha or beta is not 1"
    return None


def _refuse_bias(bias: np.ndarray | None, channels: int) -> str | None:
    if bias is None:
        return "its bias is not constant"
    if bias.dtype != np.float32 or not np.isfinite(bias).all():
        return "its bias is not finite float32"
    if bias.size != channels or max(bias.shape, default=1) != channels:
        return f"its bias has shape {list(bias.shape)}, expected one value for each of {channels} channels"
    return None
