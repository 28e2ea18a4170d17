"""Write a chain of Reshapes and Transposes anew, as a fast swap of axes and a movement of large blocks.

Before
    x -> Reshape -> Transpose -> Reshape -> Transpose -> ... -> y      (also Squeeze, Unsqueeze, Flatten)
After
    x -> [Transpose] -> [Reshape] -> [Transpose] -> [Reshape] -> y     the cheapest spelling of the same permutation
Conditions
    1. nobody else reads a tensor inside the chain, and none is a graph output;
    2. all dimensions are numbers or products with free dimensions (graph.symbolic);
    3. each Reshape splits or joins axes in order; a new one needs at most one -1;
    4. the new spelling is cheaper (see permutation), or as cheap with fewer nodes.
Covers the unfolding and folding of MobileViT, windows, flattening to tokens and back, and channels-last permutes.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ...graph.edit import add_node, new_constant, new_variable, only_consumer_of, producer_of, take_over_output
from ...graph.io import Model
from ...graph.pattern import NearMiss
from ...graph.symbolic.dims import Dim, parse_dim
from ..infrastructure import GraphPass
from .permutation import Movement, Step, cost, spell

MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
GAIN = 0.9


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Compose every maximal chain that has a Transpose in it."""
    graph = model.graph
    count = 0
    for node in list(graph.nodes):
        if _is_move(node) and not _is_move(only_consumer_of(graph, node.outputs[0])):
            count += _compose(graph, _chain_to(graph, node), near_misses)
    return count


def dims_of(tensor: gs.Tensor) -> tuple[Dim, ...] | None:
    """Shape of ``tensor`` with every dimension known as a number or a product with free ones, else None."""
    dims = [parse_dim(dim) for dim in tensor.shape] if tensor.shape is not None else [None]
    known = tuple(dim for dim in dims if dim is not None and dim != 0)
    return known if len(known) == len(dims) else None


def _is_move(node: gs.Node | None) -> bool:
    return (
        node is not None
        and node.op in MOVES
        and node.domain in (None, "", "ai.onnx")
        and dims_of(node.inputs[0]) is not None
        and dims_of(node.outputs[0]) is not None
    )


def _chain_to(graph: gs.Graph, node: gs.Node) -> list[gs.Node]:
    chain = [node]
    while True:
        before = producer_of(chain[0].inputs[0])
        if before is None or not _is_move(before) or only_consumer_of(graph, before.outputs[0]) is not chain[0]:
            return chain
        chain.insert(0, before)


def follow(chain: list[gs.Node]) -> Movement | None:
    """The movement that ``chain`` makes, or None when it is not a permutation of factors."""
    shape = dims_of(chain[0].inputs[0])
    assert shape is not None
    movement = Movement.of(shape)
    for node in chain:
        if node.op == "Transpose":
            rank = len(movement.axes)
            movement.transpose(tuple(node.attrs.get("perm", range(rank - 1, -1, -1))))
        else:
            target = dims_of(node.outputs[0])
            if target is None or not movement.reshape(target):
                return None
    return movement


def _compose(graph: gs.Graph, chain: list[gs.Node], near_misses: list[NearMiss]) -> int:
    if len(chain) < 2 or all(node.op != "Transpose" for node in chain):
        return 0
    movement, shape = follow(chain), dims_of(chain[0].inputs[0])
    if movement is None or shape is None:
        near_misses.append(NearMiss("the chain is no permutation of factors of the axes", chain[-1].name))
        return 0
    spelling = spell(movement, shape)
    if any(sum(not isinstance(dim, int) for dim in step.dims) > 1 for step in spelling.steps):
        near_misses.append(NearMiss("more than one free dimension in a Reshape", chain[-1].name))
        return 0
    before, after = cost(movement, shape), cost(spelling, shape)
    fewer = len(spelling.steps) < len(chain) and after <= before
    if not spelling.steps or not (after < GAIN * before or fewer):
        return 0
    _emit(graph, chain, spelling.steps)
    return 1


def _emit(graph: gs.Graph, chain: list[gs.Node], steps: list[Step]) -> None:
    tensor, output, stem = chain[0].inputs[0], chain[-1].outputs[0], chain[-1].name
    shape = list(tensor.shape)
    for step in steps:
        inputs, attrs = [tensor], {}
        if step.op == "Transpose":
            attrs = {"perm": list(step.perm)}
            shape = [shape[index] for index in step.perm]
        else:
            target = [dim if isinstance(dim, int) else -1 for dim in step.dims]
            inputs.append(new_constant(graph, f"{stem}_shape", np.array(target, np.int64)))
            shape = [dim if isinstance(dim, int) else str(dim) for dim in step.dims]
        variable = new_variable(graph, f"{stem}_{step.op}", dtype=output.dtype, shape=shape)
        last = add_node(graph, step.op, inputs, [variable], stem=f"{stem}_{step.op}", attrs=attrs)
        tensor = variable
    take_over_output(last, output)


PASS = GraphPass("compose_movement", apply)
