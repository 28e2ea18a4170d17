"""Let the scales of QuantizeLinear and DequantizeLinear take over constant multiplications per channel.

Before:  Mul(x, m) -> Q(s, z)            After:  Q(s / m, z) per channel
Before:  DQ(s, z) -> Mul(., m)           After:  DQ(s * m, z) per channel

Conditions:
    1. m is a constant with one positive number per index of one axis;
    2. nothing else reads the Mul's output (Q side), or the DQ's output (DQ side);
    3. the names of the Muls were given: only those that stand for gains are merged, since the result is a Q per channel
       with a DQ per tensor (or the reverse), which not every runtime takes.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_graphsurgeon as gs

from ..graph import Model
from ..graph.edit import constant_of, is_graph_output, new_constant, producer_of, take_over_output


def merge_gains(model: Model, muls: Collection[str]) -> int:
    """Merge the Mul nodes named ``muls`` of a quantized model into their Q or DQ neighbours; returns how many."""
    graph = model.graph
    merged = 0
    for node in [node for node in graph.nodes if node.name in muls and node.op == "Mul"]:
        factor = constant_of(node.inputs[1])
        axis = _only_axis(factor)
        if factor is None or axis is None:
            continue
        if _into_quantize(graph, node, factor, axis) or _into_dequantize(graph, node, factor, axis):
            merged += 1
    graph.cleanup().toposort()
    return merged


def _only_axis(factor: np.ndarray | None) -> int | None:
    """The one axis of ``factor`` that is longer than 1."""
    if factor is None or factor.ndim == 0 or not (factor > 0).all():
        return None
    long = [axis for axis, size in enumerate(factor.shape) if size > 1]
    return long[0] if len(long) == 1 else None


def _into_quantize(graph: gs.Graph, node: gs.Node, factor: np.ndarray, axis: int) -> bool:
    output = node.outputs[0]
    readers = list(output.outputs)
    if not readers or is_graph_output(graph, output) or any(reader.op != "QuantizeLinear" for reader in readers):
        return False
    for reader in readers:
        _per_channel(graph, reader, 1 / factor.reshape(-1).astype(np.float64), axis)
        reader.inputs[0] = node.inputs[0]
    return True


def _into_dequantize(graph: gs.Graph, node: gs.Node, factor: np.ndarray, axis: int) -> bool:
    source = node.inputs[0]
    dequantize = producer_of(source)
    if dequantize is None or dequantize.op != "DequantizeLinear" or len(source.outputs) != 1:
        return False
    if is_graph_output(graph, source):
        return False
    _per_channel(graph, dequantize, factor.reshape(-1).astype(np.float64), axis)
    take_over_output(dequantize, node.outputs[0])
    return True


def _per_channel(graph: gs.Graph, node: gs.Node, factor: np.ndarray, axis: int) -> None:
    scale, zero_point = constant_of(node.inputs[1]), constant_of(node.inputs[2])
    assert scale is not None and zero_point is not None, node.name
    wide = (scale.astype(np.float64) * factor).astype(scale.dtype)
    node.inputs[1] = new_constant(graph, f"{node.name}_scales", wide)
    node.inputs[2] = new_constant(graph, f"{node.name}_zero_points", np.full(len(factor), zero_point, zero_point.dtype))
    node.attrs["axis"] = axis
