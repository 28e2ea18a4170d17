"""Minimum cut of a directed graph with whole capacities (Dinic's algorithm); deterministic, no dependency."""

from __future__ import annotations

from collections import deque

UNCUTTABLE = 1 << 60


class FlowGraph:
    """A flow network under construction; nodes are 0, 1, 2 ...

    Args:
        nodes: Number of nodes.
    """

    def __init__(self, nodes: int) -> None:
        self._to: list[int] = []
        self._left: list[int] = []
        self._edges: list[list[int]] = [[] for _ in range(nodes)]

    def add_node(self) -> int:
        """Add a node and return its number."""
        self._edges.append([])
        return len(self._edges) - 1

    def add_edge(self, start: int, end: int, capacity: int) -> None:
        """Add an edge that a cut pays ``capacity`` (0 or more) for when ``start`` is on the source's side only."""
        for node, target, left in ((start, end, capacity), (end, start, 0)):
            self._edges[node].append(len(self._to))
            self._to.append(target)
            self._left.append(left)

    def cut(self, source: int, sink: int) -> tuple[int, frozenset[int]]:
        """Minimum cut.

        Returns:
            Its value, and the nodes on the sink's side, as few as any minimum cut allows.
        """
        value = 0
        while (levels := self._levels(source))[sink] >= 0:
            position = [0] * len(self._edges)
            while pushed := self._push(source, sink, levels, position):
                value += pushed
        return value, self._reaching(sink)

    def _levels(self, source: int) -> list[int]:
        levels = [-1] * len(self._edges)
        levels[source] = 0
        queue = deque([source])
        while queue:
            node = queue.popleft()
            for edge in self._edges[node]:
                if self._left[edge] > 0 and levels[self._to[edge]] < 0:
                    levels[self._to[edge]] = levels[node] + 1
                    queue.append(self._to[edge])
        return levels

    def _push(self, source: int, sink: int, levels: list[int], position: list[int]) -> int:
        """Push flow along one shortest path; 0 when there is none left on these levels."""
        path: list[int] = []
        node = source
        while node != sink:
            step = self._step(node, levels, position)
            if step is not None:
                path.append(step)
                node = self._to[step]
            elif path:
                last = path.pop()
                node = self._to[last ^ 1]
                position[node] += 1
            else:
                return 0
        flow = min(self._left[edge] for edge in path)
        for edge in path:
            self._left[edge] -= flow
            self._left[edge ^ 1] += flow
        return flow

    def _step(self, node: int, levels: list[int], position: list[int]) -> int | None:
        while position[node] < len(self._edges[node]):
            edge = self._edges[node][position[node]]
            if self._left[edge] > 0 and levels[self._to[edge]] == levels[node] + 1:
                return edge
            position[node] += 1
        return None

    def _reaching(self, sink: int) -> frozenset[int]:
        """Nodes from which the sink can still be reached."""
        found, stack = {sink}, [sink]
        while stack:
            for edge in self._edges[stack.pop()]:
                start = self._to[edge]
                if self._left[edge ^ 1] > 0 and start not in found:
                    found.add(start)
                    stack.append(start)
        return frozenset(found)
