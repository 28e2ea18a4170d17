"""Contents of small tensors (shapes, axes, sizes, masks) as arrays of numbers and symbols."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from ..edit import ints_of
from ..evaluate import evaluate_node, is_evaluable
from . import dims
from .dims import Element, Monomial

LIMIT = 4096
Array = np.ndarray


def as_elements(values: np.ndarray) -> Array:
    """A numeric array as an object array of Python numbers, same shape."""
    result = np.empty(values.shape, dtype=object)
    result.reshape(-1)[:] = values.reshape(-1).tolist()
    return result


def is_numeric(array: Array) -> bool:
    """Whether every element is a number."""
    return all(isinstance(value, (int, float, bool)) for value in array.reshape(-1))


def _elementwise(function: Callable[..., Element]) -> Callable[[gs.Node, Sequence[Array], int], Array | None]:
    def rule(node: gs.Node, inputs: Sequence[Array], opset: int) -> Array | None:
        result = np.frompyfunc(function, len(inputs), 1)(*inputs)
        if isinstance(result, np.ndarray):
            return result
        scalar = np.empty((), dtype=object)
        scalar[()] = result
        return scalar

    return rule


def _elementwise_max(node: gs.Node, inputs: Sequence[Array], opset: int) -> Array | None:
    result = inputs[0]
    for other in inputs[1:]:
        result = _boxed(np.frompyfunc(dims.maximum, 2, 1)(result, other))
    return result


def _divide(node: gs.Node, inputs: Sequence[Array], opset: int) -> Array | None:
    whole = node.outputs[0].dtype is None or np.dtype(node.outputs[0].dtype).kind in "iu"
    if node.outputs[0].dtype is None and any(isinstance(v, float) for a in inputs for v in a.reshape(-1)):
        whole = False
    return _elementwise(lambda a, b: dims.divide(a, b, whole))(node, inputs, opset)


def _where(condition: Element, a: Element, b: Element) -> Element:
    if condition is None or isinstance(condition, Monomial):
        return a if a is not None and a == b else None
    return a if condition else b


def _cast(node: gs.Node, inputs: Sequence[Array], opset: int) -> Array | None:
    dtype = node.outputs[0].dtype
    if dtype is None:
        return None
    kind = np.dtype(dtype).kind
    if kind in "iu":
        return _elementwise(dims.to_integer)(node, inputs, opset)
    if kind == "f":
        return _elementwise(lambda a: a if a is None or isinstance(a, Monomial) else float(a))(node, inputs, opset)
    return _elementwise(lambda a: None if a is None or isinstance(a, Monomial) else bool(a))(node, inputs, opset)


def _gather(node: gs.Node, inputs: Sequence[Array], opset: int) -> Array | None:
    data, indices = inputs
    if not is_numeric(indices):
        return None
    taken = np.take(data, indices.astype(np.int64), axis=int(node.attrs.get("axis", 0)))
    return _boxed(taken)


def _boxed(value: object) -> Array:
    if isinstance(value, np.ndarray):
        return value
    scalar = np.empty((), dtype=object)
    scalar[()] = value
    return scalar


def _concat(node: gs.Node, inputs: Sequence[Array], opset: int) -> Array | None:
    return np.concatenate(list(inputs), axis=int(node.attrs["axis"]))


def _unsqueeze(node: gs.Node, inputs: Sequence[Array], opset: int) -> Array | None:
    axes = ints_of(node, "axes", 1)
    if axes is None:
        return None
    return np.expand_dims(inputs[0], axes)


def _squeeze(node: gs.Node, inputs: Sequence[Array], opset: int) -> Array | None:
    axes = ints_of(node, "axes", 1)
    return _boxed(np.squeeze(inputs[0], axes))


def _reshape(node: gs.Node, inputs: Sequence[Array], opset: int) -> Array | None:
    if not is_numeric(inputs[1]):
        return None
    target = [int(v) for v in inputs[1].reshape(-1)]
    if not node.attrs.get("allowzero", 0):
        target = [inputs[0].shape[axis] if dim == 0 else dim for axis, dim in enumerate(target)]
    return inputs[0].reshape(target)


def _slice(node: gs.Node, inputs: Sequence[Array], opset: int) -> Array | None:
    parts = [ints_of(node, key, index) for index, key in ((1, "starts"), (2, "ends"), (3, "axes"), (4, "steps"))]
    starts, ends, axes, steps = parts
    if starts is None or ends is None:
        return None
    slices = [slice(None)] * inputs[0].ndim
    for index, axis in enumerate(axes or range(len(starts))):
        step = 1 if steps is None else steps[index]
        end: int | None = ends[index]
        if step < 0 and end is not None and end < -inputs[0].shape[axis]:
            end = None
        slices[axis] = slice(starts[index], end, step)
    return inputs[0][tuple(slices)]


def _expand(node: gs.Node, inputs: Sequence[Array], opset: int) -> Array | None:
    if not is_numeric(inputs[1]):
        return None
    target = [int(v) for v in inputs[1].reshape(-1)]
    return np.broadcast_to(inputs[0], np.broadcast_shapes(inputs[0].shape, target))


def _reduce(function: Callable[[Element, Element], Element]) -> Callable[..., Array | None]:
    def rule(node: gs.Node, inputs: Sequence[Array], opset: int) -> Array | None:
        if inputs[0].ndim != 1 or inputs[0].size == 0:
            return None
        total: Element = inputs[0][0]
        for value in inputs[0][1:]:
            total = function(total, value)
        result = _boxed(total)
        return result.reshape(1) if node.attrs.get("keepdims", 1) else result

    return rule


RULES: dict[str, Callable[[gs.Node, Sequence[Array], int], Array | None]] = {
    "Identity": lambda node, inputs, opset: inputs[0],
    "Mul": _elementwise(dims.multiply),
    "Add": _elementwise(dims.add),
    "Sub": _elementwise(dims.subtract),
    "Div": _divide,
    "Max": _elementwise_max,
    "Mod": _elementwise(dims.modulo),
    "Neg": _elementwise(lambda a: dims.multiply(a, -1)),
    "Floor": _elementwise(dims.floor),
    "Ceil": _elementwise(lambda a: dims.floor(a) if isinstance(a, Monomial) else None),
    "Round": _elementwise(lambda a: dims.floor(a) if isinstance(a, Monomial) else None),
    "Equal": _elementwise(dims.equal),
    "Where": _elementwise(_where),
    "Cast": _cast,
    "Gather": _gather,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Slice": _slice,
    "Expand": _expand,
    "ReduceProd": _reduce(dims.multiply),
    "ReduceSum": _reduce(dims.add),
}


def value_of_node(node: gs.Node, inputs: Sequence[Array | None], opset: int) -> Array | None:
    """Contents of the node's first output.

    Args:
        node: A node of the default domain with one used output.
        inputs: Contents of its inputs, None where unknown.
        opset: Default-domain opset.

    Returns:
        Object array of numbers, products and None, or None when nothing is known.
    """
    if any(array is None for array in inputs) or sum(array.size for array in inputs if array is not None) > LIMIT:
        return None
    given = [array for array in inputs if array is not None]
    if all(is_numeric(array) for array in given):
        return _numeric(node, given, opset)
    rule = RULES.get(node.op)
    return None if rule is None else rule(node, given, opset)


def _numeric(node: gs.Node, inputs: Sequence[Array], opset: int) -> Array | None:
    """All inputs are numbers: the reference implementation, in the tensors' own types."""
    if not inputs or not is_evaluable(node) or len(node.outputs) != 1:
        return None
    arrays = []
    for tensor, values in zip(node.inputs, inputs, strict=False):
        dtype = tensor.dtype if tensor.dtype is not None else _guess(values)
        arrays.append(values.astype(dtype))
    if node.op in ("Expand", "ConstantOfShape", "Tile") and np.prod([float(v) for v in inputs[-1].reshape(-1)]) > LIMIT:
        return None
    results = evaluate_node(node, arrays, opset)
    if results is None or results[0].size > LIMIT or results[0].dtype.kind not in "biuf":
        return None
    return as_elements(results[0])


def _guess(values: Array) -> type:
    kinds = {type(value) for value in values.reshape(-1)}
    return np.float32 if float in kinds else np.bool_ if kinds == {bool} else np.int64
