"""The outcome of placement: a plain, frozen description of where Q/DQ pairs go."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from ..numerics import LogCodes, QuantSpec


@dataclass(frozen=True)
class BiasSpec:
    """A bias stored as int32 codes, with ``scale = activation scale * weight scale`` and zero point 0.

    Args:
        tensor: Name of the float bias.
        activation: Name of the activation that its node reads.
        weight: Name of the weight that its node reads.
        node: The node that adds it: the weighted node itself, or the Add behind a MatMul.
    """

    tensor: str
    activation: str
    weight: str
    node: str


@dataclass(frozen=True)
class Conversion:
    """Codes of another width for an activation: it is quantized once more, from what it stands for.

    Args:
        tensor: The activation.
        readers: Names of the nodes that read the other codes.
    """

    tensor: str
    readers: tuple[str, ...]


@dataclass(frozen=True)
class FullMode:
    """What mode full does that a recipe decides.

    Args:
        softmax: Logarithmic codes for the outputs of softmax, emulated in float; None gives them uniform ones.
        norm_channels: Whether the input of a LayerNormalization that computes in float has a scale per channel.
    """

    softmax: LogCodes | None = None
    norm_channels: bool = False


@dataclass(frozen=True)
class Plan:
    """Where Q/DQ pairs go.

    An activation made by an int8, carried or paired node is read through its Q/DQ pair by everybody; one made by any
    other node (or a graph input) by int8, carried and paired nodes only.

    Args:
        target: Name of the target that the plan was made for.
        int8_nodes: Nodes that run in int8, absorbed ones included, in graph order.
        carried_nodes: Nodes that move int8 codes; their output has the scale of their input.
        float_nodes: Every other node, with the reason.
        activations: Quantized activation tensors, converted ones too.
        weights: Quantized weights of int8 nodes; ``axis`` is the output channel's, None for one scale.
        biases: Biases of int8 nodes, keyed by the weighted node's name.
        constants: Constant operands of int8 additions, products and concatenations; see ``constant_spec``.
        tied: Activation -> the activation whose scale and zero point it shares (always one that is not tied itself).
        absorbed: Relu, Clip and bias Add nodes that are part of the int8 node before them, with that node's name;
            the tensor between the two is not quantized.
        paired: Float nodes (also in ``float_nodes``) of mode full: what they read and write is quantized, and they
            compute in float.
        fixed: Activation -> low and high, where they are known without data.
        log_codes: Softmax output (also in ``activations``) -> the logarithmic codes that it has instead, emulated.
        wide_nodes: Nodes with 16-bit codes, each with the reason.
        conversions: Activation (no tensor of the graph) -> what it is converted from, and who reads it instead.
        fold_clip: Whether an absorbed Relu or Clip becomes limits of the codes, where these have no more than 8 bits
            (else it stays in front of Q).
        mismatched_pairs: Whether a DQ may have another scale than its Q, which lets products fold into scales.
        shield_float: Whether a float node between DQ and Q is kept from being run in int8 by the runtime.
        as_convolution: Int8 Gemms that are written as 1x1 convolutions on channels last.
        as_gather: Carried Resizes of mode nearest that are written as Gathers on channels last.
    """

    target: str
    int8_nodes: tuple[str, ...]
    carried_nodes: tuple[str, ...]
    float_nodes: Mapping[str, str]
    activations: Mapping[str, QuantSpec]
    weights: Mapping[str, QuantSpec]
    biases: Mapping[str, BiasSpec]
    constants: Mapping[str, QuantSpec] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    absorbed: Mapping[str, str] = field(default_factory=dict)
    paired: tuple[str, ...] = ()
    fixed: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    log_codes: Mapping[str, LogCodes] = field(default_factory=dict)
    wide_nodes: Mapping[str, str] = field(default_factory=dict)
    conversions: Mapping[str, Conversion] = field(default_factory=dict)
    fold_clip: bool = True
    shield_float: bool = False
    mismatched_pairs: bool = False
    as_convolution: frozenset[str] = frozenset()
    as_gather: frozenset[str] = frozenset()

    @property
    def on_codes(self) -> frozenset[str]:
        """Names of the nodes that read and write quantized activations."""
        return frozenset((*self.int8_nodes, *self.carried_nodes, *self.paired))

    def source_of(self, tensor: str) -> str:
        """Name of the activation that carries the scale of ``tensor``: itself unless it is tied."""
        return self.tied.get(tensor, tensor)

    def values_of(self, activation: str) -> str:
        """Name of the tensor of the float graph whose values ``activation`` has: itself unless it is converted."""
        return self.conversions[activation].tensor if activation in self.conversions else activation

    def constant_spec(self, constant: str, node: str) -> QuantSpec:
        """Spec of a constant operand of ``node``: as wide as its other operands."""
        spec = self.constants[constant]
        return replace(spec, bits=max(spec.bits, 16)) if node in self.wide_nodes else spec

    def with_weight_bits(self, weights: Collection[str], bits: int) -> Plan:
        """The plan with other widths of these weights; names that it does not quantize are left out."""
        changed = {name: replace(spec, bits=bits) for name, spec in self.weights.items() if name in weights}
        return replace(self, weights={**self.weights, **changed})
