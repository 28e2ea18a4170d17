"""What mode full adds to a plan: known ranges or logarithmic codes of softmax outputs, channel scales of norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_graphsurgeon as gs

from ..graph.edit import producer_of, rank_of
from ..numerics import LogCodes, QuantSpec
from .plan import FullMode, Plan

UNIT = (0.0, 1.0)


def refine_full(graph: gs.Graph, plan: Plan, full: FullMode, bits: int) -> Plan:
    """``plan`` with what ``full`` asks for.

    Args:
        graph: The graph of the plan.
        plan: Where pairs go, in mode full.
        full: What the recipe decides.
        bits: Bits of the codes that layers read, for logarithmic codes without a width of their own.
    """
    on_codes = plan.on_codes
    outputs = {node.outputs[0].name: node for node in graph.nodes if node.op == "Softmax" and node.name in on_codes}
    codes = _log_codes(outputs, plan, full.softmax, bits)
    measured = {name for name, each in codes.items() if each.exp is None}
    activations = dict(plan.activations)
    if full.norm_channels:
        activations |= _norm_specs(graph, plan)
    known = [name for name in activations if plan.values_of(name) in outputs]
    fixed = dict.fromkeys((name for name in known if name not in measured), UNIT)
    return replace(plan, activations=activations, fixed=fixed, log_codes=codes)


def _log_codes(outputs: Mapping[str, gs.Node], plan: Plan, wanted: LogCodes | None, bits: int) -> dict[str, LogCodes]:
    """Logarithmic codes where the softmax runs along the last axis and its uniform codes are not moved or converted."""
    if wanted is None:
        return {}
    codes = replace(wanted, bits=wanted.bits or bits)
    moved = {*plan.tied.values(), *(each.tensor for each in plan.conversions.values())}
    chosen = {name: node for name, node in outputs.items() if name not in moved and node.name not in plan.wide_nodes}
    return {name: codes for name, node in chosen.items() if _runs_along_last(node)}


def _runs_along_last(node: gs.Node) -> bool:
    rank = rank_of(node.outputs[0]) or rank_of(node.inputs[0])
    return int(node.attrs.get("axis", -1)) in (-1, rank and rank - 1)


def _norm_specs(graph: gs.Graph, plan: Plan) -> dict[str, QuantSpec]:
    """Inputs of LayerNormalization that a node makes in float, and that nothing else reads as codes."""
    on_codes, paired = plan.on_codes, set(plan.paired)
    moved = {*plan.tied.values(), *(each.tensor for each in plan.conversions.values())}
    found = {}
    for tensor in graph.tensors().values():
        maker, rank = producer_of(tensor), rank_of(tensor)
        if tensor.name not in plan.activations or tensor.name in plan.tied or tensor.name in moved:
            continue
        if maker is None or maker.name in on_codes or rank is None:
            continue
        readers = [node for node in tensor.outputs if node.name in on_codes]
        if all(node.op == "LayerNormalization" and node.name in paired and _runs_along_last(node) for node in readers):
            found[tensor.name] = replace(plan.activations[tensor.name], axis=rank - 1)
    return found
