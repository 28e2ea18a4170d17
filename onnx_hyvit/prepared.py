"""The float model after the exact rewrites, what was recognised in it on the way, and what of it must stay float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .blocks import Structure, find_structure
from .config import QuantConfig
from .errors import ConfigError
from .graph import Model, model_to_proto
from .graph.edit import names_used_by_subgraphs, unique_name
from .graph.lookup import by_longest_name
from .passes import CANONICAL, LOWERING, PassResult, run_passes
from .passes.layout import LAYOUT
from .runtime import observe


@dataclass(frozen=True)
class Prepared:
    """A float model after the exact rewrites, and what was recognised in it on the way.

    Args:
        model: The rewritten model.
        structure: Blocks of the canonical graph.
        shapes: Concrete shapes of all tensors.
        passes: What each pass did.
        inputs: Shapes of the inputs that were given, see ``prepare``.
        nodes: Names of the nodes that the model had before.
    """

    model: Model
    structure: Structure
    shapes: dict[str, tuple[int, ...]]
    passes: tuple[PassResult, ...]
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    nodes: frozenset[str] = frozenset()


def prepare(model: Model, config: QuantConfig, inputs: Mapping[str, tuple[int, ...]] | None = None) -> Prepared:
    """Run the exact rewrites on ``model`` (edited in place) and find its structure between them.

    Args:
        model: The loaded model.
        config: Whether data layouts are rewritten.
        inputs: Shapes of inputs with free sizes, as they will be in use; guessed when left out.

    Returns:
        The rewritten model, the structure of the canonical graph, concrete shapes, and what each pass did.
    """
    inputs, nodes = dict(inputs or {}), _names(model)
    before = observe(model_to_proto(model), inputs).powers
    results = run_passes(model, CANONICAL)
    structure = find_structure(model, observe(model_to_proto(model), inputs).shapes)
    if config.rewrite_layout:
        results += run_passes(model, LAYOUT)
    results += run_passes(model, LOWERING)
    return Prepared(model, structure, observe_renamed(model, before, inputs), tuple(results), inputs, nodes)


def observe_renamed(
    model: Model, before: Mapping[str, float], inputs: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, tuple[int, ...]]:
    """Give a new name to every tensor that kept its name but no longer its values, and return all shapes.

    Folds change what flows between two nodes. With this, a name that the int8 model shares with the float file stands
    for the same values, so the two can be compared tensor by tensor.

    Args:
        model: The rewritten model; edited in place.
        before: Power of each tensor before the rewrites, see ``runtime.observe``.
        inputs: Shapes of inputs that were given then.
    """
    observed = observe(model_to_proto(model), inputs)
    outputs = {tensor.name for tensor in model.graph.outputs} | names_used_by_subgraphs(model.graph)
    shapes = dict(observed.shapes)
    for name, tensor in model.graph.tensors().items():
        power, after = before.get(name), observed.powers.get(name)
        if power is None or after is None or name in outputs or np.isclose(power, after, rtol=1e-3, atol=1e-12):
            continue
        tensor.name = unique_name(model.graph, f"{name}_rewritten")
        shapes[tensor.name] = shapes.pop(name)
    return shapes


def check_node_names(model: Model, wanted: Sequence[str]) -> None:
    """Refuse names in ``wanted`` that no node of the loaded model has.

    Raises:
        ConfigError: Names the first of them.
    """
    known = _names(model)
    for name in wanted:
        if name not in known:
            raise ConfigError(f"float_nodes: {model.path} has no node {name!r}; `onnx-hyvit inspect --json` lists them")


def kept_float(prepared: Prepared, wanted: Sequence[str]) -> tuple[str, ...]:
    """Nodes of the rewritten graph that must stay float: those in ``wanted``, and those that rewrites made of them.

    A new node comes from the longest name of the loaded model that its own continues, see ``by_longest_name``; a node
    that was folded into another one is gone, and so is the request.
    """
    origin = {name: name for name in prepared.nodes}
    return tuple(node.name for node in prepared.model.graph.nodes if by_longest_name(node.name, origin) in wanted)


def _names(model: Model) -> frozenset[str]:
    return frozenset(node.name for node in model.graph.nodes)


def describe(prepared: Prepared) -> dict[str, Any]:
    """The structure of a prepared model as plain values, the form of ``inspect --json``."""
    model = prepared.model
    return {
        "model": model.path,
        "opset": model.origin.opset,
        "producer": model.producer,
        "inputs": [{"name": tensor.name, "shape": list(tensor.shape or ())} for tensor in model.graph.inputs],
        "outputs": [{"name": tensor.name, "shape": list(tensor.shape or ())} for tensor in model.graph.outputs],
        "dynamic_axes": _dynamic_axes(model),
        **prepared.structure.to_dict(),
    }


def _dynamic_axes(model: Model) -> dict[str, dict[int, str]]:
    found = {}
    for tensor in model.graph.inputs:
        free = {axis: str(dim) for axis, dim in enumerate(tensor.shape or ()) if not isinstance(dim, int)}
        if free:
            found[tensor.name] = free
    return found
