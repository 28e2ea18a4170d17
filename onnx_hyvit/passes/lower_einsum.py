"""Write Einsum of two operands as MatMul with Transpose and Reshape around it.

Before
    Einsum("bnd,dhk->bnhk", x, W)                           fixed weights, any number of contracted or output axes
    Einsum("bnhd,bmhd->bhnm", q, k)                         two computed operands
After
    Reshape(MatMul(x, W'), ...)
    MatMul(Transpose(q), Transpose(k))                      Transposes only where the order of axes asks for them
Conditions
    1. an explicit equation of two terms without ellipsis and without a repeated letter in a term;
    2. fixed weights: no letter is in both operands and the output; contracted letters come from known sizes;
    3. computed operands: one contracted letter, one free letter each.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.edit import add_node, constant_of, new_constant, new_variable, take_over_output
from ..graph.io import Model
from ..graph.pattern import NearMiss
from .infrastructure import GraphPass


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Rewrite every Einsum that is a matrix product."""
    graph = model.graph
    count = 0
    for node in [node for node in graph.nodes if node.op == "Einsum" and node.domain in (None, "", "ai.onnx")]:
        terms = _terms(node)
        if terms is None:
            near_misses.append(NearMiss("Einsum with an ellipsis, a repeated letter, or not two terms", node.name))
            continue
        a, b, out = terms
        first, second = node.inputs
        if constant_of(first) is not None and constant_of(second) is None:
            (a, first), (b, second) = (b, second), (a, first)
        weight = constant_of(second)
        done = (
            _with_computed(graph, node, (a, b, out), (first, second))
            if weight is None
            else _with_weight(graph, node, (a, b, out), first, weight)
        )
        if not done:
            near_misses.append(NearMiss(f"Einsum {node.attrs['equation']} is no matrix product", node.name))
        count += done
    return count


def _terms(node: gs.Node) -> tuple[str, str, str] | None:
    equation = str(node.attrs.get("equation", "")).replace(" ", "")
    left, arrow, out = equation.partition("->")
    parts = left.split(",")
    if not arrow or "." in equation or len(parts) != 2 or len(node.inputs) != 2:
        return None
    if any(len(set(term)) != len(term) for term in (*parts, out)):
        return None
    return parts[0], parts[1], out


def _with_weight(graph: gs.Graph, node: gs.Node, terms: tuple[str, str, str], x: gs.Tensor, weight: np.ndarray) -> bool:
    a, b, out = terms
    shared = [letter for letter in a if letter in b and letter not in out]
    rows = [letter for letter in a if letter not in b]
    columns = [letter for letter in b if letter not in a]
    if not shared or any(letter in out for letter in a if letter in b) or set(out) != {*rows, *columns} or not rows:
        return False
    sizes = dict(zip(b, weight.shape, strict=True))
    matrix = weight.transpose([b.index(letter) for letter in (*shared, *columns)])
    inner = int(np.prod([sizes[letter] for letter in shared]))
    matrix = matrix.reshape(inner, -1)
    tensor = _transposed(graph, node, x, a, "".join((*rows, *shared)))
    if len(shared) > 1:
        tensor = _reshaped(graph, node, tensor, [*[0] * len(rows), inner])
    tensor = add_node(
        graph, "MatMul", [tensor, new_constant(graph, f"{node.name}_weight", matrix)], stem=f"{node.name}_matmul"
    ).outputs[0]
    if len(columns) != 1:
        tensor = _reshaped(graph, node, tensor, [*[0] * len(rows), *(sizes[letter] for letter in columns)])
    _finish(graph, node, tensor, "".join((*rows, *columns)), out)
    return True


def _with_computed(
    graph: gs.Graph, node: gs.Node, terms: tuple[str, str, str], operands: tuple[gs.Tensor, gs.Tensor]
) -> bool:
    a, b, out = terms
    batch = [letter for letter in out if letter in a and letter in b]
    shared = [letter for letter in a if letter in b and letter not in out]
    rows = [letter for letter in a if letter not in b]
    columns = [letter for letter in b if letter not in a]
    if [len(shared), len(rows), len(columns)] != [1, 1, 1] or set(out) != {*batch, *rows, *columns}:
        return False
    left = _transposed(graph, node, operands[0], a, "".join((*batch, *rows, *shared)))
    right = _transposed(graph, node, operands[1], b, "".join((*batch, *shared, *columns)))
    product = add_node(graph, "MatMul", [left, right], stem=f"{node.name}_matmul").outputs[0]
    _finish(graph, node, product, "".join((*batch, *rows, *columns)), out)
    return True


def _transposed(graph: gs.Graph, node: gs.Node, tensor: gs.Tensor, have: str, want: str) -> gs.Tensor:
    if have == want:
        return tensor
    perm = [have.index(letter) for letter in want]
    moved = add_node(graph, "Transpose", [tensor], stem=f"{node.name}_transpose", attrs={"perm": perm}).outputs[0]
    moved.shape = None if tensor.shape is None else [tensor.shape[axis] for axis in perm]
    return moved


def _reshaped(graph: gs.Graph, node: gs.Node, tensor: gs.Tensor, target: list[int]) -> gs.Tensor:
    shape = new_constant(graph, f"{node.name}_shape", np.array(target, np.int64))
    return add_node(graph, "Reshape", [tensor, shape], stem=f"{node.name}_reshape").outputs[0]


def _finish(graph: gs.Graph, node: gs.Node, tensor: gs.Tensor, have: str, want: str) -> None:
    """Let the last new node write the Einsum's output."""
    output = node.outputs[0]
    if have != want:
        perm = [have.index(letter) for letter in want]
        result = new_variable(graph, f"{node.name}_ordered")
        last = add_node(graph, "Transpose", [tensor], [result], stem=f"{node.name}_order", attrs={"perm": perm})
    else:
        last = tensor.inputs[0]
    node.outputs.clear()
    take_over_output(last, output)


PASS = GraphPass("lower_einsum", apply)
