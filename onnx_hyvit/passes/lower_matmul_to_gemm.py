"""Write MatMul and its bias as Gemm, which ONNX Runtime fuses into one int8 kernel for every batch size.

Before
    y = Add(MatMul(x, W), b)                                W [K, N] and b [N] fixed
After
    y = Gemm(x, W, b)                                       x of rank 2
    y = Reshape(Gemm(Reshape(x, [-1, K]), W, b), [.., N])   x of higher rank
Conditions
    1. nobody else reads the product, and it is no graph output (closed);
    2. b varies along the last axis only;
    3. higher rank: a single free leading dimension becomes the -1 of the last Reshape; with several, the shape is read
       from x at run time (opset >= 15).
With a free batch ONNX Runtime itself does not fuse MatMul and Add, and leaves the Add a float node in an int8 graph.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.edit import (
    add_node,
    constant_of,
    new_constant,
    new_variable,
    only_consumer_of,
    producer_of,
    rank_of,
    scalar_of,
    take_over_output,
)
from ..graph.elementwise import ARITHMETIC, UNARY
from ..graph.io import Model
from ..graph.linear import channel_vector, foldable, output_channels, weight_of
from ..graph.pattern import NearMiss
from .infrastructure import GraphPass


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Lower every MatMul with fixed weights whose only reader adds a fixed bias."""
    graph = model.graph
    count = 0
    for node in [node for node in graph.nodes if node.op == "MatMul" and foldable(node)]:
        add = only_consumer_of(graph, node.outputs[0])
        bias = None if add is None else _bias(add, node)
        if add is None or bias is None:
            continue
        leading = _leading(node)
        if leading is None or (leading.count(-1) > 1 and model.opset < 15):
            reason = f"the leading dimensions of {node.inputs[0].name!r} are not known well enough for a Gemm"
            near_misses.append(NearMiss(reason, node.name))
            continue
        _lower(graph, node, add, bias, leading)
        count += 1
    return count


def _bias(add: gs.Node, matmul: gs.Node) -> np.ndarray | None:
    if add.op != "Add":
        return None
    other = add.inputs[1] if add.inputs[0] is matmul.outputs[0] else add.inputs[0]
    value = constant_of(other)
    if value is None:
        return None
    rank = rank_of(matmul.inputs[0]) or rank_of(matmul.outputs[0])
    vector = channel_vector(value, output_channels(matmul), -1, rank)
    return None if vector is None else vector.astype(value.dtype)


def _leading(node: gs.Node) -> list[int] | None:
    """Leading dimensions of the product with -1 for the free one; None when unknown."""
    shape = node.inputs[0].shape
    if shape is None or len(shape) < 2:
        return None
    leading = [dim if isinstance(dim, int) and dim > 0 else -1 for dim in shape[:-1]]
    return leading if -1 in leading else [-1, *leading[1:]]


def _lower(graph: gs.Graph, node: gs.Node, add: gs.Node, bias: np.ndarray, leading: list[int]) -> None:
    weight, source, output = weight_of(node), node.inputs[0], add.outputs[0]
    assert weight is not None
    rows, columns = weight.shape
    flat = source
    if len(leading) > 1:
        target = new_constant(graph, f"{node.name}_rows", np.array([-1, rows], np.int64))
        flat = new_variable(graph, f"{node.name}_flat", dtype=weight.dtype, shape=[_rows(source.shape), rows])
        add_node(graph, "Reshape", [source, target], [flat], stem=f"{node.name}_flatten")
    inputs = [flat, new_constant(graph, f"{node.name}_weight", weight), new_constant(graph, f"{node.name}_bias", bias)]
    product = new_variable(graph, f"{node.name}_gemm", dtype=weight.dtype, shape=[_rows(source.shape), columns])
    last = add_node(graph, "Gemm", inputs, [product], stem=f"{node.name}_gemm")
    last.name, node.name = node.name, last.name  # plans and users know the layer by this name
    if len(leading) > 1:
        target = _target(graph, node, leading, columns)
        shaped = new_variable(graph, f"{node.name}_shaped", dtype=weight.dtype)
        last = add_node(graph, "Reshape", [product, target], [shaped], stem=f"{node.name}_unflatten")
    take_over_output(last, output)


def _target(graph: gs.Graph, node: gs.Node, leading: list[int], columns: int) -> gs.Tensor:
    """Shape of the product: fixed but for one -1, or the leading sizes of x followed by the columns."""
    if leading.count(-1) == 1:
        return new_constant(graph, f"{node.name}_shape", np.array([*leading, columns], np.int64))
    sizes = new_variable(graph, f"{node.name}_sizes", dtype=np.int64, shape=[len(leading)])
    add_node(
        graph,
        "Shape",
        [_same_leading_sizes(node.inputs[0])],
        [sizes],
        stem=f"{node.name}_sizes",
        attrs={"start": 0, "end": -1},
    )
    last = new_constant(graph, f"{node.name}_columns", np.array([columns], np.int64))
    target = new_variable(graph, f"{node.name}_shape", dtype=np.int64, shape=[len(leading) + 1])
    add_node(graph, "Concat", [sizes, last], [target], stem=f"{node.name}_shape", attrs={"axis": 0})
    return target


def _same_leading_sizes(tensor: gs.Tensor) -> gs.Tensor:
    """A tensor before ``tensor`` with the same leading axes: between two lowered nodes nothing then reads the shape."""
    for _ in range(8):
        node = producer_of(tensor)
        if node is None:
            break
        if node.op in UNARY or (node.op == "LayerNormalization" and node.attrs.get("axis", -1) == -1):
            tensor = node.inputs[0]
        elif node.op in ARITHMETIC and _data_of(node) is not None:
            tensor = _data_of(node) or tensor
        else:
            return _restored_from(node) or tensor
    return tensor


def _data_of(node: gs.Node) -> gs.Tensor | None:
    """``x`` of ``x op f(x)``, or of x and a fixed number."""
    for data, gate in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        if scalar_of(gate) is not None:
            return data
        unary = producer_of(gate)
        if unary is not None and unary.op in UNARY and unary.inputs[0] is data:
            return data
    return None


def _restored_from(node: gs.Node) -> gs.Tensor | None:
    """The tensor whose leading sizes a Reshape of an earlier lowering restores."""
    join = producer_of(node.inputs[1]) if node.op == "Reshape" else None
    shape = producer_of(join.inputs[0]) if join is not None and join.op == "Concat" and len(join.inputs) == 2 else None
    whole = (
        shape is not None and shape.op == "Shape" and shape.attrs.get("end") == -1 and not shape.attrs.get("start", 0)
    )
    return shape.inputs[0] if shape is not None and whole else None


def _rows(shape: list[int | str]) -> int | str:
    """How many rows a tensor has when all axes but the last are joined, or a name of its own."""
    dims = [dim for dim in shape[:-1] if isinstance(dim, int) and dim > 0]
    return int(np.prod(dims)) if len(dims) == len(shape) - 1 else "rows_of_" + "_".join(str(dim) for dim in shape[:-1])


PASS = GraphPass("lower_matmul_to_gemm", apply)
