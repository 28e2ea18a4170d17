"""Add nodes that move codes to a plan, and write them: what rewrites on the way to a Q/DQ graph share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.edit import add_node, new_constant, new_variable
from ..placement import Plan

TO_FIRST, TO_LAST = [0, 3, 1, 2], [0, 2, 3, 1]  # where the channels of a map are


def carry(plan: Plan, nodes: Iterable[gs.Node], source: str) -> Plan:
    """The plan with ``nodes`` carried: what they make has the codes of the activation ``source``."""
    made, spec, origin = list(nodes), plan.activations[source], plan.source_of(source)
    tensors = [node.outputs[0].name for node in made]
    return replace(
        plan,
        carried_nodes=(*plan.carried_nodes, *(node.name for node in made)),
        activations={**plan.activations, **dict.fromkeys(tensors, spec)},
        tied={**plan.tied, **dict.fromkeys(tensors, origin)},
    )


def transpose(
    graph: gs.Graph, stem: str, source: gs.Tensor, perm: list[int], output: gs.Tensor | None = None
) -> gs.Node:
    """A Transpose of ``source``; into ``output``, or a new tensor."""
    return _node(graph, "Transpose", stem, [source], output, {"perm": perm})


def reshape(
    graph: gs.Graph, stem: str, source: gs.Tensor, shape: list[int], output: gs.Tensor | None = None
) -> gs.Node:
    """A Reshape of ``source``; into ``output``, or a new tensor."""
    sizes = new_constant(graph, f"{stem}_Reshape_shape", np.array(shape, np.int64))
    return _node(graph, "Reshape", stem, [source, sizes], output, {})


def gather(graph: gs.Graph, stem: str, source: gs.Tensor, indices: np.ndarray, axis: int) -> gs.Node:
    """A Gather of ``indices`` (one axis) along ``axis`` of ``source``."""
    chosen = new_constant(graph, f"{stem}_Gather_indices", np.asarray(indices, np.int64))
    return _node(graph, "Gather", stem, [source, chosen], None, {"axis": axis})


def _node(
    graph: gs.Graph,
    op: str,
    stem: str,
    inputs: list[gs.Tensor],
    output: gs.Tensor | None,
    attrs: dict[str, object],
) -> gs.Node:
    if output is None:
        output = new_variable(graph, f"{stem}_{op}_Output", np.float32)
    return add_node(graph, op, inputs, [output], stem=f"{stem}_{op}", attrs=attrs)
