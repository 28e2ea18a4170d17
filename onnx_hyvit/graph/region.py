"""Cut a region between named tensors out of a model, as a model of its own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from ..errors import ModelError


def extract_region(proto: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """The sub-model that computes ``outputs`` from ``inputs``.

    Initializers and Constant nodes that the region reads come along, so the inputs are only tensors that change.

    Args:
        proto: The whole model, not changed; every cut tensor needs a type (``value_info`` or shape inference).
        inputs: Names of the tensors that enter; the walk back from the outputs stops there.
        outputs: Names of the tensors that leave.

    Returns:
        A model with the same opsets, functions and metadata and with ``inputs`` and ``outputs`` in the given order.

    Raises:
        ModelError: A name is unknown or untyped, or an output needs a graph input that was not listed.
    """
    graph = proto.graph
    nodes = _needed_nodes(graph, inputs, outputs)
    kept = [node for index, node in enumerate(graph.node) if index in nodes]
    read = {name for node in kept for name in (*node.input, *names_read_by_bodies(node)) if name} | set(outputs)
    types = _types(graph)
    made = {name for node in kept for name in node.output}
    region = onnx.ModelProto()
    region.CopyFrom(_without_graph(proto))
    region.graph.name = f"{graph.name or 'graph'}_region"
    region.graph.node.extend(kept)
    region.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in read)
    region.graph.sparse_initializer.extend(tensor for tensor in graph.sparse_initializer if tensor.values.name in read)
    region.graph.input.extend(_typed(name, types) for name in inputs)
    region.graph.output.extend(_typed(name, types) for name in outputs)
    boundary = {*inputs, *outputs}
    region.graph.value_info.extend(
        value for value in graph.value_info if value.name in made and value.name not in boundary
    )
    return region


def _needed_nodes(graph: onnx.GraphProto, inputs: Sequence[str], outputs: Sequence[str]) -> set[int]:
    producer = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {tensor.values.name for tensor in graph.sparse_initializer}
    free = {value.name for value in graph.input} - constants
    stop = set(inputs)
    needed: set[int] = set()
    pending = [name for name in outputs if name not in stop]
    for name in pending:
        if name not in producer:
            raise ModelError(f"tensor {name!r} is made by no node of the graph; a region cannot end there")
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name in seen or name in stop or not name:
            continue
        seen.add(name)
        if name in producer:
            index = producer[name]
            needed.add(index)
            pending.extend([*graph.node[index].input, *names_read_by_bodies(graph.node[index])])
        elif name in free:
            raise ModelError(f"the region that ends at {', '.join(outputs)} also needs the graph input {name!r}")
    return needed


def _types(graph: onnx.GraphProto) -> dict[str, onnx.ValueInfoProto]:
    types = {value.name: value for value in [*graph.input, *graph.value_info, *graph.output]}
    for tensor in graph.initializer:
        types.setdefault(
            tensor.name, onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    return types


def _typed(name: str, types: dict[str, onnx.ValueInfoProto]) -> onnx.ValueInfoProto:
    value = types.get(name)
    if value is None or not value.type.HasField("tensor_type"):
        raise ModelError(f"tensor {name!r} has no known type; run shape inference before cutting a region there")
    return value


def _without_graph(proto: onnx.ModelProto) -> onnx.ModelProto:
    bare = onnx.ModelProto()
    bare.ir_version = proto.ir_version
    bare.opset_import.extend(proto.opset_import)
    bare.functions.extend(proto.functions)
    bare.producer_name = proto.producer_name
    return bare


def names_read_by_bodies(node: onnx.NodeProto) -> set[str]:
    """Names that the bodies of an If, Loop or Scan read, their own ones included."""
    found: set[str] = set()
    for attribute in node.attribute:
        for body in [attribute.g, *attribute.graphs]:
            for inner in body.node:
                found |= {name for name in inner.input if name} | names_read_by_bodies(inner)
            found |= {value.name for value in body.output}
    return found
