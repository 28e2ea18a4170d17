"""Infer the shapes that earlier rewrites made known.

Before
    tensors without a shape, or with generated symbols, behind rewritten nodes
After
    the same graph, with ONNX shape inference (data propagation on) written into its tensors
Conditions
    1. only tensors inside the graph change; inputs and outputs keep what the user declared;
    2. a known shape is never replaced by a less known one.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from ..graph.io import Model, infer_shapes, model_to_proto
from ..graph.pattern import NearMiss
from .infrastructure import GraphPass

LARGE = 1024


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Write inferred shapes and element types into the graph; returns how many tensors learned something."""
    proto = model_to_proto(model)
    _drop_generated(proto)
    inferred = infer_shapes(proto)
    known = {info.name: info for info in inferred.graph.value_info}
    protected = {tensor.name for tensor in [*model.graph.inputs, *model.graph.outputs]}
    count = 0
    for name, tensor in model.graph.tensors().items():
        if name in known and name not in protected and isinstance(tensor, gs.Variable):
            count += _update(tensor, known[name])
    return count


def _drop_generated(proto: onnx.ModelProto) -> None:
    """Forget shapes with unknown or generated dimensions, so that inference starts them afresh."""
    kept = [info for info in proto.graph.value_info if _certain(info)]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)


def _certain(info: onnx.ValueInfoProto) -> bool:
    tensor = info.type.tensor_type
    return tensor.HasField("shape") and all(
        dim.HasField("dim_value") or (dim.dim_param and not dim.dim_param.startswith("unk__"))
        for dim in tensor.shape.dim
    )


def _update(tensor: gs.Variable, info: onnx.ValueInfoProto) -> int:
    kind = info.type.tensor_type
    if not kind.HasField("shape"):
        return 0
    shape = [
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or f"unk__{tensor.name}_{index}")
        for index, dim in enumerate(kind.shape.dim)
    ]
    changed = 0
    if tensor.dtype is None and kind.elem_type:
        tensor.dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        changed = 1
    if tensor.shape is None or _known(shape) > _known(tensor.shape):
        tensor.shape = shape
        changed = 1
    return changed


def _known(shape: object) -> int:
    return sum(isinstance(dim, int) and dim >= 0 for dim in shape)  # type: ignore[attr-defined]


PASS = GraphPass("infer_shapes", apply)
