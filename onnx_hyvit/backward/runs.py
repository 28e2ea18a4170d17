"""Calibration batches cut into runs of the batch that a model's shapes were observed with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx

Feeds = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]


def batch_of(proto: onnx.ModelProto, shapes: Shapes) -> tuple[int, frozenset[str]]:
    """Samples in one run, and the inputs that have them along their first axis; others are the same in every run.

    Args:
        proto: The model; a first axis without a fixed size is a batch axis, and so is that of the first input when all
            sizes are fixed, with those as long as it.
        shapes: Concrete shapes of the inputs.
    """
    shaped = [value for value in proto.graph.input if shapes.get(value.name) and value.type.tensor_type.shape.dim]
    free = [value for value in shaped if not value.type.tensor_type.shape.dim[0].HasField("dim_value")]
    batch = next((shapes[value.name][0] for value in free or shaped), 1)
    members = free or [value for value in shaped if shapes[value.name][0] == batch]
    return batch, frozenset(value.name for value in members)


def runs_of(proto: onnx.ModelProto, shapes: Shapes, batches: Iterable[Feeds]) -> Iterator[dict[str, np.ndarray]]:
    """Pieces of exactly one run; an incomplete last piece of a batch is left out, as are other sizes."""
    size, along = batch_of(proto, shapes)
    for feeds in batches:
        count = min((len(array) for name, array in feeds.items() if name in along), default=size)
        if any(array.shape[1:] != tuple(shapes[name][1:]) for name, array in feeds.items() if name in shapes):
            continue
        for start in range(0, count - size + 1, size):
            yield {name: array[start : start + size] if name in along else array for name, array in feeds.items()}
