"""What recognisers return: plain values that name nodes and tensors, never graph objects."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Norm:
    """A normalization.

    Args:
        kind: layer_norm, layer_norm_2d, group_norm, instance_norm, rms_norm, l2_norm or batch_norm.
        nodes: Names of its nodes, in graph order.
        input: Tensor that is normalized.
        output: Tensor that comes out, after scale and bias.
        axes: Normalized axes (negative ones as written), when fixed.
        eps: Epsilon, when fixed.
        groups: Number of groups (group_norm only).
        scale: Whether a scale (gamma) belongs to it.
        bias: Whether a bias (beta) belongs to it.
    """

    kind: str
    nodes: tuple[str, ...]
    input: str
    output: str
    axes: tuple[int, ...] | None = None
    eps: float | None = None
    groups: int | None = None
    scale: bool = False
    bias: bool = False


@dataclass(frozen=True)
class Activation:
    """An activation function.

    Args:
        kind: relu, relu6, clip, silu, gelu, gelu_tanh, gelu_quick, hard_swish, hard_sigmoid, sigmoid, tanh,
            leaky_relu, prelu, elu, selu, softplus, mish or dynamic_relu.
        nodes: Names of its nodes, in graph order.
        input: Tensor that goes in.
        output: Tensor that comes out.
        parameters: Numbers of the function, e.g. ``(("alpha", 0.01),)``; of ``clip``, the ends that it has.
    """

    kind: str
    nodes: tuple[str, ...]
    input: str
    output: str
    parameters: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Attention:
    """An attention.

    Args:
        kind: softmax, cross_covariance, conv (1x1-conv projections are not told apart here), separable or relu_linear.
        nodes: Names of its nodes from the first product (or score) to the last, in graph order.
        query: Tensor of queries (separable: the context scores before Softmax).
        key: Tensor of keys.
        value: Tensor of values.
        output: Tensor that comes out.
        probabilities: Output of Softmax, or the normaliser's product for linear attention; None when fused in one op.
        heads: Number of heads, when the rank-4 shape of the queries tells.
        scale: Product of all fixed scales on queries, keys and logits, when fixed.
        bias: Tensor added to the logits (relative position bias or mask).
        talking_heads: Whether a head-mixing product stands around Softmax.
    """

    kind: str
    nodes: tuple[str, ...]
    query: str
    key: str
    value: str
    output: str
    probabilities: str | None = None
    heads: int | None = None
    scale: float | None = None
    bias: str | None = None
    talking_heads: bool = False
