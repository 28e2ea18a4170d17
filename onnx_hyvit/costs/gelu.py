"""What a GELU between int8 layers costs in float, and in its other form."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_graphsurgeon as gs

from .borders import quantize_us
from .kernels import Shape, Work, kernel_name
from .profile import Profile
from .units import elements


def gelu_saving(node: gs.Node, shapes: Mapping[str, Shape], profile: Profile) -> float | None:
    """Microseconds that ``x * sigmoid(c x)`` on codes saves against DequantizeLinear, Gelu, QuantizeLinear.

    Args:
        node: The Gelu.
        shapes: Concrete shapes.
        profile: Costs.

    Returns:
        The saving, below 0 where there is none; None when a shape or a kernel is unknown.
    """
    size = elements(node.outputs[0], shapes)
    one, two = Work(0, size, size), Work(0, 2 * size, size)
    wanted = (("Gelu", False, one), ("DequantizeLinear", False, one), ("Sigmoid", True, one), ("Mul", True, two))
    found = [profile.us(kernel_name(op, int8), work) for op, int8, work in wanted]
    if not size or any(us is None for us in found):
        return None
    gelu, dequantize, sigmoid, product = (us or 0.0 for us in found)
    return gelu + dequantize + quantize_us(node.outputs[0], shapes, profile) - sigmoid - product
