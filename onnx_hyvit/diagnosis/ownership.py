"""Which block of the float model each node of the int8 model belongs to.

The int8 model was rewritten, so a node is looked for by the tensors that it makes, then by its name or the beginning of
it (a rewrite names its new nodes after the one that they come from); what is still unknown goes with its readers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from ..blocks import Structure, find_structure
from ..graph import load_model, model_to_proto
from ..graph.edit import constant_of, scalar_of
from ..graph.lookup import by_longest_name
from ..passes import CANONICAL, LOWERING, run_passes
from ..passes.layout import LAYOUT
from ..runtime import observe
from .pairs import GraphIndex

Limits = tuple[float | None, float | None]
_SUFFIXES = (
    "_QuantizeLinear_Input",
    "_DequantizeLinear_Output",
    "_QuantizeLinear_Output",
    "_Clip_Output",
    "_rewritten",
    "_padded",
)


@dataclass(frozen=True)
class FloatModel:
    """What is known of a float model.

    Args:
        proto: The model as it was loaded: every node has a name, the one that ``float_nodes`` takes.
        structure: Its blocks.
        block_of_node: Node name -> number of its block, for the nodes of the canonical graph.
        block_of_tensor: Tensor name -> number of the block that makes it.
        constants: Initializers of the model as it is and after each stage of the rewrites.
        limits: Outputs of Relu and Clip -> the lowest and the highest value that they let through, None for no limit.
    """

    proto: onnx.ModelProto
    structure: Structure
    block_of_node: dict[str, int]
    block_of_tensor: dict[str, int]
    constants: tuple[dict[str, np.ndarray], ...]
    limits: dict[str, Limits]


def read_float_model(model: Any) -> FloatModel:
    """Load a float model, find its blocks, and run the rewrites that weights of the int8 model can come from.

    Raises:
        ModelError: The model cannot be used.
    """
    loaded = load_model(model)
    proto = model_to_proto(loaded)
    forms, limits = [_constants(loaded.graph)], _limits(loaded.graph)
    run_passes(loaded, CANONICAL)
    structure = find_structure(loaded, observe(model_to_proto(loaded)).shapes)
    nodes = {name: number for number, block in enumerate(structure.blocks) for name in block.nodes}
    tensors = {
        tensor.name: nodes[node.name] for node in loaded.graph.nodes if node.name in nodes for tensor in node.outputs
    }
    for node in proto.graph.node:  # what the canonical form no longer has: nodes and tensors under their old names
        if node.name in nodes:
            tensors.update((name, nodes[node.name]) for name in node.output if name not in tensors)
    forms.append(_constants(loaded.graph))
    run_passes(loaded, LAYOUT)
    run_passes(loaded, LOWERING)
    forms.append(_constants(loaded.graph))
    limits |= _limits(loaded.graph)
    return FloatModel(proto, structure, nodes, tensors, tuple(forms), limits)


def _constants(graph: gs.Graph) -> dict[str, np.ndarray]:
    found = {}
    for name, tensor in graph.tensors().items():
        value = constant_of(tensor)
        if value is not None:
            found[name] = np.array(value)
    return found


def _limits(graph: gs.Graph) -> dict[str, Limits]:
    found: dict[str, Limits] = {}
    for node in graph.nodes:
        if node.op == "Relu":
            found[node.outputs[0].name] = (0.0, None)
        elif node.op == "Clip":
            bounds = [scalar_of(tensor) if tensor.name else None for tensor in node.inputs[1:3]]
            low, high = (*bounds, None, None)[:2]
            found[node.outputs[0].name] = (low, high)
    return found


def blocks_of_nodes(index: GraphIndex, known: FloatModel) -> list[int]:
    """Number of the block of every node of the int8 graph, by position."""
    nodes = index.graph.node
    found: list[int | None] = [_label(node, known) for node in nodes]
    for place in range(len(nodes) - 1, -1, -1):  # unknown: with the first block that reads it
        if found[place] is None:
            readers = [found[reader] for name in nodes[place].output for reader in index.readers.get(name, ())]
            found[place] = min((block for block in readers if block is not None), default=None)
    last = 0
    for place, node in enumerate(nodes):  # nobody known reads it: with the last block that it reads
        if found[place] is None:
            made = [found[index.maker[name]] for name in node.input if name in index.maker]
            found[place] = max((block for block in made if block is not None), default=last)
        last = found[place] or 0
    return [block or 0 for block in found]


def _label(node: onnx.NodeProto, known: FloatModel) -> int | None:
    for name in node.output:
        stem = stem_of(name)
        if stem in known.block_of_tensor:
            return known.block_of_tensor[stem]
    return by_longest_name(node.name, known.block_of_node)


def stem_of(name: str) -> str:
    """The name without the endings that Q/DQ insertion appends."""
    shorter = True
    while shorter:
        shorter = False
        for suffix in _SUFFIXES:
            if name.endswith(suffix):
                name, shorter = name.removesuffix(suffix), True
    return name
