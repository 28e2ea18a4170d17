"""Whether this processor's int8 kernels saturate: found by running one, so that no list of processors is needed."""

from __future__ import annotations

import functools

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .session import make_session

_SIZE = 64


@functools.cache
def sums_saturate() -> bool:
    """Whether a default session computes u8 x s8 sums in 16 bits, as x86 without VNNI does (255 * 127 * 2 > 32767)."""
    codes = {"x": np.full((1, _SIZE), 255, np.uint8)}
    sums = make_session(_product(), threads=1, exact_sums=False).run(codes)["sums"]
    return bool((sums != 255 * 127 * _SIZE).any())


def _product() -> onnx.ModelProto:
    """MatMulInteger of the largest codes."""
    weight = numpy_helper.from_array(np.full((_SIZE, _SIZE), 127, np.int8), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "weight"], ["sums"])],
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, _SIZE])],
        [helper.make_tensor_value_info("sums", TensorProto.INT32, [1, _SIZE])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
