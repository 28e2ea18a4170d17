"""Write the zero points that a Q/DQ model leaves out.

Before
    DequantizeLinear(codes, scale)
After
    DequantizeLinear(codes, scale, zero_point = 0 of the type of the codes and the shape of the scale)
Conditions
    the type of the codes and the shape of the scale are known.
The operator says that a missing zero point is 0, so nothing changes; yet ONNX Runtime 1.32 cannot save a model in the
.ort format with runtime optimizations when one is missing ("sum of input arg count is not equal to size of input
defs").
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


def add_zero_points(proto: onnx.ModelProto) -> int:
    """Add the missing zero points of the main graph, in place; returns to how many nodes.

    Args:
        proto: A model with inferred shapes and types.
    """
    graph = proto.graph
    types = {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in graph.initializer}
    for value in [*graph.input, *graph.output, *graph.value_info]:
        tensor = value.type.tensor_type
        types.setdefault(value.name, (tensor.elem_type, tuple(dim.dim_value for dim in tensor.shape.dim)))
    names = set(types) | {name for node in graph.node for name in (*node.input, *node.output)}
    made: dict[tuple[int, tuple[int, ...]], str] = {}
    count = 0
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.domain or any(node.input[2:3]):
            continue
        codes = node.input[0] if node.op_type == "DequantizeLinear" else node.output[0]
        if codes not in types or node.input[1] not in types or not types[codes][0]:
            continue
        key = (types[codes][0], types[node.input[1]][1])
        if key not in made:
            made[key] = _new_constant(graph, key, names)
        del node.input[2:]
        node.input.append(made[key])
        count += 1
    return count


def _new_constant(graph: onnx.GraphProto, key: tuple[int, tuple[int, ...]], names: set[str]) -> str:
    kind, shape = key
    stem = "_".join(["zero_point", onnx.TensorProto.DataType.Name(kind).lower(), *map(str, shape)])
    name = next(text for index in range(len(names) + 1) if (text := f"{stem}_{index}" if index else stem) not in names)
    names.add(name)
    graph.initializer.append(numpy_helper.from_array(np.zeros(shape, helper.tensor_dtype_to_np_dtype(kind)), name))
    return name
