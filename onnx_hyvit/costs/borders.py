"""What it costs to go from one unit to the next: Q/DQ pairs, and changes between the data layouts of kernels.

Float convolutions work on blocks of channels, int8 convolutions on channels last, everything else on what the file
says; element-wise operators and pooling take over the layout of the convolution beside them. Transpositions move
through an element-wise operator that stays float anyway: nothing is paid between it and an int8 convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import onnx_graphsurgeon as gs

from .kernels import FLOAT_BLOCK, Shape, Work, kernel_name, transpose_name
from .profile import Profile
from .units import Unit, copies_pixels, elements

PLAIN, BLOCKED, LAST, ANY = "plain", "blocked", "channels last", "any"
FOLLOWERS = frozenset({"Add", "Mul", "Sigmoid", "Relu", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "LeakyRelu"})
ANY_LAYOUT = frozenset(
    {"Gelu", "Erf", "HardSwish", "HardSigmoid", "Tanh", "Sub", "Div", "Neg", "Sqrt", "Softplus", "Sum"}
)
Table = tuple[tuple[float, float], tuple[float, float]]  # [producer is int8][consumer is int8] -> us


def layout_of(node: gs.Node | None, int8: bool, is_free: bool, shapes: Mapping[str, Shape]) -> str:
    """Layout of the maps that ``node`` reads and writes; PLAIN outside of convolutions and what follows them."""
    if node is None:
        return PLAIN
    if node.op in ANY_LAYOUT or (not is_free and node.op in FOLLOWERS):
        return ANY
    convolutional = node.op == "Conv" or (_follows(node) and _beside_convolution(node))
    if not convolutional:
        return PLAIN
    if int8:
        return LAST
    shape = shapes.get(node.outputs[0].name, ())
    return BLOCKED if len(shape) == 4 and shape[1] % FLOAT_BLOCK == 0 else PLAIN


def _follows(node: gs.Node) -> bool:
    return node.op in FOLLOWERS or copies_pixels(node)


def _beside_convolution(node: gs.Node, depth: int = 4) -> bool:
    """Whether a convolution writes what ``node`` reads, directly or through other followers."""
    for tensor in node.inputs:
        for before in tensor.inputs:
            if before.op == "Conv" or (depth and _follows(before) and _beside_convolution(before, depth - 1)):
                return True
    return False


def quantize_us(tensor: gs.Tensor, shapes: Mapping[str, Shape], profile: Profile) -> float:
    """Microseconds of the Q that a float tensor needs once, however many int8 nodes read it."""
    return _us(profile, "QuantizeLinear", False, elements(tensor, shapes))


def border(
    tensor: gs.Tensor,
    producer: gs.Node | None,
    consumer: gs.Node | None,
    units: tuple[Unit, Unit],
    shapes: Mapping[str, Shape],
    profile: Profile,
    dequantized: bool,
) -> Table:
    """Microseconds between two nodes for each of their four states, Q left out (it is paid once per tensor).

    Args:
        tensor: What ``producer`` writes and ``consumer`` reads.
        producer: None for a graph input.
        consumer: None for a graph output.
        units: Units of the two. A float SiLU behind a DQ is two kernels and two DQs instead of one kernel.
        shapes: Concrete shapes.
        profile: Costs.
        dequantized: Whether a DQ follows an int8 producer; a linear layer that only float nodes read has none.
    """
    size = elements(tensor, shapes)
    moved = len(shapes.get(tensor.name, ())) == 4 and elements(tensor, shapes) > max(shapes[tensor.name])

    def change(from_int8: bool, to_int8: bool) -> float:
        if not moved:
            return 0.0
        layouts = (
            layout_of(producer, from_int8, units[0].is_free, shapes),
            layout_of(consumer, to_int8, units[1].is_free, shapes),
        )
        if layouts[0] == layouts[1] or (ANY in layouts and BLOCKED not in layouts):
            return 0.0
        cost = _us(profile, "Reorder", False, size) if BLOCKED in layouts else 0.0
        return cost + (_transpose_us(shapes[tensor.name], layouts[1] == LAST, profile) if LAST in layouts else 0.0)

    dequantize = _us(profile, "DequantizeLinear", False, size) if dequantized else 0.0
    unit = units[1]
    if unit.is_silu and dequantized:
        apart = _us(profile, "Sigmoid", False, size) + _us(profile, "Mul", False, 2 * size, size)
        dequantize = 2 * dequantize + max(0.0, apart - unit.float_us)
    return (change(False, False), change(False, True)), (change(True, False) + dequantize, change(True, True))


def _transpose_us(shape: Shape, to_last: bool, profile: Profile) -> float:
    """Codes of a map ``[N, C, H, W]`` brought to channels last, or back."""
    last = (shape[0], *shape[2:], shape[1])
    name = transpose_name(shape, last) if to_last else transpose_name(last, shape)
    return profile.us(name, Work(0, prod(shape), prod(shape))) or 0.0


def _us(profile: Profile, op: str, int8: bool, read: int, written: int | None = None) -> float:
    return profile.us(kernel_name(op, int8), Work(0, read, read if written is None else written)) or 0.0
