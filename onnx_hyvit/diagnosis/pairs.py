"""What is quantized in a QDQ model: activations behind Q/DQ pairs, and weights stored as codes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Gather", "Expand"})
_INPUT_SUFFIX = "_QuantizeLinear_Input"
_RESULT_SUFFIX = "_DequantizeLinear_Output"
_CODES_SUFFIX = "_quantized"


@dataclass(frozen=True)
class ActivationPair:
    """An activation that passes QuantizeLinear, perhaps a Clip of its codes, and DequantizeLinear.

    Args:
        tensor: Its name in the float model, where it kept one; that of its result where it converts codes to another
            width, or quantizes once more what another pair quantizes already.
        source: Tensor that is quantized.
        results: Outputs of the DequantizeLinear nodes.
        dequantizers: Positions of these nodes in the graph.
        factors: Scale of each of these nodes over that of QuantizeLinear: not 1 where a product was folded into it.
        maker: Position of the node that makes ``source``; None for a graph input.
        low: Smallest value of ``results[0]`` that has a code, float64 scalar or [C].
        high: Largest value that has a code.
        levels: Number of codes.
        scale: Scale of the codes.
        zero_point: Their zero point.
        element: ONNX element type of the values.
        tied: Whether a node that only moves values makes it from a tensor with the same codes: no rounding of its own.
    """

    tensor: str
    source: str
    results: tuple[str, ...]
    dequantizers: tuple[int, ...]
    factors: tuple[float, ...]
    maker: int | None
    low: np.ndarray
    high: np.ndarray
    levels: int
    scale: np.ndarray
    zero_point: np.ndarray
    element: int
    tied: bool


@dataclass(frozen=True)
class WeightCodes:
    """A constant behind DequantizeLinear.

    Args:
        tensor: Its name in the float model, where it kept one.
        result: Output of the DequantizeLinear node.
        dequantizer: Position of that node in the graph.
        values: What the codes stand for.
        bits: Bits that the codes in use need.
        is_bias: Whether it is a bias in int32: its rounding is tiny, but a quantizer may have corrected it.
    """

    tensor: str
    result: str
    dequantizer: int
    values: np.ndarray
    bits: int
    is_bias: bool = False


class GraphIndex:
    """Who makes and who reads each tensor of a graph, by position of the node, and the values of constants."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.maker: dict[str, int] = {}
        self.readers: dict[str, list[int]] = {}
        for position, node in enumerate(graph.node):
            self.maker.update((name, position) for name in node.output if name)
            for name in node.input:
                self.readers.setdefault(name, []).append(position)
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t

    def value(self, name: str) -> np.ndarray | None:
        """The constant of that name, or None."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def reading(self, name: str, operator: str) -> list[int]:
        """Positions of the nodes of one operator type that read ``name``."""
        return [place for place in self.readers.get(name, ()) if self.graph.node[place].op_type == operator]


def find_pairs(index: GraphIndex) -> list[ActivationPair]:
    """The activation pairs of a graph, in its order; codes that something else than Clip or DQ reads are left out."""
    found: dict[str, ActivationPair] = {}
    for place, node in enumerate(index.graph.node):
        if node.op_type != "QuantizeLinear" or node.input[0] in index.constants:
            continue
        codes, limits = _behind_clip(index, node.output[0])
        readers = index.readers.get(codes, [])
        scale = index.value(node.input[1])
        factors = _factors(index, readers, node, scale) if scale is not None else []
        if scale is None or not factors:
            continue
        pair = _pair(
            index, place, dict(sorted(zip(readers, factors, strict=True), key=_plain_first)), scale, limits, found
        )
        found.update((name, pair) for name in pair.results)
    return list({id(pair): pair for pair in found.values()}.values())


def _plain_first(item: tuple[int, float]) -> bool:
    return item[1] != 1.0


def _factors(index: GraphIndex, readers: list[int], quantize: onnx.NodeProto, scale: np.ndarray) -> list[float]:
    """Scale of each reader over ``scale``; nothing when a reader is no DequantizeLinear of the same codes."""
    found = []
    for reader in readers:
        node = index.graph.node[reader]
        other = index.value(node.input[1]) if node.op_type == "DequantizeLinear" else None
        zeros = [index.value(each.input[2]) if len(each.input) > 2 else None for each in (quantize, node)]
        if other is None or other.shape != scale.shape or not _same(*zeros):
            return []
        ratios = other.astype(np.float64) / scale
        if not np.allclose(ratios, ratios.flat[0], rtol=1e-5):
            return []
        found.append(1.0 if abs(ratios.flat[0] - 1) < 1e-5 else float(ratios.flat[0]))
    return found


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return (a is None or not a.any()) if b is None else (not b.any() if a is None else np.array_equal(a, b))


def _behind_clip(index: GraphIndex, codes: str) -> tuple[str, tuple[int, int] | None]:
    clips = index.reading(codes, "Clip")
    if len(clips) != 1 or len(index.readers[codes]) != 1:
        return codes, None
    clip = index.graph.node[clips[0]]
    bounds = [index.value(name) for name in clip.input[1:3]]
    if len(bounds) != 2 or bounds[0] is None or bounds[1] is None:
        return clip.output[0], None
    return clip.output[0], (int(bounds[0]), int(bounds[1]))


def _pair(
    index: GraphIndex,
    place: int,
    readers: dict[int, float],
    scale: np.ndarray,
    limits: tuple[int, int] | None,
    found: dict[str, ActivationPair],
) -> ActivationPair:
    nodes = index.graph.node
    node = nodes[place]
    zero_point = index.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    dtype = np.dtype(np.uint8) if zero_point is None else zero_point.dtype
    bounds = limits or (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    zero = np.float64(0) if zero_point is None else zero_point.astype(np.float64)
    factor = next(iter(readers.values()))
    low, high = ((bound - zero) * scale.astype(np.float64) * factor for bound in bounds)
    maker = index.maker.get(node.input[0])
    before = found.get(nodes[maker].input[0]) if maker is not None and nodes[maker].op_type in MOVES else None
    several = len(index.reading(node.input[0], "QuantizeLinear")) > 1
    converted = maker is not None and nodes[maker].op_type == "DequantizeLinear"
    result = nodes[next(iter(readers))].output[0]
    tied = before is not None and np.array_equal(before.scale, scale) and np.array_equal(before.zero_point, zero)
    return ActivationPair(
        tensor=result.removesuffix(_RESULT_SUFFIX)
        if converted or several
        else node.input[0].removesuffix(_INPUT_SUFFIX),
        source=node.input[0],
        results=tuple(nodes[reader].output[0] for reader in readers),
        dequantizers=tuple(readers),
        factors=tuple(readers.values()),
        maker=maker,
        low=np.asarray(low),
        high=np.asarray(high),
        levels=bounds[1] - bounds[0] + 1,
        scale=scale,
        zero_point=np.asarray(zero),
        element=index.constants[node.input[1]].data_type,
        tied=tied,
    )


def find_weights(index: GraphIndex) -> Iterator[WeightCodes]:
    """The constants behind DequantizeLinear, in the graph's order."""
    for place, node in enumerate(index.graph.node):
        tensor = index.constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        scale = index.value(node.input[1]) if tensor is not None else None
        if tensor is None or scale is None:
            continue
        codes = numpy_helper.to_array(tensor).astype(np.float64)
        zero_point = index.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        spread = [1] * codes.ndim
        if scale.ndim:
            spread[min(axis, codes.ndim - 1)] = -1  # onnxruntime writes axis 1 for biases, which have one axis
        zero = 0.0 if zero_point is None else zero_point.astype(np.float64).reshape(spread)
        centered = codes - zero
        values = (centered * scale.astype(np.float64).reshape(spread)).astype(scale.dtype)
        largest = float(np.abs(centered).max(initial=1))
        bits = min(8, int(np.ceil(np.log2(largest + 1))) + 1)
        name, is_bias = tensor.name.removesuffix(_CODES_SUFFIX), tensor.data_type == TensorProto.INT32
        yield WeightCodes(name, node.output[0], place, values, bits, is_bias)
