"""Convert codes to another width: DequantizeLinear of the one feeds QuantizeLinear of the other.

Before
    x -> node
After
    x -> QuantizeLinear -> [Clip] -> DequantizeLinear -> node
Conditions
    the plan has a conversion of x that the node reads.
The pair of x itself comes later: where an int8 node makes x it stands in front of this one, for it takes the name of x
over; where a float node makes x it stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from ..numerics import QParams
from ..placement import Plan
from .pair import add_params, write_pair


def insert_conversions(
    graph: gs.Graph, plan: Plan, scales: Mapping[str, QParams]
) -> dict[str, tuple[gs.Constant, gs.Constant]]:
    """Put the pairs of ``plan.conversions`` in front of their readers; each makes a tensor of its own name.

    Args:
        graph: Float graph that the plan was made for, without any Q/DQ pairs; edited in place.
        plan: The plan.
        scales: Scales of activations.

    Returns:
        Scale and zero point of each conversion as initializers.
    """
    tensors, nodes = graph.tensors(), {node.name: node for node in graph.nodes}
    made = {}
    for name, conversion in plan.conversions.items():
        source, params = tensors[conversion.tensor], scales[name]
        spec = params.spec
        result = gs.Variable(name, np.float32, source.shape)
        for reader in conversion.readers:
            inputs = nodes[reader].inputs
            for index, tensor in enumerate(inputs):
                if tensor is source:
                    inputs[index] = result
        limits = None if spec.is_full_container else (spec.qmin, spec.qmax)
        made[name] = add_params(graph, name, params)
        write_pair(graph, name, source, result, made[name], params, limits)
    return made
