"""The data flow of a graph: which nodes carry data, and where the flow is narrow enough to be cut.

A node *carries data* when its result depends on the values of a graph input; constants and shape arithmetic (whatever
hangs on ``Shape`` or ``Size`` only) and nodes that reach no result are *auxiliary*: they belong to the block that uses
them, or else to the one they read from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_graphsurgeon as gs

Shapes = Mapping[str, tuple[int, ...]]
_SHAPE_SOURCES = frozenset({"Shape", "Size"})


@dataclass(frozen=True)
class Span:
    """The data nodes ``lo <= position < hi`` between two cuts.

    Args:
        lo: Position of the first data node.
        hi: Position after the last one.
        entry: The tensor that is handed over at the cut before; None at the start of the graph.
        exit: The tensor that is handed over at the cut after; None at the end.
        passing: Tensors of enclosing spans that are still to be read behind this span (long shortcuts).
    """

    lo: int
    hi: int
    entry: str | None
    exit: str | None
    passing: frozenset[str] = frozenset()


class Flow:
    """Data nodes of a graph in a depth-first topological order, addressed by position.

    The order does not depend on the exporter's: it follows the longest path first and makes a side branch right
    before it is needed, so that few tensors are alive at any position.

    Args:
        graph: Sorted graph; not changed.
        shapes: Concrete shapes of all tensors.
    """

    def __init__(self, graph: gs.Graph, shapes: Shapes) -> None:
        self.graph = graph
        self.shapes = shapes
        self.data: set[str] = {tensor.name for tensor in graph.inputs}
        carriers: list[gs.Node] = []
        for node in graph.nodes:
            reads = node.op not in _SHAPE_SOURCES and any(tensor.name in self.data for tensor in node.inputs)
            if reads or _reads_from_outside(node, self.data):
                carriers.append(node)
                self.data.update(tensor.name for tensor in node.outputs if tensor.name)
        self.nodes = _depth_first(carriers, [tensor.name for tensor in graph.outputs], self.data)
        self.position = {node.name: index for index, node in enumerate(self.nodes)}
        self.auxiliary = [node for node in graph.nodes if node.name not in self.position]
        self.made_at: dict[str, int] = {}
        self.read_at: dict[str, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for name in self.inputs(index):
                self.read_at.setdefault(name, []).append(index)
            self.made_at.update((tensor.name, index) for tensor in node.outputs if tensor.name)

    def inputs(self, position: int) -> list[str]:
        """Names of the data tensors that the node at ``position`` reads."""
        node = self.nodes[position]
        names = [tensor.name for tensor in node.inputs if tensor.name in self.data]
        return names + [name for name in names_read_by_bodies(node) if name in self.data and name not in names]

    def outputs(self, position: int) -> list[str]:
        """Names of the tensors that the node at ``position`` makes."""
        return [tensor.name for tensor in self.nodes[position].outputs if tensor.name]

    def producers(self, position: int) -> list[int]:
        """Positions of the data nodes whose results the node at ``position`` reads."""
        return [self.made_at[name] for name in self.inputs(position) if name in self.made_at]

    def consumers(self, position: int) -> list[int]:
        """Positions of the data nodes that read a result of the node at ``position``."""
        return [reader for name in self.outputs(position) for reader in self.read_at.get(name, ())]

    def ancestors(self, positions: Iterable[int], lo: int = 0) -> set[int]:
        """``positions`` and every data node at or after ``lo`` that they depend on."""
        found: set[int] = set()
        pending = list(positions)
        while pending:
            position = pending.pop()
            if position >= lo and position not in found:
                found.add(position)
                pending.extend(self.producers(position))
        return found

    def size(self, tensor: str) -> int:
        """Number of elements of ``tensor``; 0 when its shape was not observed."""
        if tensor not in self.shapes:
            return 0
        count = 1
        for length in self.shapes[tensor]:
            count *= length
        return count

    def split(self, lo: int, hi: int, entry: str | None, passing: frozenset[str]) -> list[Span]:
        """Cut the data nodes ``lo..hi`` wherever a single tensor, besides those passing by, is handed over.

        Every node on one side of such a cut depends on, or is depended on by, the tensor, so the cuts are the same
        in every topological order; the cost is linear in the number of nodes.
        """
        live: set[str] = {entry} if entry is not None and self._last_read(entry) >= lo else set()
        live -= passing
        spans: list[Span] = []
        start, begins_with = lo, entry
        for position in range(lo, hi):
            for name in self.inputs(position):
                if self._last_read(name) == position:
                    live.discard(name)
                elif name not in self.made_at and name not in passing:
                    live.add(name)
            live.update(name for name in self.outputs(position) if self._last_read(name) > position)
            if position + 1 == hi or len(live) == 1:
                leaves_with = next(iter(live)) if len(live) == 1 else None
                if leaves_with is not None and leaves_with == begins_with:
                    continue
                spans.append(Span(start, position + 1, begins_with, leaves_with, passing))
                start, begins_with = position + 1, leaves_with
        if start < hi:  # the last cut handed over the tensor it began with
            spans.append(Span(start, hi, begins_with, None, passing))
        return spans

    def _last_read(self, tensor: str) -> int:
        readers = self.read_at.get(tensor)
        return readers[-1] if readers else -1


def _depth_first(nodes: list[gs.Node], results: list[str], data: set[str]) -> list[gs.Node]:
    """Post-order from the results, the deepest input first; nodes that reach no result are left out."""
    maker = {tensor.name: index for index, node in enumerate(nodes) for tensor in node.outputs if tensor.name}
    sources: list[list[int]] = []
    depth: list[int] = []
    for node in nodes:
        names = [tensor.name for tensor in node.inputs] + names_read_by_bodies(node)
        made = list(dict.fromkeys(maker[name] for name in names if name in maker and name in data))
        depth.append(1 + max((depth[index] for index in made), default=0))
        sources.append(sorted(made, key=lambda index: depth[index]))
    order: list[gs.Node] = []
    done = [False] * len(nodes)
    roots = [maker[name] for name in results if name in maker]
    for root in sorted(roots, key=lambda index: -depth[index]):
        pending = [root]
        while pending:
            index = pending[-1]
            waiting = [source for source in sources[index] if not done[source]]
            if waiting and not done[index]:
                pending.append(waiting[-1])
                continue
            pending.pop()
            if not done[index]:
                done[index] = True
                order.append(nodes[index])
    return order


def names_read_by_bodies(node: gs.Node) -> list[str]:
    """Names of outer tensors that the bodies of If, Loop and Scan read; a name that a body makes itself is its own."""
    names: list[str] = []
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            own = {tensor.name for tensor in value.inputs}
            own.update(tensor.name for inner in value.nodes for tensor in inner.outputs)
            read = [tensor.name for tensor in value.outputs]
            for inner in value.nodes:
                read += [tensor.name for tensor in inner.inputs]
                read += names_read_by_bodies(inner)
            names += [name for name in read if name not in own]
    return names


def _reads_from_outside(node: gs.Node, data: set[str]) -> bool:
    return any(name in data for name in names_read_by_bodies(node))
