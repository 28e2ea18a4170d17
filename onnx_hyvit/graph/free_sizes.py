"""Sizes that exporters write for "unknown" in their own ways, made unknown as ONNX has it."""

from __future__ import annotations

import onnx

ANY = "?"


def free_unknown_sizes(proto: onnx.ModelProto) -> None:
    """Clear dimensions that say a size is unknown: ``-1`` and ``0`` of inputs and outputs, ``-1`` inside, names ``?``.

    Paddle's exporters write -1 for a free batch and one ``?`` for every free size, which would make height and width
    the same; older Keras exports write 0.

    Args:
        proto: Edited in place.
    """
    graph = proto.graph
    for values, least in ((graph.input, 1), (graph.output, 1), (graph.value_info, 0)):
        for value in values:
            for dim in value.type.tensor_type.shape.dim:
                if (dim.HasField("dim_value") and dim.dim_value < least) or dim.dim_param == ANY:
                    dim.Clear()
