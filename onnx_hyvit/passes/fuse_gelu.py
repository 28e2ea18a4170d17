"""Write decomposed GELU as one Gelu node.

Before
    0.5 * x * (1 + erf(x / sqrt(2)))
    0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))           products in any order
After
    Gelu(x), Gelu(x, approximate="tanh")
Conditions
    1. opset >= 20, where Gelu is an ONNX operator;
    2. the constants agree to 1e-4 relative;
    3. nobody else reads an inner tensor (closed).
``x * sigmoid(1.702 x)`` is another function and stays as it is: it quantizes well and fuses.
"""

from __future__ import annotations

from ..graph.edit import add_node, new_variable, take_over_output
from ..graph.io import Model
from ..graph.pattern import NearMiss
from ..graph.recognise.activations import iter_activations
from .infrastructure import GraphPass

APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Rewrite every closed GELU."""
    graph = model.graph
    count = 0
    for kind, match in list(iter_activations(graph, tuple(APPROXIMATE), near_misses)):
        if model.opset < 20:
            near_misses.append(NearMiss(f"Gelu needs opset 20, the model has {model.opset}", match.root.name))
            continue
        stem = match.root.name
        outputs = [new_variable(graph, f"{stem}_gelu")]
        attrs = {"approximate": APPROXIMATE[kind]}
        node = add_node(graph, "Gelu", [match.tensor("x")], outputs, stem=f"{stem}_gelu", attrs=attrs)
        take_over_output(node, match.output)
        count += 1
    return count


PASS = GraphPass("fuse_gelu", apply)
