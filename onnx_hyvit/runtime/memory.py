"""How much memory the activations of a model take, from its shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx

FLOAT_BYTES = 4


def samples_that_fit(
    proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], fetched: Iterable[str], max_memory: int
) -> int:
    """Samples in a batch whose activations fit into half of ``max_memory``; the other half is for the observers.

    Args:
        proto: Model, topologically sorted.
        shapes: Shapes for one sample; tensors that are missing count nothing.
        fetched: Tensors that are kept until the batch is done.
        max_memory: Bytes.

    Returns:
        At least 1.
    """
    kept = set(fetched)
    one = live_bytes(proto, shapes, kept) + sum(_bytes(shapes, name) for name in kept)
    return max(1, max_memory // 2 // max(1, one))


def live_bytes(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], kept: Iterable[str] = ()) -> int:
    """Most bytes of activations that are alive at the same time, each freed after its last reader; without ``kept``."""
    last = {name: index for index, node in enumerate(proto.graph.node) for name in node.input}
    ignored = set(kept) | {tensor.name for tensor in proto.graph.initializer}
    alive = most = sum(_bytes(shapes, value.name) for value in proto.graph.input if value.name not in ignored)
    for index, node in enumerate(proto.graph.node):
        alive += sum(_bytes(shapes, name) for name in node.output if name not in ignored)
        most = max(most, alive)
        dead = {name for name in node.input if last[name] == index and name not in ignored}
        alive -= sum(_bytes(shapes, name) for name in dead)
        alive -= sum(_bytes(shapes, name) for name in node.output if name not in last and name not in ignored)
    return most


def _bytes(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    return FLOAT_BYTES * int(np.prod(shapes[name], dtype=np.int64)) if name in shapes else 0
