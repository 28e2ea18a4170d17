"""VJP rules of the linear layers: Conv, ConvTranspose, MatMul, Gemm, Einsum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .registry import ForwardNode, Gradients, NoRule, vjp
from .tape import Tape


def same_pads(
    mode: str, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Pads of ``auto_pad`` SAME_UPPER or SAME_LOWER: ``ceil(size / stride)`` outputs."""
    before, after = [], []
    for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        small, large = total // 2, total - total // 2
        before.append(large if mode == "SAME_LOWER" else small)
        after.append(small if mode == "SAME_LOWER" else large)
    return before, after


def window_of(
    node: ForwardNode, size: Sequence[int], kernel: Sequence[int]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, pads before and pads after of a Conv or pooling node.

    Args:
        node: The node.
        size: Spatial extents of its input.
        kernel: Spatial extents of its window.
    """
    rank = len(size)
    stride = list(node.attrs.get("strides") or [1] * rank)
    dilation = list(node.attrs.get("dilations") or [1] * rank)
    mode = node.attrs.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        return stride, dilation, *same_pads(mode, size, kernel, stride, dilation)
    pads = list(node.attrs.get("pads") or [0] * (2 * rank)) if mode != "VALID" else [0] * (2 * rank)
    return stride, dilation, pads[:rank], pads[rank:]


@vjp("Conv")
def conv(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """``grad_x = ConvTranspose(grad_y, W)``; with stride 1, the same as a Conv by the flipped kernel (faster)."""
    x, weight = node.inputs[:2]
    (g,) = grads
    assert g is not None
    if node.need(1):
        raise NoRule("its kernel depends on the input")
    size, out = tape.shape(x)[2:], tape.shape(node.outputs[0])[2:]
    kernel = tape.shape(weight)[2:]
    stride, dilation, before, after = window_of(node, size, kernel)
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    group = int(node.attrs.get("group", 1))
    gx = None
    if node.need(0):
        fixed = tape.value(weight)
        begin = [e - 1 - p for e, p in zip(extent, before, strict=True)]
        end = [n + e - 1 - o - b for n, e, o, b in zip(size, extent, out, begin, strict=True)]
        if fixed is not None and set(stride) == {1} and min(*begin, *end) >= 0:
            flipped = tape.const(_flip(fixed, group))
            gx = tape.op("Conv", g, flipped, dilations=dilation, group=group, pads=[*begin, *end])
        else:
            missing = [
                n - (s * (o - 1) + e - b - a)
                for n, s, o, e, b, a in zip(size, stride, out, extent, before, after, strict=True)
            ]
            gx = tape.op(
                "ConvTranspose", g, weight, strides=stride, dilations=dilation, group=group, pads=[*before, *after],
                output_padding=missing,
            )  # fmt: skip
    return [gx, None, _channel_sum(tape, g, len(size)) if node.need(2) else None]


def _flip(weight: np.ndarray, group: int) -> np.ndarray:
    """Kernel ``[M, C/group, k..]`` of a Conv -> kernel ``[C, M/group, k..]`` of its adjoint at stride 1."""
    spatial = weight.shape[2:]
    split = weight.reshape(group, weight.shape[0] // group, weight.shape[1], *spatial).swapaxes(1, 2)
    flat = split.reshape(group * weight.shape[1], weight.shape[0] // group, *spatial)
    return np.flip(flat, axis=tuple(range(2, flat.ndim)))


def _channel_sum(tape: Tape, g: str, spatial: int) -> str:
    return tape.reduce("ReduceSum", g, [0, *range(2, 2 + spatial)], keepdims=False)


@vjp("ConvTranspose")
def conv_transpose(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """``grad_x = Conv(grad_y, W)`` with the same strides, dilations, groups and pads."""
    x, weight = node.inputs[:2]
    (g,) = grads
    assert g is not None
    if node.need(1):
        raise NoRule("its kernel depends on the input")
    size, out = tape.shape(x)[2:], tape.shape(node.outputs[0])[2:]
    kernel = tape.shape(weight)[2:]
    rank = len(size)
    stride = list(node.attrs.get("strides") or [1] * rank)
    dilation = list(node.attrs.get("dilations") or [1] * rank)
    extra = list(node.attrs.get("output_padding") or [0] * rank)
    total = [
        s * (n - 1) + e + (k - 1) * d + 1 - o
        for s, n, e, k, d, o in zip(stride, size, extra, kernel, dilation, out, strict=True)
    ]
    mode = node.attrs.get("auto_pad", "NOTSET")
    if mode == "NOTSET" and "output_shape" not in node.attrs:
        before = list(node.attrs.get("pads") or [0] * (2 * rank))[:rank]
    else:
        before = [t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in total]
    after = [t - b for t, b in zip(total, before, strict=True)]
    gx = None
    if node.need(0):
        crop_before, crop_after = [max(-b, 0) for b in before], [max(-a, 0) for a in after]
        inner = tape.pad(g, [0, 0, *(-c for c in crop_before)], [0, 0, *(-c for c in crop_after)])
        gx = tape.op(
            "Conv", inner, weight, strides=stride, dilations=dilation, group=int(node.attrs.get("group", 1)),
            pads=[*(max(b, 0) for b in before), *(max(a, 0) for a in after)],
        )  # fmt: skip
        gx = _crop(tape, gx, size, out, stride, kernel, dilation, before, after)
    return [gx, None, _channel_sum(tape, g, rank) if node.need(2) else None]


def _crop(
    tape: Tape, gx: str, size: Sequence[int], out: Sequence[int], stride: Sequence[int], kernel: Sequence[int],
    dilation: Sequence[int], before: Sequence[int], after: Sequence[int],
) -> str:  # fmt: skip
    """Drop positions beyond the input, which appear when ``output_padding >= stride``."""
    made = [
        (o + b + a - (k - 1) * d - 1) // s + 1
        for o, b, a, k, d, s in zip(out, before, after, kernel, dilation, stride, strict=True)
    ]
    surplus = [n - m for n, m in zip(size, made, strict=True)]
    return tape.pad(gx, [0] * (2 + len(size)), [0, 0, *surplus])


@vjp("MatMul")
def matmul(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """``grad_A = grad_Y B^T``, ``grad_B = A^T grad_Y``, summed over the axes that were broadcast."""
    a, b = node.inputs
    (g,) = grads
    assert g is not None
    shape_a, shape_b = tape.shape(a), tape.shape(b)
    full_a = shape_a if len(shape_a) > 1 else (1, *shape_a)
    full_b = shape_b if len(shape_b) > 1 else (*shape_b, 1)
    batch = np.broadcast_shapes(full_a[:-2], full_b[:-2])
    g = tape.reshape(g, [*batch, full_a[-2], full_b[-1]]) if 1 in (len(shape_a), len(shape_b)) else g
    a = a if len(shape_a) > 1 else tape.reshape(a, full_a)
    b = b if len(shape_b) > 1 else tape.reshape(b, full_b)
    ga = gb = None
    if node.need(0):
        ga = tape.op("MatMul", g, _swap_last(tape, b, len(full_b)))
        ga = tape.unbroadcast(ga, (*batch, *full_a[-2:]), full_a)
        ga = tape.reshape(ga, shape_a) if len(shape_a) == 1 else ga
    if node.need(1):
        gb = _matmul_right(tape, a, g, full_a, full_b, batch)
        gb = tape.reshape(gb, shape_b) if len(shape_b) == 1 else gb
    return [ga, gb]


def _matmul_right(
    tape: Tape, a: str, g: str, shape_a: Sequence[int], shape_b: Sequence[int], batch: Sequence[int]
) -> str:
    if len(shape_b) == 2 and len(shape_a) > 2:  # one contraction over batch and rows together
        a = tape.reshape(a, [-1, shape_a[-1]])
        g = tape.reshape(g, [-1, shape_b[-1]])
        return tape.op("MatMul", tape.transpose(a, [1, 0]), g)
    product = tape.op("MatMul", _swap_last(tape, a, len(shape_a)), g)
    return tape.unbroadcast(product, (*batch, *shape_b[-2:]), tuple(shape_b))


def _swap_last(tape: Tape, tensor: str, rank: int) -> str:
    return tape.transpose(tensor, [*range(rank - 2), rank - 1, rank - 2])


@vjp("Gemm")
def gemm(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """``Y = alpha A' B' + beta C``: ``grad_A' = alpha grad_Y B'^T``, ``grad_B' = alpha A'^T grad_Y``."""
    a, b = node.inputs[:2]
    (g,) = grads
    assert g is not None
    alpha, beta = float(node.attrs.get("alpha", 1.0)), float(node.attrs.get("beta", 1.0))
    trans_a, trans_b = int(node.attrs.get("transA", 0)), int(node.attrs.get("transB", 0))
    ga = gb = gc = None
    if node.need(0):
        ga = (
            tape.op("Gemm", b, g, alpha=alpha, transA=trans_b, transB=1)
            if trans_a
            else tape.op("Gemm", g, b, alpha=alpha, transB=1 - trans_b)
        )
    if node.need(1):
        gb = (
            tape.op("Gemm", g, a, alpha=alpha, transA=1, transB=trans_a)
            if trans_b
            else tape.op("Gemm", a, g, alpha=alpha, transA=1 - trans_a)
        )
    if node.need(2):
        gc = tape.unbroadcast(tape.op("Mul", g, beta), tape.shape(node.outputs[0]), tape.shape(node.input(2)))
    return [ga, gb, gc]


@vjp("Einsum")
def einsum(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """The gradient of an operand is the Einsum of the output's gradient with the other operands.

    Not covered: an ellipsis, and an index twice in one operand.
    """
    (g,) = grads
    assert g is not None
    terms, result = _parse_equation(str(node.attrs["equation"]))
    found: list[str | None] = []
    for index, term in enumerate(terms):
        if not node.need(index):
            found.append(None)
            continue
        others = [(t, name) for i, (t, name) in enumerate(zip(terms, node.inputs, strict=True)) if i != index]
        known = set(result).union(*(t for t, _ in others))
        kept = "".join(letter for letter in term if letter in known)
        equation = ",".join([result, *(t for t, _ in others)]) + "->" + kept
        gradient = tape.op("Einsum", g, *(name for _, name in others), equation=equation)
        if kept != term:  # an index that was only summed: its gradient is constant along it
            shape = tape.shape(node.inputs[index])
            kept_shape = [n if letter in known else 1 for letter, n in zip(term, shape, strict=True)]
            gradient = tape.op("Expand", tape.reshape(gradient, kept_shape), tape.ints(shape))
        found.append(gradient)
    return found


def _parse_equation(equation: str) -> tuple[list[str], str]:
    equation = equation.replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if "." in equation or any(len(set(term)) != len(term) for term in terms):
        raise NoRule(f"equation {equation!r} has an ellipsis or a repeated index")
    if not arrow:
        letters = "".join(terms)
        right = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    return terms, right
