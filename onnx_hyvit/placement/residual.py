"""Which additions may be int8: an int8 residual stream of a transformer is fast and can destroy accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

if TYPE_CHECKING:
    from .colouring import Colouring

NORMS = frozenset(
    {
        "LayerNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "LpNormalization",
    }
)
MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Gather", "Split"})


def refuse_addition(state: Colouring, node: gs.Node, operands: list[gs.Tensor], mode: str) -> str | None:
    """Reason why the addition ``node`` stays float, or None.

    An addition of two activations is a residual one. ``auto`` keeps it float when it belongs to the residual stream of
    a transformer: its sum is normalized, or one of its operands is a linear layer's output. On a trained model of the
    EdgeNeXt kind the cosine to float was 0.88 with float and 0.38 with int8 additions there.

    Args:
        state: Colours so far.
        node: The Add.
        operands: Its operands that are not constant.
        mode: ``auto``, ``float`` or ``int8``.
    """
    if mode == "int8":
        return None
    if mode == "float":
        return "residual addition, asked to stay float" if len(operands) > 1 else None
    if any(consumer.op in NORMS for consumer in consumers_behind_moves(node.outputs[0])):
        return "residual stream of a transformer: its sum is normalized"
    if len(operands) > 1 and any(_is_linear(state, tensor) for tensor in operands):
        return "residual stream of a transformer: an operand is a linear layer's output"
    return None


def consumers_behind_moves(tensor: gs.Tensor) -> Iterator[gs.Node]:
    """Nodes that read ``tensor``, directly or through nodes that only move values."""
    stack, seen = [tensor], {id(tensor)}
    while stack:
        for node in stack.pop().outputs:
            yield node
            if node.op in MOVES:
                fresh = [output for output in node.outputs if id(output) not in seen]
                seen.update(id(output) for output in fresh)
                stack.extend(fresh)


def _is_linear(state: Colouring, tensor: gs.Tensor) -> bool:
    """Whether ``tensor`` comes, through moves, from a Gemm or MatMul with weights."""
    while tensor.inputs:
        node = tensor.inputs[0]
        if node.op in MOVES:
            tensor = node.inputs[0]
            continue
        owner = state.absorbed.get(node.name, node.name)
        unit = state.weighted.get(owner)
        return unit is not None and unit.node.op in ("Gemm", "MatMul")
    return False
