"""Operators that read codes of one width and write codes of another: kernels take operands of one type.

Runtimes take an operator for a quantized one where all that it reads is dequantized and all that it makes is quantized.
Any other runs in float, whatever the widths around it; so does a layer with float weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from ..graph.lookup import Lookup
from .breach import Breach
from .target import Target

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})
_ADVICE = (
    "convert its operands first (DequantizeLinear of the one width, then QuantizeLinear of the other), or let it be "
    "where it is meant to run in float"
)


def check_width(node: onnx.NodeProto, view: Lookup, target: Target) -> Iterator[Breach]:
    """The breach of a quantized operator whose activations have several widths.

    Args:
        node: Any node.
        view: Tables of its graph.
        target: Rules of the runtime.
    """
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") or not node.input:
        return
    if node.op_type not in {*target.int8, *target.glue, *target.carried}:
        return
    read, written = _read(node, view, target), _written(node, view)
    if not read or not written or None in read or None in written or len(read | written) == 1:
        return
    widths = [" and ".join(sorted(filter(None, each))) for each in (read, written)]
    problem = f"{node.op_type} reads {widths[0]} and writes {widths[1]}, {target.name} takes one type"
    yield Breach(node.name, problem, _ADVICE)


def _read(node: onnx.NodeProto, view: Lookup, target: Target) -> set[str | None]:
    """Types of the codes that its activations have; None for one that is float, or a weight that is."""
    found: set[str | None] = set()
    for place, name in enumerate(node.input):
        maker = view.makers.get(name)
        dequantized = maker is not None and maker.op_type == "DequantizeLinear"
        is_parameter = place > 0 and (node.op_type in _LAYERS or _is_fixed(name, view))
        if is_parameter and dequantized and node.op_type not in target.glue:
            continue
        if is_parameter and (place > 1 or node.op_type in target.carried):
            continue  # a float bias, a shape, limits
        if name:
            found.add(_type(maker, view) if maker is not None and dequantized else None)
    return found


def _is_fixed(name: str, view: Lookup) -> bool:
    """Whether a tensor is a constant, or dequantized from one."""
    maker = view.makers.get(name)
    stored = maker is not None and maker.op_type == "DequantizeLinear" and maker.input[0] in view.constants
    return stored or name in view.constants


def _written(node: onnx.NodeProto, view: Lookup) -> set[str | None]:
    """Types of the codes that its outputs become, behind a bias and a Relu or Clip; None for a float reader."""
    found: set[str | None] = set()
    stack = [name for name in node.output if name]
    while stack:
        name = stack.pop()
        if name in view.outputs:
            found.add(None)
        for reader in view.readers.get(name, []):
            if reader.op_type == "QuantizeLinear":
                found.add(_type(reader, view))
            elif reader.op_type in ("Relu", "Clip") or (node.op_type == "MatMul" and _adds_constant(reader, view)):
                stack.extend(reader.output)
            else:
                found.add(None)
    return found


def _adds_constant(node: onnx.NodeProto, view: Lookup) -> bool:
    return node.op_type == "Add" and any(_is_fixed(name, view) for name in node.input)


def _type(node: onnx.NodeProto, view: Lookup) -> str:
    """Type of the codes of a Q or DQ, by its zero point."""
    zero_point = view.operand(node, 2)
    return "uint8" if zero_point is None else str(zero_point.dtype)
