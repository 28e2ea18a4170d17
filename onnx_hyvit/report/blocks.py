"""Facts of each block, gathered from all results: cost, kernels, error, what stayed float, what was chosen."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ..graph.lookup import by_longest_name
from .results import Results
from .values import items, mapping, mappings, number, text

KINDS = ("stem", "conv", "bridge", "transformer", "head")


@dataclass
class BlockFacts:
    """One block.

    Args:
        name: Its name.
        kind: One of ``KINDS``, or what the result says.
        nodes: Number of its nodes.
        params: Parameters; None when unknown.
        macs: Multiply-accumulates; None when unknown.
        int8_kernels: Convolutions and matrix products that run in int8; None without a result that tells.
        float_kernels: Those that run in float.
        reasons: Reason why nodes stayed float -> how many.
        sqnr_db: Error at its output, or of its worst tensor where the output was not measured.
        at_end: Whether it is that of the output.
        tensors: Its measured tensors, worst first.
        choices: Scales per channel that were chosen.
        reconstruction: What reconstruction reports of it.
        sensitivity: What ``debug`` reports of it.
    """

    name: str
    kind: str
    nodes: int
    params: float | None
    macs: float | None
    int8_kernels: int | None = None
    float_kernels: int | None = None
    reasons: Counter[str] = field(default_factory=Counter)
    sqnr_db: float | None = None
    at_end: bool = False
    tensors: list[dict[str, Any]] = field(default_factory=list)
    choices: list[dict[str, Any]] = field(default_factory=list)
    reconstruction: dict[str, Any] = field(default_factory=dict)
    sensitivity: dict[str, Any] = field(default_factory=dict)


def gather_blocks(results: Results) -> list[BlockFacts]:
    """The blocks in the order of the model, with everything that any result says of them."""
    found = [_basic(block) for block in results.blocks]
    by_name = {facts.name: facts for facts in found}
    owner = _owners(results.blocks)
    _add_kernels(results, by_name, owner)
    for node, reason in mapping(mapping(results.quantize.get("plan")).get("float_nodes")).items():
        if (name := by_longest_name(node, owner)) is not None:
            by_name[name].reasons[text(reason, "no reason given")] += 1
    _add_errors(results, by_name, owner)
    granularity = mapping(results.quantize.get("granularity"))
    for choice in mappings(granularity.get("per_channel")):
        if (name := by_longest_name(text(choice.get("tensor")), owner)) is not None:
            by_name[name].choices.append(choice)
    for entry in mappings(mapping(results.quantize.get("reconstruction")).get("blocks")):
        if text(entry.get("name")) in by_name:
            by_name[text(entry.get("name"))].reconstruction = entry
    for entry in mappings(results.debug.get("blocks")):
        if text(entry.get("name")) in by_name:
            by_name[text(entry.get("name"))].sensitivity = entry
    return found


def _basic(block: dict[str, Any]) -> BlockFacts:
    return BlockFacts(
        text(block.get("name"), "unnamed"),
        text(block.get("kind"), "block"),
        len(items(block.get("nodes"))),
        number(block.get("params")),
        number(block.get("macs")),
    )


def _owners(blocks: list[dict[str, Any]]) -> dict[str, str]:
    """Names of nodes, and of the tensors that leave a block -> name of the block."""
    owner = {}
    for block in blocks:
        name = text(block.get("name"), "unnamed")
        for edge in mappings(block.get("outputs")):
            owner[text(edge.get("name"))] = name
    for block in blocks:
        name = text(block.get("name"), "unnamed")
        owner.update((node, name) for node in items(block.get("nodes")) if isinstance(node, str))
    return owner


def _add_kernels(results: Results, by_name: dict[str, BlockFacts], owner: dict[str, str]) -> None:
    known = mapping(results.evidence.get("kernels"))
    for name, facts in by_name.items():
        if name in known:
            counted = [number(mapping(known[name]).get(key)) for key in ("int8", "float")]
            facts.int8_kernels, facts.float_kernels = (None if value is None else int(value) for value in counted)
    audit = mapping(results.quantize.get("audit") or results.compare.get("audit"))
    if known or not audit:
        return
    counts = {
        key: Counter(by_longest_name(node, owner) for node in items(audit.get(key)) if isinstance(node, str))
        for key in ("int8", "float")
    }
    for name, facts in by_name.items():
        facts.int8_kernels, facts.float_kernels = counts["int8"][name], counts["float"][name]


def _add_errors(results: Results, by_name: dict[str, BlockFacts], owner: dict[str, str]) -> None:
    leaving = {
        text(edge.get("name")): text(block.get("name"), "unnamed")
        for block in results.blocks
        for edge in mappings(block.get("outputs"))
    }
    at_output: dict[str, float] = {}
    for row in mappings(results.compare.get("tensors")):
        tensor, value = text(row.get("name")), number(row.get("sqnr_db"))
        name = text(row.get("block")) or by_longest_name(tensor, owner)
        if value is None or name not in by_name:
            continue
        by_name[name].tensors.append(row)
        if leaving.get(tensor) == name:
            at_output[name] = min(value, at_output.get(name, value))
    for name, facts in by_name.items():
        values = [number(row.get("sqnr_db")) for row in facts.tensors]
        facts.at_end = name in at_output
        facts.sqnr_db = at_output.get(name, min((value for value in values if value is not None), default=None))
        facts.tensors.sort(key=lambda row: number(row.get("sqnr_db")) or 0.0)
