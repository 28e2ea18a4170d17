"""Where the VJP rules register themselves, and what a rule is.

A rule gets the tape, the forward node and the gradients of its outputs, emits ONNX nodes, and returns the gradients of
its inputs: ``grad_x = J^T grad_y``. Every gradient has the shape of its tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx

if TYPE_CHECKING:
    from .tape import Tape

Gradients = Sequence["str | None"]
Rule = Callable[["Tape", "ForwardNode", Gradients], Gradients]

_RULES: dict[str, Rule] = {}

STANDARD_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})

# Operators whose derivative is zero wherever it exists, or whose outputs are not real numbers.
ZERO_GRADIENT = frozenset(
    [
        "And",
        "ArgMax",
        "ArgMin",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "Ceil",
        "Constant",
        "ConstantOfShape",
        "Equal",
        "EyeLike",
        "Floor",
        "Greater",
        "GreaterOrEqual",
        "IsInf",
        "IsNaN",
        "Less",
        "LessOrEqual",
        "Multinomial",
        "NonMaxSuppression",
        "NonZero",
        "Not",
        "OneHot",
        "Or",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Range",
        "Round",
        "Shape",
        "Sign",
        "Size",
        "Xor",
    ]
)


class NoRule(Exception):
    """A rule does not cover this node (an attribute, or an operand that varies); the reason is the message."""


@dataclass(frozen=True)
class ForwardNode:
    """A node of the forward graph, as the rules see it.

    Args:
        op: Operator name.
        name: Node name, for messages.
        inputs: Input tensors; ``""`` where an optional one is absent.
        outputs: Output tensors; ``""`` where absent.
        attrs: Attributes as Python values (strings decoded).
        needs: For each input, whether its gradient is wanted; a rule may skip the others.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, Any]
    needs: tuple[bool, ...]

    def input(self, index: int) -> str:
        """Name of input ``index``, ``""`` when absent."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def need(self, index: int) -> bool:
        """Whether the gradient of input ``index`` is wanted."""
        return index < len(self.needs) and self.needs[index]


def read_node(proto: onnx.NodeProto, needs: Sequence[bool]) -> ForwardNode:
    """View of a ``NodeProto`` with its attributes decoded."""
    attrs = {attribute.name: _decode(onnx.helper.get_attribute_value(attribute)) for attribute in proto.attribute}
    return ForwardNode(
        proto.op_type, proto.name or proto.output[0], tuple(proto.input), tuple(proto.output), attrs, tuple(needs)
    )


def _decode(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value


def vjp(*ops: str) -> Callable[[Rule], Rule]:
    """Register a rule for the given operators."""

    def register(rule: Rule) -> Rule:
        for op in ops:
            assert op not in _RULES, f"two VJP rules for {op}"
            _RULES[op] = rule
        return rule

    return register


def rule_of(node: onnx.NodeProto) -> Rule | None:
    """The rule of ``node``'s operator, or None."""
    return _RULES.get(node.op_type) if node.domain in STANDARD_DOMAINS else None


def supported_ops() -> frozenset[str]:
    """Operators that have a rule."""
    return frozenset(_RULES)
