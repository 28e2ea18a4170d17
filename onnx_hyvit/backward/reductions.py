"""VJP rules of reductions and pooling."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .linear import window_of
from .registry import ForwardNode, Gradients, NoRule, vjp
from .tape import Tape


def reduced_axes(tape: Tape, node: ForwardNode) -> list[int]:
    """Axes of a reduction, from its attribute or its input; all of them when neither is given."""
    rank = len(tape.shape(node.inputs[0]))
    axes = node.attrs.get("axes")
    if axes is None and node.input(1):
        value = tape.value(node.input(1))
        if value is None:
            raise NoRule("its axes are not constant")
        axes = value.reshape(-1).tolist()
    if axes is None or len(axes) == 0:
        return [] if node.attrs.get("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(int(axis) % rank for axis in axes)


Reduction = Callable[[Tape, str, str, str, list[int], int], str]


def reduction(*ops: str) -> Callable[[Reduction], Reduction]:
    """Register ``derivative(tape, g, x, y, axes, count) -> grad_x``; g and y come with kept dimensions."""

    def register(derivative: Reduction) -> Reduction:
        @vjp(*ops)
        def rule(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
            assert grads[0] is not None
            shape = tape.shape(node.inputs[0])
            axes = reduced_axes(tape, node)
            kept = [1 if axis in axes else n for axis, n in enumerate(shape)]
            g, y = tape.reshape(grads[0], kept), tape.reshape(node.outputs[0], kept)
            count = int(np.prod([shape[axis] for axis in axes]))
            return [derivative(tape, g, node.inputs[0], y, axes, count)]

        return derivative

    return register


def _spread(tape: Tape, g: str, x: str) -> str:
    return tape.op("Expand", g, tape.ints(tape.shape(x)))


@reduction("ReduceSum")
def reduce_sum(tape: Tape, g: str, x: str, y: str, axes: list[int], count: int) -> str:
    """G everywhere."""
    return _spread(tape, g, x)


@reduction("ReduceMean")
def reduce_mean(tape: Tape, g: str, x: str, y: str, axes: list[int], count: int) -> str:
    """G / count everywhere."""
    return _spread(tape, tape.op("Div", g, float(count)), x)


@reduction("ReduceMax", "ReduceMin")
def reduce_extremum(tape: Tape, g: str, x: str, y: str, axes: list[int], count: int) -> str:
    """G to the elements that equal the result, shared on a tie."""
    chosen = tape.cast(tape.op("Equal", x, y), tape.dtype(x))
    share = tape.op("Div", g, tape.reduce("ReduceSum", chosen, axes))
    return tape.op("Mul", chosen, share)


@reduction("ReduceL2")
def reduce_l2(tape: Tape, g: str, x: str, y: str, axes: list[int], count: int) -> str:
    """G x / y."""
    return tape.op("Mul", x, tape.op("Div", g, y))


@reduction("ReduceL1")
def reduce_l1(tape: Tape, g: str, x: str, y: str, axes: list[int], count: int) -> str:
    """G sign(x)."""
    return tape.op("Mul", tape.op("Sign", x), g)


@reduction("ReduceSumSquare")
def reduce_sum_square(tape: Tape, g: str, x: str, y: str, axes: list[int], count: int) -> str:
    """2 g x."""
    return tape.op("Mul", x, tape.op("Mul", g, 2.0))


@reduction("ReduceLogSumExp")
def reduce_log_sum_exp(tape: Tape, g: str, x: str, y: str, axes: list[int], count: int) -> str:
    """G exp(x - y)."""
    return tape.op("Mul", tape.op("Exp", tape.op("Sub", x, y)), g)


@reduction("ReduceLogSum")
def reduce_log_sum(tape: Tape, g: str, x: str, y: str, axes: list[int], count: int) -> str:
    """G / exp(y)."""
    return _spread(tape, tape.op("Div", g, tape.op("Exp", y)), x)


@reduction("ReduceProd")
def reduce_prod(tape: Tape, g: str, x: str, y: str, axes: list[int], count: int) -> str:
    """G y / x (x must not be 0)."""
    return tape.op("Div", tape.op("Mul", g, y), x)


@vjp("GlobalAveragePool")
def global_average_pool(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """Like ReduceMean over space."""
    assert grads[0] is not None
    x = node.inputs[0]
    count = float(np.prod(tape.shape(x)[2:]))
    return [reduce_sum(tape, tape.op("Div", grads[0], count), x, "", [], 0)]


@vjp("GlobalMaxPool")
def global_max_pool(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """Like ReduceMax over space."""
    assert grads[0] is not None
    x = node.inputs[0]
    return [reduce_extremum(tape, grads[0], x, node.outputs[0], list(range(2, len(tape.shape(x)))), 0)]


@vjp("AveragePool")
def average_pool(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """Average pooling is linear and separable: per axis ``y = P x``, so ``grad_x = P^T grad_y``, one MatMul an axis.

    P holds 1/count, where count is what the window holds of the input, or of the padded input with
    ``count_include_pad``.
    """
    g = grads[0]
    assert g is not None
    size, out = tape.shape(node.inputs[0])[2:], tape.shape(node.outputs[0])[2:]
    kernel = list(node.attrs["kernel_shape"])
    stride, dilation, before, after = window_of(node, size, kernel)
    for axis in range(len(size)):
        matrix = pooling_matrix(
            size[axis], out[axis], kernel[axis], stride[axis], dilation[axis], (before[axis], after[axis]),
            bool(node.attrs.get("count_include_pad", 0)),
        )  # fmt: skip
        g = tape.contract(g, 2 + len(size), 2 + axis, matrix.astype(tape.dtype(node.inputs[0])))
    return [g]


def pooling_matrix(
    size: int, out: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int], include_pad: bool
) -> np.ndarray:
    """Average pooling along one axis as a matrix ``[out, size]``, float64."""
    matrix = np.zeros((out, size))
    for position in range(out):
        taps = position * stride - pads[0] + np.arange(kernel) * dilation
        inside = taps[(taps >= 0) & (taps < size)]
        count = int((taps < size + pads[1]).sum()) if include_pad else len(inside)
        matrix[position, inside] = 1.0 / max(count, 1)
    return matrix


@vjp("MaxPool")
def max_pool(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """Scatter-add of the gradient at the flat indices of the maxima (MaxPool's second output)."""
    g = grads[0]
    if tape.opset < 16:
        raise NoRule("its gradient needs opset 16")
    if g is None or any(other is not None for other in grads[1:]):
        raise NoRule("its indices output is used")
    x = node.inputs[0]
    attrs = {**node.attrs, "storage_order": 0}
    indices = tape.ops("MaxPool", 2, x, **attrs)[1]
    count = int(np.prod(tape.shape(x)))
    flat = tape.reshape(tape.zeros(x), [count])
    summed = tape.op(
        "ScatterElements", flat, tape.reshape(indices, [-1]), tape.reshape(g, [-1]), axis=0, reduction="add"
    )
    return [tape.reshape(summed, tape.shape(x))]


@vjp("CumSum")
def cum_sum(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """A cumulative sum in the other direction."""
    assert grads[0] is not None
    reverse = 1 - int(node.attrs.get("reverse", 0))
    exclusive = int(node.attrs.get("exclusive", 0))
    return [tape.op("CumSum", grads[0], node.inputs[1], exclusive=exclusive, reverse=reverse), None]
