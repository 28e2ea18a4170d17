"""Shape rules: the symbolic shape of a node's first output from those of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from ..edit import has_input, ints_of
from . import dims
from .dims import Dim, Monomial

Shape = tuple[Dim, ...]

SAME = frozenset(
    "Abs BatchNormalization Cast Celu Clip CumSum Dropout Elu Erf Exp Floor Ceil Round Gelu GroupNormalization "
    "HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsNaN IsInf LayerNormalization LeakyRelu Log "
    "LogSoftmax LpNormalization LRN Mish Neg Not PRelu QuantizeLinear DequantizeLinear RMSNormalization Reciprocal "
    "Relu Selu "
    "Sigmoid Sign Sin Cos Softmax Softplus Softsign Sqrt Swish Tanh ThresholdedRelu Trilu".split()
)
BROADCAST = frozenset(
    "Add Sub Mul Div Pow Mod Max Min Sum Mean And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual Where".split()
)
REDUCE = frozenset(
    "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSumExp".split()
)


@dataclass(frozen=True)
class Context:
    """What a shape rule may look at: input shapes and contents (None where unknown)."""

    shapes: Sequence[Shape | None]
    values: Sequence[np.ndarray | None]

    def target(self, index: int) -> list[dims.Element] | None:
        """Contents of input ``index`` as a flat list."""
        value = self.values[index] if index < len(self.values) else None
        return None if value is None else list(value.reshape(-1))


def broadcast(shapes: Sequence[Shape | None]) -> Shape | None:
    """Shape after ONNX broadcasting; an unknown or ambiguous axis is None."""
    if any(shape is None for shape in shapes):
        return None
    known = [shape for shape in shapes if shape is not None]
    rank = max(len(shape) for shape in known)
    result: list[Dim] = []
    for axis in range(rank):
        column = [shape[axis - rank] for shape in known if len(shape) >= rank - axis]
        wide = [dim for dim in column if dim != 1]
        numbers = [dim for dim in wide if isinstance(dim, int)]
        result.append(1 if not wide else numbers[0] if numbers else wide[0] if len(set(wide)) == 1 else None)
    return tuple(result)


def _transpose(node: gs.Node, context: Context) -> Shape | None:
    shape = context.shapes[0]
    if shape is None:
        return None
    return tuple(shape[axis] for axis in node.attrs.get("perm", range(len(shape))[::-1]))


def as_dim(value: object) -> Dim:
    """An element of a shape tensor as a dimension; anything that is none is unknown."""
    if isinstance(value, Monomial):
        return value
    return int(value) if isinstance(value, int) else None


def total_of(shape: Sequence[Dim]) -> Dim:
    """Product of all dimensions."""
    total: dims.Element = 1
    for dim in shape:
        total = dims.multiply(total, dim)
    return as_dim(total)


def _reshape(node: gs.Node, context: Context) -> Shape | None:
    shape, target = context.shapes[0], context.target(1)
    if target is None:
        return None
    result = [as_dim(dim) for dim in target]
    free = [axis for axis, dim in enumerate(result) if dim == -1]
    for axis, dim in enumerate(result):
        if dim == 0 and not node.attrs.get("allowzero", 0):
            result[axis] = shape[axis] if shape is not None and axis < len(shape) else None
    if len(free) == 1:
        rest = total_of([dim for axis, dim in enumerate(result) if axis != free[0]])
        whole = None if shape is None else total_of(shape)
        result[free[0]] = as_dim(dims.divide(whole, rest, whole=True))
    return tuple(result)


def _flatten(node: gs.Node, context: Context) -> Shape | None:
    shape = context.shapes[0]
    if shape is None:
        return None
    axis = int(node.attrs.get("axis", 1))
    axis += len(shape) if axis < 0 else 0
    return total_of(shape[:axis]), total_of(shape[axis:])


def _squeeze(node: gs.Node, context: Context) -> Shape | None:
    shape, axes = context.shapes[0], ints_of(node, "axes", 1)
    if shape is None or axes is None:
        return None
    dropped = {axis % len(shape) for axis in axes}
    return tuple(dim for axis, dim in enumerate(shape) if axis not in dropped)


def _unsqueeze(node: gs.Node, context: Context) -> Shape | None:
    shape, axes = context.shapes[0], ints_of(node, "axes", 1)
    if shape is None or axes is None:
        return None
    rank = len(shape) + len(axes)
    added, rest = {axis % rank for axis in axes}, list(shape)
    return tuple(1 if axis in added else rest.pop(0) for axis in range(rank))


def _concat(node: gs.Node, context: Context) -> Shape | None:
    if any(shape is None for shape in context.shapes):
        return None
    known = [shape for shape in context.shapes if shape is not None]
    axis = int(node.attrs["axis"]) % len(known[0])
    total: dims.Element = 0
    for shape in known:
        total = dims.add(total, shape[axis])
    merged = [next((s[a] for s in known if s[a] is not None), None) for a in range(len(known[0]))]
    merged[axis] = as_dim(total)
    return tuple(merged)


def _slice(node: gs.Node, context: Context) -> Shape | None:
    shape = context.shapes[0]
    starts, ends = ints_of(node, "starts", 1), ints_of(node, "ends", 2)
    axes, steps = ints_of(node, "axes", 3), ints_of(node, "steps", 4)
    if shape is None or (axes is None and has_input(node, 3)):
        return None
    result = list(shape)
    if starts is None or ends is None or (steps is None and has_input(node, 4)):
        for axis in axes if axes is not None else range(len(shape)):
            result[axis] = None
        return tuple(result)
    for index, axis in enumerate(axes if axes is not None else range(len(starts))):
        dim, step = result[axis], 1 if steps is None else steps[index]
        if isinstance(dim, int):
            result[axis] = len(range(*slice(starts[index], ends[index], step).indices(dim)))
        elif not (starts[index] == 0 and step == 1 and ends[index] >= 1 << 30):
            result[axis] = None
    return tuple(result)


def _gather(node: gs.Node, context: Context) -> Shape | None:
    data, indices = context.shapes[0], context.shapes[1]
    if data is None or indices is None:
        return None
    axis = int(node.attrs.get("axis", 0)) % len(data)
    return (*data[:axis], *indices, *data[axis + 1 :])


def _matmul(node: gs.Node, context: Context) -> Shape | None:
    a, b = context.shapes[0], context.shapes[1]
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return None
    batch = broadcast([a[:-2], b[:-2]])
    return None if batch is None else (*batch, a[-2], b[-1])


def _gemm(node: gs.Node, context: Context) -> Shape | None:
    a, b = context.shapes[0], context.shapes[1]
    if a is None or b is None:
        return None
    return a[1 if node.attrs.get("transA", 0) else 0], b[0 if node.attrs.get("transB", 0) else 1]


def _reduce(node: gs.Node, context: Context) -> Shape | None:
    shape, axes = context.shapes[0], ints_of(node, "axes", 1)
    if shape is None or (axes is None and has_input(node, 1)):
        return None
    if not axes:
        if node.attrs.get("noop_with_empty_axes", 0):
            return shape
        axes = tuple(range(len(shape)))
    dropped = {axis % len(shape) for axis in axes}
    if node.attrs.get("keepdims", 1):
        return tuple(1 if axis in dropped else dim for axis, dim in enumerate(shape))
    return tuple(dim for axis, dim in enumerate(shape) if axis not in dropped)


def _window(node: gs.Node, context: Context) -> Shape | None:
    """Conv, MaxPool, AveragePool, LpPool."""
    shape = context.shapes[0]
    weight = context.shapes[1] if node.op == "Conv" else None
    if shape is None or (node.op == "Conv" and weight is None):
        return None
    spatial = len(shape) - 2
    kernel = node.attrs.get("kernel_shape") or (list(weight[2:]) if weight is not None else None)
    channels = weight[0] if weight is not None else shape[1]
    if kernel is None or node.attrs.get("ceil_mode", 0):
        return (shape[0], channels, *[None] * spatial)
    strides, dilations = node.attrs.get("strides", [1] * spatial), node.attrs.get("dilations", [1] * spatial)
    pads, auto = node.attrs.get("pads", [0] * 2 * spatial), node.attrs.get("auto_pad", "NOTSET")
    result: list[Dim] = [shape[0], channels]
    for axis in range(spatial):
        dim = shape[2 + axis]
        if not isinstance(dim, int):
            kept = auto == "NOTSET" and strides[axis] == 1
            kept = kept and pads[axis] + pads[axis + spatial] == dilations[axis] * (kernel[axis] - 1)
            result.append(dim if kept else None)
        elif auto in ("SAME_UPPER", "SAME_LOWER"):
            result.append(-(-dim // strides[axis]))
        else:
            padded = dim + (0 if auto == "VALID" else pads[axis] + pads[axis + spatial])
            result.append((padded - dilations[axis] * (kernel[axis] - 1) - 1) // strides[axis] + 1)
    return tuple(result)


def _global_pool(node: gs.Node, context: Context) -> Shape | None:
    shape = context.shapes[0]
    return None if shape is None else (*shape[:2], *[1] * (len(shape) - 2))


def _expand(node: gs.Node, context: Context) -> Shape | None:
    target = context.target(1)
    return None if target is None else broadcast([context.shapes[0], tuple(as_dim(dim) for dim in target)])


def _tile(node: gs.Node, context: Context) -> Shape | None:
    shape, repeats = context.shapes[0], context.target(1)
    if shape is None or repeats is None:
        return None
    return tuple(as_dim(dims.multiply(dim, repeat)) for dim, repeat in zip(shape, repeats, strict=True))


def _pad(node: gs.Node, context: Context) -> Shape | None:
    shape, pads = context.shapes[0], ints_of(node, "pads", 1)
    if shape is None or pads is None or has_input(node, 3) or len(pads) != 2 * len(shape):
        return None
    return tuple(as_dim(dims.add(dim, pads[a] + pads[a + len(shape)])) for a, dim in enumerate(shape))


def _resize(node: gs.Node, context: Context) -> Shape | None:
    shape = context.shapes[0]
    if shape is None or node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    axes = [axis % len(shape) for axis in node.attrs.get("axes", range(len(shape)))]
    result, sizes, scales = list(shape), context.target(3), context.target(2)
    for index, axis in enumerate(axes):
        dim = result[axis]
        if sizes:
            result[axis] = as_dim(sizes[index])
        elif scales:
            scale = scales[index]
            if isinstance(dim, int) and isinstance(scale, float):
                result[axis] = int(np.floor(np.float32(dim) * np.float32(scale)))
            elif scale != 1.0:
                result[axis] = None
        else:
            result[axis] = None
    return tuple(result)


def _einsum(node: gs.Node, context: Context) -> Shape | None:
    equation = str(node.attrs["equation"]).replace(" ", "")
    if "->" not in equation or "." in equation or any(shape is None for shape in context.shapes):
        return None
    terms, output = equation.split("->")
    sizes: dict[str, Dim] = {}
    for term, shape in zip(terms.split(","), context.shapes, strict=True):
        sizes.update(zip(term, shape or (), strict=True))
    return tuple(sizes[letter] for letter in output)


def _attention(node: gs.Node, context: Context) -> Shape | None:
    query, value = context.shapes[0], context.shapes[2]
    if query is None or value is None or len(query) != len(value):
        return None
    return (*query[:-1], value[-1]) if len(query) == 4 else None


RULES: dict[str, Callable[[gs.Node, Context], Shape | None]] = {
    **dict.fromkeys(SAME, lambda node, context: context.shapes[0]),
    **dict.fromkeys(BROADCAST, lambda node, context: broadcast(context.shapes)),
    **dict.fromkeys(REDUCE, _reduce),
    **dict.fromkeys(("Conv", "MaxPool", "AveragePool", "LpPool"), _window),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Slice": _slice,
    "Gather": _gather,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "Resize": _resize,
    "Einsum": _einsum,
    "Attention": _attention,
}


def shapes_of_node(node: gs.Node, context: Context) -> list[Shape | None]:
    """Symbolic shapes of all outputs; None where no rule applies."""
    if node.domain not in (None, "", "ai.onnx"):
        return [None] * len(node.outputs)
    if node.op == "Split":
        return _split(node, context)
    rule = RULES.get(node.op)
    first = None if rule is None else rule(node, context)
    return [first, *[None] * (len(node.outputs) - 1)]


def _split(node: gs.Node, context: Context) -> list[Shape | None]:
    shape, sizes = context.shapes[0], ints_of(node, "split", 1)
    if shape is None:
        return [None] * len(node.outputs)
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    dim = shape[axis]
    if sizes is None and isinstance(dim, int) and not has_input(node, 1):
        chunk = -(-dim // len(node.outputs))
        sizes = tuple(min(chunk, dim - index * chunk) for index in range(len(node.outputs)))
    result: list[Shape | None] = []
    for index in range(len(node.outputs)):
        part: list[Dim] = list(shape)
        part[axis] = sizes[index] if sizes is not None else None
        result.append(tuple(part))
    return result
