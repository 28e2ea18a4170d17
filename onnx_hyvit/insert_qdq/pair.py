"""Write one pair: QuantizeLinear, a Clip of the codes where not all of the container may be used, DequantizeLinear."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.edit import add_node, new_constant, new_variable
from ..numerics import QParams

Limits = tuple[int, int]


def add_params(graph: gs.Graph, stem: str, params: QParams) -> tuple[gs.Constant, gs.Constant]:
    """Scale and zero point as initializers ``stem_scale`` and ``stem_zero_point``."""
    return (
        new_constant(graph, f"{stem}_scale", params.scale),
        new_constant(graph, f"{stem}_zero_point", params.zero_point),
    )


def write_pair(
    graph: gs.Graph,
    stem: str,
    source: gs.Tensor,
    result: gs.Tensor,
    params: tuple[gs.Constant, gs.Constant],
    qparams: QParams,
    limits: Limits | None,
) -> None:
    """Put a pair between two tensors.

    Args:
        graph: Graph to edit.
        stem: Start of all names.
        source: What is quantized, float32.
        result: What the codes stand for, made by nothing yet.
        params: Scale and zero point of ``qparams`` as initializers.
        qparams: The same with their spec.
        limits: Smallest and largest code that may be used, where that is not the whole container.
    """
    dtype, shape = qparams.spec.dtype, source.shape
    codes = new_variable(graph, f"{stem}_QuantizeLinear_Output", dtype, shape)
    attrs = {} if qparams.spec.axis is None else {"axis": qparams.spec.axis}
    add_node(graph, "QuantizeLinear", [source, *params], [codes], stem=f"{stem}_QuantizeLinear", attrs=attrs)
    if limits is not None:
        words = zip(("min", "max"), limits, strict=True)
        bounds = [new_constant(graph, f"{stem}_code_{word}", np.array(value, dtype)) for word, value in words]
        clipped = new_variable(graph, f"{stem}_Clip_Output", dtype, shape)
        add_node(graph, "Clip", [codes, *bounds], [clipped], stem=f"{stem}_Clip")
        codes = clipped
    add_node(graph, "DequantizeLinear", [codes, *params], [result], stem=f"{stem}_DequantizeLinear", attrs=attrs)
