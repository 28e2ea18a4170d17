"""Enlarge or shrink int8 maps by copying whole pixels.

Before
    y = Resize<mode = nearest>(x [N, C, h, w])
After
    y = Transpose(Gather<axis = 1>(Gather<axis = 2>(Transpose(x), columns), rows))        channels last between
Conditions
    1. the plan asks for it and carries the Resize: x and y have the same codes;
    2. h, w and the new sides are known, and nothing but the sides is resized, by fixed scales or sizes;
    3. C >= 16.
ONNX Runtime's int8 convolutions work on channels last and bring a Resize behind one into this order, where its general
kernel takes about 0.9 ns for each value. A Gather copies the C bytes of a pixel, and then rows, at once: 0.07 ns with
240 channels, 0.15 with 64 (x86), and as fast as the Resize with 3. The transpositions cancel out beside a convolution.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.edit import dim_of
from ..graph.interpolation import nearest_positions
from ..placement import Plan
from .carry import TO_FIRST, TO_LAST, carry, gather, transpose

LEAST_CHANNELS = 16


def resize_to_gather(graph: gs.Graph, plan: Plan) -> Plan:
    """Rewrite the nodes that ``plan.as_gather`` names where the conditions hold.

    Args:
        graph: Float graph that the plan was made for, without any Q/DQ pairs; edited in place.
        plan: The plan.

    Returns:
        The plan of the graph as it is now.
    """
    carried = set(plan.carried_nodes) & plan.as_gather
    for node in [node for node in graph.nodes if node.name in carried and node.op == "Resize"]:
        sides = nearest_positions(node)
        channels = dim_of(node.inputs[0], 1)
        if not isinstance(sides, str) and isinstance(channels, int) and channels >= LEAST_CHANNELS:
            plan = _rewrite(graph, node, sides, plan)
    return plan


def _rewrite(graph: gs.Graph, node: gs.Node, sides: tuple[np.ndarray, np.ndarray], plan: Plan) -> Plan:
    source, result = node.inputs[0], node.outputs[0]
    rows, columns = sides
    node.inputs, node.outputs = [], []
    graph.nodes.remove(node)
    made = [transpose(graph, node.name, source, TO_LAST)]
    for indices, axis in ((columns, 2), (rows, 1)):
        made.append(gather(graph, node.name, made[-1].outputs[0], indices, axis))
    made.append(transpose(graph, node.name, made[-1].outputs[0], TO_FIRST, result))
    return carry(plan, made, source.name)
