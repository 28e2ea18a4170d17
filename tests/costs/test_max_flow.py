"""The minimum cut against every cut of small random graphs."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from onnx_hyvit.costs.max_flow import FlowGraph


def cut_value(edges: list[tuple[int, int, int]], source_side: set[int]) -> int:
    return sum(capacity for start, end, capacity in edges if start in source_side and end not in source_side)


@pytest.mark.parametrize("seed", range(20))
def test_cut_is_the_least_of_all_cuts(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = 7
    edges = [
        (start, end, int(random.integers(0, 20)))
        for start in range(count)
        for end in range(count)
        if start != end and random.random() < 0.5
    ]
    flow = FlowGraph(count)
    for edge in edges:
        flow.add_edge(*edge)
    value, sink_side = flow.cut(0, 1)
    sides = [
        {0, *(node for node, inside in zip(range(2, count), choice, strict=True) if inside)}
        for choice in product((False, True), repeat=count - 2)
    ]
    values = [cut_value(edges, side) for side in sides]
    assert value == min(values) == cut_value(edges, set(range(count)) - sink_side)
    smallest = min(count - len(side) for side, found in zip(sides, values, strict=True) if found == value)
    assert len(sink_side) == smallest


def test_what_is_not_connected_to_the_sink_is_not_cut_off() -> None:
    flow = FlowGraph(3)
    flow.add_edge(0, 2, 5)
    assert flow.cut(0, 1) == (0, frozenset({1}))
