"""Families of kernels that cost alike, and the amount of work of one call: the two things that a profile knows."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

Shape = tuple[int, ...]
FLOAT_BLOCK = 8  # channels that the float convolution kernels of AVX2 work on at once (NCHWc)
INT8_BLOCK = {"pointwise": 4, "dense": 4, "stem": 4, "depthwise": 16, "depthwise_wide": 16}
STEM_CHANNELS = 4
RAGGED, ALIASED = "_ragged", "_aliased"  # harder cases of a family, behind its name
PAGE = 4096  # bytes: rows that lie a multiple of it apart share the sets of a first-level cache (64 of 64 bytes),
WAYS = 16  # which hold that many of them, two for each way of the common eight
NARROW_TAPS = 9
_SAME_NAME = {
    "QLinearConv": "Conv",
    "FusedConv": "Conv",
    "NhwcFusedConv": "Conv",
    "QGemm": "Gemm",
    "FusedGemm": "Gemm",
    "QLinearMatMul": "MatMul",
    "MatMulIntegerToFloat": "MatMul",
    "FusedMatMul": "MatMul",
    "TransposeMatMul": "MatMul",
    "QLinearAdd": "Add",
    "QLinearMul": "Mul",
    "QLinearSigmoid": "Sigmoid",
    "QLinearConcat": "Concat",
    "QLinearGlobalAveragePool": "GlobalAveragePool",
    "QLinearLeakyRelu": "LeakyRelu",
    "ReorderInput": "Reorder",
    "ReorderOutput": "Reorder",
    "QuickGelu": "Silu",
    "SkipLayerNormalization": "LayerNormalization",
}
MOVES = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather", "Split", "Expand", "Identity"})


@dataclass(frozen=True)
class Work:
    """Work of one call of a kernel, the independent variables of its cost.

    Args:
        macs: Multiply-accumulate operations.
        read: Elements of activations read.
        written: Elements written.
        weights: Elements of constant weights read.
        gathered: Of a convolution with taps, what its kernel gathers before it multiplies: positions of the output
            times taps times channels of a group (im2col; by depth, one pointer for each).
    """

    macs: int = 0
    read: int = 0
    written: int = 0
    weights: int = 0
    gathered: int = 0

    def values(self) -> tuple[float, ...]:
        """``(1, macs, read, written, weights, gathered)``: what a kernel's coefficients are multiplied with."""
        return 1.0, *map(float, (self.macs, self.read, self.written, self.weights, self.gathered))


def convolution_kind(weight: Shape, group: int, int8: bool) -> str:
    """Family of a convolution.

    Args:
        weight: Shape ``[out, in / group, *taps]``.
        group: Its groups.
        int8: Whether its int8 kernel is meant.

    Returns:
        ``pointwise``, ``dense``, ``stem``, ``depthwise`` or ``depthwise_wide``, ``_ragged`` behind it where the
        channels are no whole blocks of the kernel.
    """
    taps, channels_in = prod(weight[2:]), weight[1] * group
    channels: Shape = (weight[0], channels_in)
    if group > 1 and weight[1] == 1:
        kind = "depthwise" if taps <= NARROW_TAPS else "depthwise_wide"
        channels = (weight[0],)
    elif channels_in <= STEM_CHANNELS:
        kind, channels = "stem", channels if int8 else (weight[0],)
    else:
        kind = "pointwise" if taps == 1 else "dense"
    block = INT8_BLOCK[kind] if int8 else FLOAT_BLOCK
    return kind if all(count % block == 0 for count in channels) else kind + RAGGED


def kernel_name(op: str, int8: bool, detail: str = "") -> str:
    """Name of a family in a profile, such as ``int8.Conv.pointwise``."""
    return ".".join(part for part in ("int8" if int8 else "float", op, detail) if part)


def transpose_name(before: Shape, after: Shape) -> str:
    """Family of the transposition of codes from ``before`` to ``after``.

    To channels last, each channel is a row of bytes; where their length is a multiple of ``PAGE`` they throw each other
    out of the cache: several times slower.
    """
    to_last = len(before) == 4 and after == (before[0], *before[2:], before[1])
    aliased = to_last and before[1] > WAYS and prod(before[2:]) % PAGE == 0
    return kernel_name("Transpose", True) + (ALIASED if aliased else "")


def work_of(op: str, inputs: tuple[Shape, ...], outputs: tuple[Shape, ...], weight: Shape | None = None) -> Work:
    """Work of one call.

    Args:
        op: ONNX operator, ``Silu`` for Sigmoid and Mul together, or ``Reorder``.
        inputs: Shapes of its activations.
        outputs: Shapes of its outputs.
        weight: Shape of its constant weight: ``[out, in / group, *taps]`` of a convolution, two axes of a Gemm.
    """
    read, written = sum(map(prod, inputs)), sum(map(prod, outputs))
    if op == "Conv" and weight is not None:
        macs = written * prod(weight[1:])
        gathered = macs // weight[0] if prod(weight[2:]) > 1 else 0
        return Work(macs, read, written, prod(weight), gathered)
    if op in ("Gemm", "MatMul") and weight is not None:
        return Work(read // max(1, inputs[0][-1]) * prod(weight), read, written, prod(weight))
    if op == "MatMul" and len(inputs) > 1:
        return Work(written * inputs[0][-1], read, written)
    return Work(0, read, written)


def kernel_of_event(
    op: str,
    dtype: str,
    inputs: tuple[Shape, ...],
    outputs: tuple[Shape, ...],
    weight: Shape | None = None,
    group: int = 1,
) -> tuple[str, Work] | None:
    """Family and work of a node of an optimised graph, as ONNX Runtime's profiler describes it.

    Args:
        op: Operator of the optimised graph, such as ``QLinearConv``.
        dtype: Type of its first input.
        inputs: Shapes of its inputs, scales included; weights are packed away by then and missing.
        outputs: Shapes of its outputs.
        weight: Shape of the weight of a convolution or linear layer, which the caller must know.
        group: Groups of a convolution.

    Returns:
        The family's name and the work; None when shapes are missing.
    """
    if not inputs or not outputs:
        return None
    int8 = op.startswith("QLinear") or op == "QGemm" or (dtype in ("uint8", "int8") and op != "DequantizeLinear")
    plain = _SAME_NAME.get(op, op)
    if plain in MOVES:
        plain = "Move"
    if plain == "Conv":
        if weight is None:
            return None
        name = kernel_name(plain, int8, convolution_kind(weight, group, int8))
        return name, work_of(plain, inputs[:1], outputs, weight)
    if plain in ("Gemm", "MatMul"):
        name = kernel_name("Gemm" if weight is not None else "MatMul", int8)
        return name, work_of(plain, inputs[:1] if weight is not None else inputs[:2], outputs, weight)
    if plain == "Transpose" and int8:
        if len(inputs[0]) == 4 and inputs[0] == outputs[0]:
            return None  # to channels last or back: the shapes do not tell
        return transpose_name(inputs[0], outputs[0]), work_of(plain, inputs[:1], outputs)
    read = tuple(shape for shape in inputs if prod(shape) > 1 or prod(outputs[0]) == 1)
    return kernel_name(plain, int8), work_of(plain, read or inputs[:1], outputs)
