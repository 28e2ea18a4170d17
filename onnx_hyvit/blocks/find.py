"""``find_structure``: from a graph to its blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import onnx_graphsurgeon as gs

from ..graph.io import Model
from .atoms import Atom, find_atoms
from .attention import find_cores
from .cost import count_macs, count_params
from .domain import Domain, find_domains
from .flow import Flow, Shapes, names_read_by_bodies
from .inventory import list_activations, list_attentions, list_norms
from .partition import Draft, draft_blocks
from .runs import find_runs
from .structure import Block, Structure, Unrecognised
from .transitions import find_transitions


def find_structure(model: Model, shapes: Shapes) -> Structure:
    """Partition the main graph into blocks and list what is in it.

    Args:
        model: Any loaded model; passes make it easier to read, but are not required. Its nodes are sorted in place.
        shapes: Concrete shapes of all tensors, from ``observe_shapes``.

    Returns:
        Blocks that hold every node once, in topological order, each a convex and connected region.
    """
    model.graph.toposort()
    flow = Flow(model.graph, shapes)
    domains = find_domains(flow)
    cores, misses = find_cores(flow)
    atoms = find_atoms(flow, cores, domains)
    runs = find_runs(flow, atoms)
    drafts = draft_blocks(flow, atoms, runs, domains) or [Draft("head", [])]
    groups = _groups(flow, drafts)
    blocks = _blocks(flow, groups)
    misses += _tokens_without_attention(flow, drafts, atoms) + _lost_channels(flow, atoms, domains)
    norms, near_norms = list_norms(flow)
    activations, near_activations = list_activations(flow)
    bridges = {node: block.name for block in blocks if block.kind == "bridge" for node in block.nodes}
    return Structure(
        blocks=tuple(blocks),
        norms=tuple(norms),
        activations=tuple(activations),
        attentions=tuple(list_attentions(flow, cores, model.opset)),
        transitions=tuple(find_transitions(flow, atoms, runs, bridges, domains)),
        unrecognised=tuple(dict.fromkeys(misses + near_norms + near_activations)),
        shapes={name: shapes[name] for block in blocks for name in block.inputs + block.outputs if name in shapes},
    )


def _groups(flow: Flow, drafts: list[Draft]) -> list[tuple[str, list[gs.Node]]]:
    """Kind and nodes of each block: auxiliary nodes join the first block that uses them, and order is enforced."""
    block_of = {flow.nodes[place].name: index for index, draft in enumerate(drafts) for place in draft.positions}
    earliest: dict[str, int] = {}
    for node in flow.graph.nodes:  # no edge may lead backwards
        made = [earliest[source.name] for tensor in node.inputs for source in tensor.inputs if source.name in earliest]
        earliest[node.name] = max([block_of.get(node.name, 0), *made])
        if node.name in block_of:
            block_of[node.name] = earliest[node.name]
    for node in reversed(flow.auxiliary):
        users = [block_of[user.name] for tensor in node.outputs for user in tensor.outputs if user.name in block_of]
        block_of[node.name] = min(users, default=earliest[node.name])
    members: list[list[gs.Node]] = [[] for _ in drafts]
    for node in flow.graph.nodes:
        members[block_of[node.name]].append(node)
    groups: list[tuple[str, list[gs.Node]]] = []
    for draft, nodes in zip(drafts, members, strict=True):
        last = flow.nodes[max(draft.positions)].name if draft.positions else ""
        for part in _connected_parts(flow, nodes):
            side = draft.kind == "bridge" and all(node.name != last for node in part)
            groups.append(("conv" if side else draft.kind, part))
    return groups


def _connected_parts(flow: Flow, nodes: list[gs.Node]) -> list[list[gs.Node]]:
    """Weakly connected components, over tensors that are made or read in common (initializers do not connect).

    Auxiliary nodes that nothing uses stay with the first component.
    """
    leader: dict[str, str] = {}

    def find(key: str) -> str:
        while leader.setdefault(key, key) != key:
            leader[key] = leader[leader[key]]
            key = leader[key]
        return key

    for node in nodes:
        for tensor in [*node.inputs, *node.outputs]:
            if tensor.name and not isinstance(tensor, gs.Constant):
                leader[find("tensor " + tensor.name)] = find("node " + node.name)
    parts: dict[str, list[gs.Node]] = {}
    for node in nodes:
        parts.setdefault(find("node " + node.name), []).append(node)
    working = [part for part in parts.values() if any(node.name in flow.position for node in part)]
    if not working:
        return list(parts.values())
    used = {node.name for part in working for node in part}
    first = {node.name for node in working[0]}
    working[0] = [node for node in nodes if node.name in first or node.name not in used]
    return working


def _blocks(flow: Flow, groups: list[tuple[str, list[gs.Node]]]) -> list[Block]:
    totals, seen = Counter(kind for kind, _ in groups), Counter[str]()
    results = {tensor.name for tensor in flow.graph.outputs}
    counted: set[str] = set()
    blocks: list[Block] = []
    for kind, nodes in groups:
        seen[kind] += 1
        name = kind if totals[kind] == 1 and kind in ("stem", "head") else f"{kind}_{seen[kind]}"
        inputs, outputs = _boundary(nodes, results, flow.data)
        macs = sum(count_macs(node, flow.shapes) for node in nodes)
        names = tuple(node.name for node in nodes)
        blocks.append(Block(name, kind, names, inputs, outputs, count_params(nodes, counted), macs))
    return blocks


def _boundary(
    nodes: list[gs.Node], results: set[str], data: Collection[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    inside = {node.name for node in nodes}
    made = {tensor.name for node in nodes for tensor in node.outputs}
    inputs: dict[str, None] = {}
    outputs: dict[str, None] = {}
    for node in nodes:
        for tensor in node.inputs:
            constant = isinstance(tensor, gs.Constant) or (tensor.inputs and tensor.inputs[0].op == "Constant")
            if tensor.name and tensor.name not in made and not constant:
                inputs[tensor.name] = None
        for name in names_read_by_bodies(node):
            if name in data and name not in made:
                inputs[name] = None
        for tensor in node.outputs:
            if tensor.name in results or any(user.name not in inside for user in tensor.outputs):
                outputs[tensor.name] = None
    return tuple(inputs), tuple(outputs)


def _tokens_without_attention(flow: Flow, drafts: list[Draft], atoms: list[Atom]) -> list[Unrecognised]:
    attended = {position for atom in atoms if atom.cores for position in atom.positions}
    linear = {position for atom in atoms for position in atom.linears}
    misses: list[Unrecognised] = []
    inside_run = False
    for draft in drafts:
        if draft.kind == "transformer" and not inside_run and not attended & set(draft.positions):
            culprit = next((place for place in draft.positions if place in linear), draft.positions[0])
            misses.append(Unrecognised("token region without attention", flow.nodes[culprit].name))
        inside_run = draft.kind in ("bridge", "transformer") and (inside_run or draft.kind == "bridge")
    return misses


def _lost_channels(flow: Flow, atoms: list[Atom], domains: dict[str, Domain]) -> list[Unrecognised]:
    """Residual units that begin on a tensor whose channel axis is unknown: the last Reshape before is the culprit."""
    misses: list[Unrecognised] = []
    for atom in atoms:
        entry = atom.span.entry
        if entry is None or not (atom.residual or atom.cores) or domains[entry].kind != "unknown":
            continue
        made = flow.made_at.get(entry, 0)
        culprit = next((place for place in range(made, -1, -1) if flow.nodes[place].op == "Reshape"), None)
        if culprit is not None and domains[flow.outputs(culprit)[0]].kind == "unknown":
            reason = f"the channel axis of {entry!r} could not be tracked through this Reshape"
            misses.append(Unrecognised(reason, flow.nodes[culprit].name))
    return misses
