"""Take the padding of a stem back where its convolution stays float.

Before
    y = Conv(Pad(image, n channels of zeros), W)      as ``pad_stem`` makes it for int8
After
    y = Conv(image, W without its last n channels)
Conditions
    1. the convolution is one of those named (the plan keeps them float), has no groups and fixed weights;
    2. the Pad adds zeros behind the channels of a graph input and nothing else;
    3. no other node reads the Pad.
What the added channels contribute is 0. In float they cost a copy of the image and a quarter of the products: on a
processor without VNNI 1.8 % of an EdgeNeXt-XX-Small's time.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_graphsurgeon as gs

from ...graph.edit import has_input, ints_of, new_constant, scalar_of
from ...graph.io import Model
from ...graph.linear import weight_of
from ...graph.pattern import NearMiss
from ..infrastructure import GraphPass


def unpad_stem(names: Collection[str]) -> GraphPass:
    """The pass for the convolutions called ``names``."""

    def apply(model: Model, near_misses: list[NearMiss]) -> int:
        return sum(_unpad(model.graph, node) for node in list(model.graph.nodes) if node.name in names)

    return GraphPass("unpad_stem", apply)


def _unpad(graph: gs.Graph, node: gs.Node) -> bool:
    weight = weight_of(node) if node.op == "Conv" and int(node.attrs.get("group", 1)) == 1 else None
    pad = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    if weight is None or pad is None or pad.op != "Pad" or len(node.inputs[0].outputs) != 1:
        return False
    added = _added_channels(pad)
    if not any(pad.inputs[0] is tensor for tensor in graph.inputs) or not 0 < added < weight.shape[1]:
        return False
    node.inputs[0] = pad.inputs[0]
    node.inputs[1] = new_constant(graph, f"{node.name}_weight_unpadded", np.ascontiguousarray(weight[:, :-added]))
    return True


def _added_channels(pad: gs.Node) -> int:
    """Channels of zeros that a Pad appends to a map, 0 when it does anything else."""
    pads = ints_of(pad, "pads", 1)
    filled = scalar_of(pad.inputs[2]) if has_input(pad, 2) else 0.0
    plain = pad.attrs.get("mode", "constant") == "constant" and filled == 0.0 and not has_input(pad, 3)
    if pads is None or len(pads) != 8 or not plain or any(pads[:5]) or any(pads[6:]):
        return 0
    return pads[5]
