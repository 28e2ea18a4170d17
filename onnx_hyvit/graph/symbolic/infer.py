"""Walk a graph once and collect symbolic shapes and contents of its tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import onnx_graphsurgeon as gs

from ..edit import constant_of, has_subgraph
from .dims import Dim, Monomial, parse_dim
from .shapes import Context, Shape, shapes_of_node, total_of
from .values import LIMIT, as_elements, value_of_node

FLOATS = 16  # more numbers than that are weights, no scales or sizes
SPATIAL = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "Resize", "Upsample", "Pad"})


@dataclass
class Inferred:
    """Symbolic shapes and contents, by tensor name; absent or None where unknown."""

    shapes: dict[str, Shape | None] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)

    def shape(self, tensor: gs.Tensor) -> Shape | None:
        """Shape of ``tensor``: inferred, or as the graph states it."""
        if tensor.name in self.shapes:
            return self.shapes[tensor.name]
        value = constant_of(tensor)
        if value is not None:
            return tuple(value.shape)
        return None if tensor.shape is None else tuple(parse_dim(dim) for dim in tensor.shape)

    def value(self, tensor: gs.Tensor) -> np.ndarray | None:
        """Contents of ``tensor``: inferred, or those of a small constant."""
        if tensor.name in self.values:
            return self.values[tensor.name]
        value = constant_of(tensor)
        if value is None or value.dtype.kind not in "biuf":
            return None
        if value.size > (FLOATS if value.dtype.kind == "f" else LIMIT):
            return None
        self.values[tensor.name] = as_elements(value)
        return self.values[tensor.name]


def infer(graph: gs.Graph, opset: int) -> Inferred:
    """Symbolic shapes and contents of every tensor.

    Free dimensions of the inputs are their names; an unnamed one gets a symbol of its own. A dimension that no rule
    knows falls back on the number that the graph states.

    Args:
        graph: Graph in topological order.
        opset: Default-domain opset.

    Returns:
        What is known, for every size of the free dimensions.
    """
    found = Inferred()
    for tensor in graph.inputs:
        if tensor.shape is not None:
            stated = [parse_dim(dim) for dim in tensor.shape]
            found.shapes[tensor.name] = tuple(
                Monomial(Fraction(1), (f"{tensor.name}.{axis}",)) if dim is None else dim
                for axis, dim in enumerate(stated)
            )
    for node in graph.nodes:
        if has_subgraph(node) or not node.outputs:
            continue
        _visit(found, node, opset)
    return found


def _visit(found: Inferred, node: gs.Node, opset: int) -> None:
    present = [not tensor.is_empty() for tensor in node.inputs]
    shapes = [found.shape(tensor) if there else None for tensor, there in zip(node.inputs, present, strict=True)]
    values = [found.value(tensor) if there else None for tensor, there in zip(node.inputs, present, strict=True)]
    try:
        results = shapes_of_node(node, Context(shapes, values))
    except (ValueError, IndexError, KeyError, TypeError):  # an odd node is unknown, never an error
        results = [None] * len(node.outputs)
    for tensor, shape in zip(node.outputs, results, strict=True):
        if not tensor.is_empty():
            merged = _merged(shape, tensor)
            found.shapes[tensor.name] = _named(merged, tensor.name) if node.op in SPATIAL else merged
    content = _content(node, shapes, values, opset)
    if content is not None and content.size <= LIMIT:
        found.values[node.outputs[0].name] = content


def _named(shape: Shape | None, name: str) -> Shape | None:
    """A symbol of its own for every unknown dimension: unknown, but one fixed size in any run."""
    if shape is None:
        return None
    return tuple(Monomial(Fraction(1), (f"{name}.{axis}",)) if dim is None else dim for axis, dim in enumerate(shape))


def _content(
    node: gs.Node, shapes: list[Shape | None], values: list[np.ndarray | None], opset: int
) -> np.ndarray | None:
    if node.domain not in (None, "", "ai.onnx") or not node.inputs:
        return None
    if node.op in ("Shape", "Size"):
        return None if shapes[0] is None else _shape_content(node, shapes[0])
    try:
        return value_of_node(node, values, opset)
    except (ValueError, IndexError, KeyError, TypeError, ZeroDivisionError):
        return None


def _shape_content(node: gs.Node, shape: Shape) -> np.ndarray:
    if node.op == "Size":
        size = np.empty((), dtype=object)
        size[()] = total_of(shape)
        return size
    part = shape[node.attrs.get("start", 0) : node.attrs.get("end", None)]
    content: np.ndarray = np.empty(len(part), dtype=object)
    content[:] = part
    return content


def _merged(shape: Shape | None, tensor: gs.Tensor) -> Shape | None:
    """The inferred shape, completed by what the graph states."""
    if tensor.shape is None:
        return shape
    stated: list[Dim] = [parse_dim(dim) for dim in tensor.shape]
    if shape is None or len(shape) != len(stated):
        return tuple(stated)
    return tuple(
        known if isinstance(known, int) or (known is not None and not isinstance(there, int)) else there
        for known, there in zip(shape, stated, strict=True)
    )
