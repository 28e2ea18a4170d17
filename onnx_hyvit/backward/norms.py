"""VJP rules of the normalisations.

All share one formula: with ``n = (x - mean) / std`` over some axes,
``grad_x = (g - mean(g) - n mean(g n)) / std``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .registry import ForwardNode, Gradients, NoRule, vjp
from .tape import Tape


def _standardize(tape: Tape, x: str, axes: Sequence[int], epsilon: float) -> tuple[str, str]:
    """Normalised ``x`` and ``1 / std`` over ``axes``."""
    centred = tape.op("Sub", x, tape.reduce("ReduceMean", x, axes))
    variance = tape.reduce("ReduceMean", tape.op("Mul", centred, centred), axes)
    inverse = tape.op("Reciprocal", tape.op("Sqrt", tape.op("Add", variance, epsilon)))
    return tape.op("Mul", centred, inverse), inverse


def _through_statistics(tape: Tape, g: str, normal: str, inverse: str, axes: Sequence[int]) -> str:
    """``(g - mean(g) - n mean(g n)) / std``."""
    along = tape.op("Mul", normal, tape.reduce("ReduceMean", tape.op("Mul", g, normal), axes))
    rest = tape.op("Sub", tape.op("Sub", g, tape.reduce("ReduceMean", g, axes)), along)
    return tape.op("Mul", rest, inverse)


@vjp("LayerNormalization")
def layer_normalization(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """Statistics over the axes from ``axis`` on."""
    g = grads[0]
    if g is None or any(other is not None for other in grads[1:]):
        raise NoRule("its statistics outputs are used")
    x, scale = node.inputs[:2]
    shape = tape.shape(x)
    axes = list(range(int(node.attrs.get("axis", -1)) % len(shape), len(shape)))
    normal, inverse = _standardize(tape, x, axes, float(node.attrs.get("epsilon", 1e-5)))
    gx = None
    if node.need(0):
        gx = _through_statistics(tape, tape.op("Mul", g, scale), normal, inverse, axes)
    return [gx, *_affine(tape, node, g, normal)]


def _affine(tape: Tape, node: ForwardNode, g: str, normal: str) -> list[str | None]:
    """Gradients of a scale and a bias that broadcast against the input."""
    shape = tape.shape(node.inputs[0])
    scale = bias = None
    if node.need(1):
        scale = tape.unbroadcast(tape.op("Mul", g, normal), shape, tape.shape(node.inputs[1]))
    if node.need(2):
        bias = tape.unbroadcast(g, shape, tape.shape(node.inputs[2]))
    return [scale, bias]


@vjp("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """``n = x / rms``: ``grad_x = (g - n mean(g n)) / rms``."""
    g = grads[0]
    assert g is not None
    x, scale = node.inputs[:2]
    shape = tape.shape(x)
    axes = list(range(int(node.attrs.get("axis", -1)) % len(shape), len(shape)))
    square = tape.reduce("ReduceMean", tape.op("Mul", x, x), axes)
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    inverse = tape.op("Reciprocal", tape.op("Sqrt", tape.op("Add", square, epsilon)))
    normal = tape.op("Mul", x, inverse)
    gx = None
    if node.need(0):
        inner = tape.op("Mul", g, scale)
        along = tape.op("Mul", normal, tape.reduce("ReduceMean", tape.op("Mul", inner, normal), axes))
        gx = tape.op("Mul", tape.op("Sub", inner, along), inverse)
    return [gx, _affine(tape, node, g, normal)[0]]


@vjp("InstanceNormalization")
def instance_normalization(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """Statistics over space, per sample and channel."""
    g = grads[0]
    assert g is not None
    if node.need(1) or node.need(2):
        raise NoRule("its scale or bias depends on the input")
    x, scale = node.inputs[:2]
    rank = len(tape.shape(x))
    axes = list(range(2, rank))
    normal, inverse = _standardize(tape, x, axes, float(node.attrs.get("epsilon", 1e-5)))
    per_channel = tape.reshape(scale, [-1] + [1] * (rank - 2))
    return [_through_statistics(tape, tape.op("Mul", g, per_channel), normal, inverse, axes), None, None]


@vjp("GroupNormalization")
def group_normalization(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """Statistics over the channels of a group and space; the scale is per group at opset 18, else per channel."""
    g = grads[0]
    assert g is not None
    if node.need(1) or node.need(2):
        raise NoRule("its scale or bias depends on the input")
    x, scale = node.inputs[:2]
    shape = tape.shape(x)
    groups = int(node.attrs["num_groups"])
    grouped = [shape[0], groups, -1]
    normal, inverse = _standardize(tape, tape.reshape(x, grouped), [2], float(node.attrs.get("epsilon", 1e-5)))
    if tape.shape(scale) == (groups,) and tape.opset < 21:
        inner = tape.op("Mul", tape.reshape(g, grouped), tape.reshape(scale, [groups, 1]))
    else:
        per_channel = tape.reshape(scale, [-1] + [1] * (len(shape) - 2))
        inner = tape.reshape(tape.op("Mul", g, per_channel), grouped)
    return [tape.reshape(_through_statistics(tape, inner, normal, inverse, [2]), shape), None, None]


@vjp("BatchNormalization")
def batch_normalization(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """Inference form: ``grad_x = g scale / sqrt(var + eps)`` per channel."""
    g = grads[0]
    assert g is not None
    if node.attrs.get("training_mode", 0) or any(node.needs[1:]):
        raise NoRule("it is in training mode, or its parameters depend on the input")
    scale, variance = node.inputs[1], node.inputs[4]
    std = tape.op("Sqrt", tape.op("Add", variance, float(node.attrs.get("epsilon", 1e-5))))
    gain = tape.reshape(tape.op("Div", scale, std), [-1] + [1] * (len(tape.shape(node.inputs[0])) - 2))
    return [tape.op("Mul", g, gain), None, None, None, None]


@vjp("LpNormalization")
def lp_normalization(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """``y = x / |x|_p``: ``grad_x = (g - d sum(g y)) / |x|_p`` with d = y for p = 2 and sign(x) for p = 1."""
    g = grads[0]
    assert g is not None
    x, y = node.inputs[0], node.outputs[0]
    axis = int(node.attrs.get("axis", -1)) % len(tape.shape(x))
    p = int(node.attrs.get("p", 2))
    norm = tape.reduce("ReduceL2" if p == 2 else "ReduceL1", x, [axis])
    direction = y if p == 2 else tape.op("Sign", x)
    along = tape.op("Mul", direction, tape.reduce("ReduceSum", tape.op("Mul", g, y), [axis]))
    return [tape.op("Div", tape.op("Sub", g, along), norm)]


@vjp("MeanVarianceNormalization")
def mean_variance_normalization(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """Statistics over ``axes``, no scale."""
    g = grads[0]
    assert g is not None
    rank = len(tape.shape(node.inputs[0]))
    axes = [axis % rank for axis in node.attrs.get("axes", [0, 2, 3])]
    normal, inverse = _standardize(tape, node.inputs[0], axes, float(np.finfo(np.float32).tiny))
    return [_through_statistics(tape, g, normal, inverse, axes)]
