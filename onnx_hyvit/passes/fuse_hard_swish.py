"""Write decomposed HardSwish and HardSigmoid as one node.

Before
    x * HardSigmoid(x; 1/6, 1/2)        x * Clip(x + 3, 0, 6) / 6        Clip(x + 3, 0, 6) / 6
After
    HardSwish(x)                        HardSwish(x)                     HardSigmoid(x; 1/6, 1/2)
Conditions
    1. opset >= 14 for HardSwish;
    2. Clip may be spelled with inputs, attributes, Min and Max, or Relu; products may stand in any order;
    3. nobody else reads an inner tensor (closed).
"""

from __future__ import annotations

from ..graph.edit import add_node, new_variable, take_over_output
from ..graph.io import Model
from ..graph.pattern import NearMiss
from ..graph.recognise.activations import iter_activations
from .infrastructure import GraphPass


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Rewrite every closed HardSwish, then what is left of HardSigmoid."""
    graph = model.graph
    count = 0
    for kind, match in list(iter_activations(graph, ("hard_swish", "hard_sigmoid"), near_misses)):
        if kind == "hard_swish" and model.opset < 14:
            near_misses.append(NearMiss(f"HardSwish needs opset 14, the model has {model.opset}", match.root.name))
            continue
        stem = match.root.name
        op = "HardSwish" if kind == "hard_swish" else "HardSigmoid"
        attrs = {} if kind == "hard_swish" else {"alpha": 1.0 / 6.0, "beta": 0.5}
        outputs = [new_variable(graph, f"{stem}_{kind}")]
        node = add_node(graph, op, [match.tensor("x")], outputs, stem=f"{stem}_{kind}", attrs=attrs)
        take_over_output(node, match.output)
        count += 1
    return count


PASS = GraphPass("fuse_hard_swish", apply)
