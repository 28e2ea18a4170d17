"""Linear operators with fixed weights (Conv, ConvTranspose, Gemm, MatMul) seen alike: output channels, scale, bias.

The algebra that every fold into weights uses: a channel-wise affine map after a linear operator,
``s * (W x + b) + t``, is the linear operator with ``W' = s W`` (per output channel) and ``b' = s b + t``; one before
it, ``W (s x + t) + b``, has ``W' = W s`` (per input channel) and ``b' = b + W t`` when no padding is added.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from .edit import add_node, constant_of, has_input, new_constant, new_variable, rank_of

LINEAR_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def weight_of(node: gs.Node) -> np.ndarray | None:
    """Fixed weight of a linear operator, as stored; None when ``node`` is none or its weight is computed."""
    if node.op not in LINEAR_OPS or node.domain not in (None, "", "ai.onnx") or len(node.inputs) < 2:
        return None
    weight = constant_of(node.inputs[1])
    if weight is None or weight.dtype.kind != "f" or constant_of(node.inputs[0]) is not None:
        return None
    if node.op == "MatMul":
        return weight if weight.ndim == 2 else None
    return weight


def has_fixed_bias(node: gs.Node) -> bool:
    """Whether the operator has no bias input, or a fixed one."""
    return node.op == "MatMul" or not has_input(node, 2) or constant_of(node.inputs[2]) is not None


def output_axis(node: gs.Node) -> int:
    """Axis of a weight, as stored, along which output channels lie (ConvTranspose: within a group)."""
    if node.op == "Gemm":
        return 0 if node.attrs.get("transB", 0) else 1
    return 0 if node.op == "Conv" else 1


def output_channels(node: gs.Node) -> int:
    """Number of output channels of a linear operator with fixed weights."""
    weight = weight_of(node)
    assert weight is not None, node.name
    groups = int(node.attrs.get("group", 1)) if node.op == "ConvTranspose" else 1
    return int(weight.shape[output_axis(node)]) * groups


def channel_axis(node: gs.Node) -> int:
    """Axis of the operator's output that carries its channels: 1 for convolutions, the last one otherwise."""
    return 1 if node.op in ("Conv", "ConvTranspose") else -1


def channel_vector(values: np.ndarray, channels: int, axis: int, rank: int | None) -> np.ndarray | None:
    """A constant operand as one number per channel.

    Args:
        values: The operand, any shape that broadcasts against the output.
        channels: Number of channels.
        axis: 1 or -1, the channel axis of the output.
        rank: Rank of the output, needed for axis 1.

    Returns:
        Array [channels] in float64, or None when the operand varies along another axis or would raise the rank.
    """
    if values.dtype.kind != "f" or values.size not in (1, channels) or (rank is not None and values.ndim > rank):
        return None
    if values.ndim and rank is None:
        return None
    if values.size == 1:
        return np.full(channels, float(values.reshape(-1)[0]))
    position = axis if axis < 0 else axis - (rank or 0)
    if -position > values.ndim or values.shape[position] != channels:
        return None
    return values.reshape(-1).astype(np.float64)


def output_rank(node: gs.Node) -> int | None:
    """Rank of a linear operator's output: from inference, or from the weight where that decides it."""
    weight = weight_of(node)
    if node.op == "Gemm":
        return 2
    if weight is not None and node.op in ("Conv", "ConvTranspose"):
        return weight.ndim
    return rank_of(node.outputs[0]) or rank_of(node.inputs[0])


def scale_outputs(graph: gs.Graph, node: gs.Node, scale: np.ndarray, shift: np.ndarray | None = None) -> None:
    """Replace ``y = Wx + b`` by ``scale * y + shift`` inside the weights; MatMul has no bias, so ``shift`` is refused.

    Args:
        graph: Graph of ``node``.
        node: Linear operator with fixed weight and fixed bias; other users of its initializers are not affected.
        scale: Array [output channels].
        shift: Array [output channels], or None.
    """
    weight = weight_of(node)
    assert weight is not None and not (node.op == "MatMul" and shift is not None), node.name
    wide = weight.astype(np.float64)
    if node.op == "ConvTranspose":
        groups = int(node.attrs.get("group", 1))
        per_group = wide.reshape(groups, -1, *wide.shape[1:])
        factors = scale.reshape(groups, 1, -1, *[1] * (wide.ndim - 2))
        wide = (per_group * factors).reshape(wide.shape)
    else:
        shape = [1] * wide.ndim
        shape[output_axis(node)] = -1
        wide = wide * scale.reshape(shape)
    node.inputs[1] = new_constant(graph, f"{node.name}_weight", wide.astype(weight.dtype))
    bias = bias_of(node)
    if bias is not None or shift is not None:
        total = np.zeros_like(scale) if bias is None else bias * scale
        set_bias(graph, node, total if shift is None else total + shift)


def bias_of(node: gs.Node) -> np.ndarray | None:
    """Effective bias [output channels] in float64 (Gemm's beta applied), or None when there is none."""
    if node.op == "MatMul" or not has_input(node, 2):
        return None
    bias = constant_of(node.inputs[2])
    assert bias is not None, node.name
    factor = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
    return np.broadcast_to(bias.astype(np.float64).reshape(-1) * factor, (output_channels(node),))


def set_bias(graph: gs.Graph, node: gs.Node, bias: np.ndarray) -> None:
    """Give the operator the bias [output channels]; the old one is dropped."""
    weight = weight_of(node)
    assert weight is not None and node.op != "MatMul", node.name
    constant = new_constant(graph, f"{node.name}_bias", np.asarray(bias).astype(weight.dtype))
    if len(node.inputs) > 2:
        node.inputs[2] = constant
    else:
        node.inputs.append(constant)
    if node.op == "Gemm":
        node.attrs.pop("beta", None)


def is_row_bias(node: gs.Node) -> bool:
    """Whether a Gemm's C is one number per output column (or a scalar), as a bias is."""
    if node.op != "Gemm" or not has_input(node, 2):
        return True
    bias, channels = constant_of(node.inputs[2]), output_channels(node)
    return bias is not None and bias.size in (1, channels) and (bias.ndim == 0 or bias.shape[-1] == bias.size)


def foldable(node: gs.Node) -> bool:
    """Whether a channel-wise map can be folded into ``node``: a linear operator, fixed weight, fixed plain bias."""
    return weight_of(node) is not None and has_fixed_bias(node) and is_row_bias(node)


def add_bias_after(graph: gs.Graph, node: gs.Node, bias: np.ndarray) -> None:
    """Insert ``Add(node's output, bias)``; the Add writes the tensor that the node wrote, so consumers see the sum.

    Args:
        graph: Graph of ``node``.
        node: A MatMul.
        bias: Array [output channels].
    """
    weight = weight_of(node)
    assert weight is not None
    output = node.outputs[0]
    inner = new_variable(graph, f"{node.name}_linear", dtype=weight.dtype, shape=output.shape)
    node.outputs = [inner]
    constant = new_constant(graph, f"{node.name}_bias", bias.astype(weight.dtype))
    add_node(graph, "Add", [inner, constant], [output], stem=f"{node.name}_add")
