"""What is inside the blocks: norms, activations and attentions, from the graph layer's recognisers."""

from __future__ import annotations

from collections.abc import Iterable

from ..graph.pattern import NearMiss
from ..graph.recognise import Activation, Attention, Norm, find_activations, find_attentions, find_norms
from .attention import Core
from .flow import Flow
from .structure import Unrecognised


def list_norms(flow: Flow) -> tuple[list[Norm], list[Unrecognised]]:
    """Normalizations, and what nearly was one."""
    near: list[NearMiss] = []
    found = find_norms(flow.graph, near)
    return found, _unrecognised("norm", near)


def list_activations(flow: Flow) -> tuple[list[Activation], list[Unrecognised]]:
    """Activation functions, and what nearly was one."""
    near: list[NearMiss] = []
    found = find_activations(flow.graph, near)
    return found, _unrecognised("activation", near)


def list_attentions(flow: Flow, cores: list[Core], opset: int) -> list[Attention]:
    """One record for each core: the recogniser's, which knows heads and scale, where it reads the core as well."""
    by_node: dict[str, Attention] = {}
    for attention in find_attentions(flow.graph, opset):
        by_node.update(dict.fromkeys(attention.nodes, attention))
    return [by_node.get(flow.nodes[core.last].name, core.describe(flow)) for core in cores]


def _unrecognised(kind: str, near: Iterable[NearMiss]) -> list[Unrecognised]:
    return [Unrecognised(f"{kind}: {miss.reason}", miss.node) for miss in near]
