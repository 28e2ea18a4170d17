"""VJP rule of the fused Attention operator (opset 23): ``Y = softmax(scale Q K^T + mask) V`` per head."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .registry import ForwardNode, Gradients, NoRule, vjp
from .tape import Tape


@vjp("Attention")
def attention(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """P the probabilities: ``dV = P^T g``, ``dS = P (dP - sum(dP P))``, ``dQ = scale dS K``, ``dK = scale dS^T Q``.

    Not covered: a cache, grouped queries, a soft cap, a gradient of the mask.
    """
    g = grads[0]
    if g is None or any(other is not None for other in grads[1:]):
        raise NoRule("its cache or score outputs are used")
    if any(node.input(index) for index in (4, 5, 6)) or node.attrs.get("softcap", 0.0) or node.need(3):
        raise NoRule("a cache, a soft cap, or a mask that depends on the input")
    heads = int(node.attrs.get("q_num_heads", 0))
    if heads != int(node.attrs.get("kv_num_heads", heads)):
        raise NoRule("grouped queries")
    names = [*node.inputs[:3], node.outputs[0]]
    full = [_head_shape(tape.shape(name), heads) for name in names]
    if full[0][1] != full[1][1]:
        raise NoRule("grouped queries")
    q, k, v = (_to_heads(tape, name, tape.shape(name), heads) for name in node.inputs[:3])
    g = _to_heads(tape, g, tape.shape(node.outputs[0]), heads)
    scale = float(node.attrs.get("scale", 0.0)) or 1.0 / math.sqrt(full[0][-1])
    p = _probabilities(tape, node, q, k, scale, (full[0][2], full[1][2]))
    dp = tape.op("Mul", tape.op("MatMul", g, tape.transpose(v, [0, 1, 3, 2])), p)
    ds = tape.op("Mul", tape.op("Sub", dp, tape.op("Mul", p, tape.reduce("ReduceSum", dp, [3]))), scale)
    parts = [
        tape.op("MatMul", ds, k),
        tape.op("MatMul", tape.transpose(ds, [0, 1, 3, 2]), q),
        tape.op("MatMul", tape.transpose(p, [0, 1, 3, 2]), g),
    ]
    found: list[str | None] = [
        _from_heads(tape, part, tape.shape(name)) for part, name in zip(parts, node.inputs[:3], strict=True)
    ]
    return found + [None] * (len(node.inputs) - 3)


def _head_shape(shape: Sequence[int], heads: int) -> tuple[int, ...]:
    return tuple(shape) if len(shape) == 4 else (shape[0], heads, shape[1], shape[2] // heads)


def _to_heads(tape: Tape, name: str, shape: Sequence[int], heads: int) -> str:
    """``[B, N, H D]`` -> ``[B, H, N, D]``; four axes stay."""
    if len(shape) == 4:
        return name
    split = tape.reshape(name, [shape[0], shape[1], heads, shape[2] // heads])
    return tape.transpose(split, [0, 2, 1, 3])


def _from_heads(tape: Tape, name: str, shape: Sequence[int]) -> str:
    return name if len(shape) == 4 else tape.reshape(tape.transpose(name, [0, 2, 1, 3]), shape)


def _probabilities(tape: Tape, node: ForwardNode, q: str, k: str, scale: float, size: tuple[int, int]) -> str:
    scores = tape.op("Mul", tape.op("MatMul", q, tape.transpose(k, [0, 1, 3, 2])), scale)
    dtype = tape.dtype(node.inputs[0])
    mask = node.input(3)
    if mask and tape.dtype(mask) == np.dtype(bool):
        scores = tape.op("Where", mask, scores, float(np.finfo(dtype).min))
    elif mask:
        scores = tape.op("Add", scores, mask)
    if node.attrs.get("is_causal", 0):
        allowed = np.tri(size[0], size[1], dtype=bool)
        scores = tape.op("Where", tape.const(allowed), scores, float(np.finfo(dtype).min))
    return tape.op("Softmax", scores, axis=-1)
