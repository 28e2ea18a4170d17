"""Shapes to measure: those of mobile hybrids from 32 to 256 pixels, whole blocks of channels and ragged ones."""

from __future__ import annotations

from collections.abc import Iterator

from .models import Case

# (side of the map, channels in, channels out)
POINTWISE = [
    (128, 16, 64), (128, 16, 16), (128, 64, 32), (128, 32, 128), (112, 32, 16), (64, 64, 64), (64, 64, 24),
    (64, 32, 128), (64, 128, 64), (64, 96, 32), (64, 48, 96), (56, 48, 192),
    (32, 48, 192), (32, 96, 96), (32, 160, 40), (32, 64, 32), (28, 96, 384), (16, 96, 384), (16, 64, 64),
    (16, 240, 80), (16, 32, 32), (14, 224, 896), (14, 896, 224), (8, 160, 640), (8, 640, 160), (8, 80, 80),
    (8, 32, 64), (8, 16, 32), (7, 448, 1792), (4, 128, 512), (4, 64, 64), (4, 64, 16), (2, 320, 80), (2, 64, 256),
    (1, 160, 640),
]  # fmt: skip
POINTWISE_RAGGED = [
    (64, 18, 18), (32, 50, 100), (32, 30, 60), (16, 128, 257), (16, 33, 66), (8, 50, 100), (8, 257, 64),
    (64, 12, 12), (4, 30, 60), (56, 18, 72), (14, 130, 390), (7, 270, 90),
]  # fmt: skip
# (side, channels in, channels out, kernel, stride)
DENSE = [
    (64, 16, 16, 3, 1), (64, 32, 32, 3, 1), (56, 24, 48, 3, 2), (56, 48, 96, 3, 2), (32, 64, 64, 3, 1),
    (32, 96, 96, 3, 1), (32, 24, 48, 3, 2), (28, 96, 224, 3, 2), (16, 96, 96, 3, 1), (16, 32, 32, 3, 1),
    (14, 224, 448, 3, 2), (8, 160, 160, 3, 1), (8, 160, 96, 3, 1), (8, 80, 80, 3, 1), (8, 32, 64, 2, 2),
    (4, 64, 64, 3, 1), (4, 96, 128, 3, 1), (64, 24, 48, 2, 2),
]  # fmt: skip
DENSE_RAGGED = [
    (32, 18, 36, 3, 1), (16, 50, 50, 3, 1), (56, 20, 40, 3, 2), (8, 90, 60, 3, 1),
    (64, 18, 30, 3, 1), (56, 30, 60, 3, 2),
    (28, 50, 90, 3, 2), (14, 90, 90, 3, 1), (7, 130, 130, 3, 1), (16, 66, 66, 3, 1), (32, 10, 20, 3, 1),
    (8, 34, 70, 2, 2),
]  # fmt: skip
STEM = [
    (256, 3, 16, 3, 2), (224, 3, 24, 3, 2), (256, 3, 24, 4, 4), (112, 3, 16, 3, 2), (64, 3, 16, 3, 2),
    (32, 3, 16, 3, 1), (32, 3, 32, 3, 2), (48, 3, 48, 3, 2), (256, 4, 16, 3, 2), (224, 4, 32, 3, 2),
    (224, 4, 24, 3, 2), (256, 4, 24, 4, 4), (112, 4, 16, 3, 2), (64, 4, 16, 3, 1), (64, 4, 48, 4, 4), (32, 4, 32, 3, 1),
    (32, 4, 16, 3, 2), (64, 4, 24, 3, 2), (224, 4, 96, 4, 4), (128, 4, 16, 3, 1), (224, 4, 64, 7, 2),
]  # fmt: skip
STEM_SIDES = (32, 48, 64, 96, 112, 128, 160, 192, 224, 256)
# (side, channels, kernel, stride)
DEPTHWISE = [
    (128, 16, 3, 1), (128, 64, 3, 2), (64, 64, 3, 1), (64, 128, 3, 2), (32, 96, 3, 1), (32, 256, 3, 2),
    (28, 192, 3, 1), (16, 64, 3, 1), (16, 384, 3, 2), (16, 240, 3, 1), (14, 480, 3, 1), (8, 320, 3, 1),
    (8, 640, 3, 1), (8, 64, 3, 1), (4, 512, 3, 1), (4, 128, 3, 1), (2, 320, 3, 1), (7, 896, 3, 1),
]  # fmt: skip
DEPTHWISE_RAGGED = [
    (64, 24, 3, 1), (32, 40, 3, 1), (16, 72, 3, 2), (16, 120, 3, 1), (8, 24, 3, 1), (8, 88, 3, 1), (56, 72, 3, 2),
    (28, 120, 3, 1), (14, 200, 3, 1), (7, 360, 3, 1),
]  # fmt: skip
DEPTHWISE_WIDE = [
    (32, 48, 5, 1), (16, 96, 5, 1), (16, 128, 7, 1), (8, 160, 7, 1), (8, 160, 9, 1), (28, 64, 7, 1), (4, 304, 9, 1),
    (14, 128, 5, 2), (8, 64, 5, 1), (4, 128, 7, 1),
]  # fmt: skip
DEPTHWISE_WIDE_RAGGED = [
    (32, 24, 5, 1), (16, 120, 5, 1), (16, 88, 7, 1), (8, 168, 9, 1), (8, 88, 5, 1), (28, 72, 5, 2), (14, 120, 7, 1),
    (32, 40, 7, 1), (7, 200, 5, 1), (16, 24, 9, 1),
]  # fmt: skip
# (rows, channels in, channels out)
LINEAR = [
    (4096, 24, 96), (1024, 64, 128), (1024, 64, 64), (1024, 144, 288), (256, 144, 288), (256, 144, 432),
    (256, 88, 352), (256, 96, 96), (256, 64, 64), (196, 192, 768), (196, 768, 192), (80, 120, 360), (64, 192, 384),
    (64, 80, 160), (64, 160, 480), (64, 240, 720), (49, 448, 1792), (49, 1792, 448), (49, 448, 1536), (16, 64, 192),
    (16, 192, 192), (16, 304, 1216), (64, 32, 64), (16, 32, 32), (4, 128, 128), (1, 640, 1000), (1, 320, 1000),
    (1, 320, 10), (6, 192, 64),
]  # fmt: skip
# [channels, side]
MAPS = [
    (16, 128), (64, 64), (32, 64), (192, 32), (96, 32), (64, 28), (384, 16), (64, 16), (32, 16), (320, 8), (80, 8),
    (32, 8), (512, 4), (64, 4), (320, 2),
]  # fmt: skip
TOKENS = [
    (4, 256, 144), (4, 64, 192), (4, 16, 240), (1, 1024, 64), (1, 256, 88), (1, 64, 160), (1, 49, 448), (1, 16, 64),
    (64, 49, 96), (1, 80, 120),
]  # fmt: skip
# [batch of heads, queries, keys, channels of a head]
ATTENTION = [
    (16, 256, 256, 36), (16, 64, 64, 48), (16, 16, 16, 60), (4, 256, 256, 16), (8, 49, 49, 32), (4, 64, 64, 16),
    (8, 80, 80, 15), (4, 16, 16, 16), (4, 16, 1024, 16),
]  # fmt: skip


def all_cases() -> Iterator[Case]:
    """Every case, in a fixed order."""
    yield from _convolutions()
    for rows, channels_in, channels_out in LINEAR:
        yield Case("Gemm", ((rows, channels_in),), (channels_in, channels_out))
    for channels, side in MAPS:
        yield from _on_map((1, channels, side, side))
    for shape in TOKENS:
        yield from _on_tokens(shape)
    for heads, queries, keys, width in ATTENTION:
        yield Case("MatMul", ((1, heads, queries, width), (1, heads, width, keys)), int8=False)
        yield Case("MatMul", ((1, heads, queries, keys), (1, heads, keys, width)), int8=False)
        yield Case("Softmax", ((1, heads, queries, keys),), attributes={"axis": -1}, int8=False)


def _convolutions() -> Iterator[Case]:
    for side, channels_in, channels_out in POINTWISE + POINTWISE_RAGGED:
        yield _convolution(side, channels_in, channels_out, 1, 1, 1)
    for side in STEM_SIDES:
        yield Case("Pad", ((1, 3, side, side),), constants=((0, 0, 0, 0, 0, 1, 0, 0),), int8=False)
    for side, channels_in, channels_out, kernel, stride in DENSE + DENSE_RAGGED + STEM:
        yield _convolution(side, channels_in, channels_out, kernel, stride, 1)
    for side, channels, kernel, stride in DEPTHWISE + DEPTHWISE_RAGGED + DEPTHWISE_WIDE + DEPTHWISE_WIDE_RAGGED:
        yield _convolution(side, channels, channels, kernel, stride, channels)


def _convolution(side: int, channels_in: int, channels_out: int, kernel: int, stride: int, group: int) -> Case:
    before = (kernel - 1) // 2 if kernel % 2 else 0
    return Case(
        "Conv",
        ((1, channels_in, side, side),),
        (channels_out, channels_in // group, kernel, kernel),
        {"pads": [before] * 4, "strides": [stride] * 2, "group": group},
    )


def _on_map(shape: tuple[int, ...]) -> Iterator[Case]:
    yield Case("Add", (shape, shape))
    yield Case("Mul", (shape, (*shape[:2], 1, 1)))
    yield Case("Mul", (shape, shape))
    yield Case("Sigmoid", (shape,))
    yield Case("Silu", (shape,))
    yield Case("Concat", (shape, shape), attributes={"axis": 1})
    yield Case("GlobalAveragePool", (shape,))
    yield Case("Transpose", (shape,), attributes={"perm": [0, 2, 1, 3]})
    yield Case("Gelu", (shape,), int8=False)
    yield Case("Relu", (shape,), int8=False)


def _on_tokens(shape: tuple[int, ...]) -> Iterator[Case]:
    yield Case("Add", (shape, shape))
    yield Case("Sigmoid", (shape,))
    yield Case("Silu", (shape,))
    yield Case("Transpose", (shape,), attributes={"perm": [1, 0, 2]})
    yield Case("Transpose", (shape,), attributes={"perm": [0, 2, 1]})
    yield Case("Reshape", (shape,), constants=((shape[0] * shape[1], shape[2]),))
    yield Case("Slice", (shape,), constants=((0,), (shape[2] // 2,), (2,)))
    yield Case("LayerNormalization", (shape,), int8=False)
    yield Case("Gelu", (shape,), int8=False)
