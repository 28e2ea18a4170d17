"""Give every int8 layer a weight of its own.

ONNX Runtime 1.32 turns s8 weights into u8 for exact sums on x86 without VNNI, and fails on a weight that two layers
read: it converts it twice ("Attempt to replace the existing tensor").
"""

from __future__ import annotations

import os

import onnx

UNSHARED = " (a weight of its own for each layer)"
SHARED_WEIGHT = "Attempt to replace the existing tensor"


def unshare_weights(model: onnx.ModelProto | bytes | str | os.PathLike[str]) -> onnx.ModelProto:
    """A copy of ``model`` in which each reader of a dequantized weight has codes, scale and zero point of its own."""
    copy = _copied(model)
    graph = copy.graph
    codes = {tensor.name: tensor for tensor in graph.initializer}
    twins: list[onnx.NodeProto] = []
    for node in [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in codes]:
        uses = [(user, slot) for user in graph.node for slot, name in enumerate(user.input) if name == node.output[0]]
        for count, (user, slot) in enumerate(uses):
            twin = onnx.NodeProto()
            twin.CopyFrom(node)
            twin.name, twin.output[0] = (f"{name}_of_reader_{count}" for name in (node.name, node.output[0]))
            for index, name in enumerate(node.input):
                own = onnx.TensorProto()
                own.CopyFrom(codes[name])
                own.name = twin.input[index] = f"{node.name}_input_{index}_of_reader_{count}"
                graph.initializer.append(own)
            user.input[slot] = twin.output[0]
            twins.append(twin)
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*twins, *rest])
    return copy


def _copied(model: onnx.ModelProto | bytes | str | os.PathLike[str]) -> onnx.ModelProto:
    if isinstance(model, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy
    if isinstance(model, (bytes, bytearray)):
        return onnx.load_model_from_string(bytes(model))
    return onnx.load_model(model, load_external_data=False)
