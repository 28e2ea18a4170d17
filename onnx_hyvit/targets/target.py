"""What a target file says, as frozen and validated dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..checked import check_field_types
from ..errors import TargetError
from ..numerics import QuantSpec

DTYPES = ("uint8", "int8")
SCHEMES = ("asymmetric", "symmetric")
GRANULARITIES = ("per_channel", "per_tensor")
RESIDUALS = ("auto", "float", "int8")
MATMUL_OUTPUTS = ("int8", "float")
WIDE_ACTIVATIONS = ("none", "float", "native")


@dataclass(frozen=True)
class TensorRule:
    """How one kind of tensor is stored.

    Args:
        dtype: Container, ``uint8`` or ``int8``.
        scheme: ``asymmetric`` or ``symmetric``.
        bits: Widest code that the kernels add up without saturating, 2 to 8.
        granularity: ``per_channel`` (one scale per output channel) or ``per_tensor``.
    """

    dtype: str
    scheme: str
    bits: int = 8
    granularity: str = "per_tensor"

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("scheme", self.scheme, SCHEMES)
        _one_of("granularity", self.granularity, GRANULARITIES)
        check_field_types(self, TargetError)
        if not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise TargetError(f"bits must be 2 to 8, found {self.bits!r}")

    def spec(self, bits: int | None = None, axis: int | None = None, narrow: bool = False) -> QuantSpec:
        """The ``QuantSpec`` of a tensor: ``bits`` asked for, but never more than the rule's."""
        signed, symmetric = self.dtype == "int8", self.scheme == "symmetric"
        return QuantSpec(
            bits=min(bits or self.bits, self.bits),
            signed=signed,
            symmetric=symmetric,
            axis=axis if self.granularity == "per_channel" else None,
            narrow=narrow and signed and symmetric,
        )


@dataclass(frozen=True)
class OpRule:
    """Under which conditions an operator may run in int8.

    Args:
        min_channels: Least number of channels (the larger of input and output) for which int8 pays.
        depthwise: Whether a grouped convolution with one channel per group may be int8.
        depthwise_block: Channels that the int8 depthwise kernel works on at once; it is slow for other numbers.
        unblocked_taps: Most kernel elements of an int8 depthwise convolution without whole blocks of channels.
        grouped: Whether any other grouped convolution may be int8.
        per_channel: Whether its weight may have a scale per channel, where the target has them.
        attributes: Attribute values that the node must have; a missing attribute counts as its ONNX default given here.
    """

    min_channels: int = 1
    depthwise: bool = True
    depthwise_block: int = 1
    unblocked_taps: int = 9
    grouped: bool = True
    per_channel: bool = True
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_field_types(self, TargetError)

    def refuses_attributes(self, attributes: Mapping[str, Any]) -> str | None:
        """Reason why a node with ``attributes`` is outside the rule, or None."""
        for name, wanted in self.attributes.items():
            found = attributes.get(name, _ATTRIBUTE_DEFAULTS.get(name))
            if found != wanted:
                return f"{name}={found!r}, int8 needs {wanted!r}"
        return None


_ATTRIBUTE_DEFAULTS = {"mode": "nearest", "auto_pad": "NOTSET"}


@dataclass(frozen=True)
class Target:
    """A runtime (and CPU family) and the int8 graph that it wants.

    Args:
        name: Name on the command line.
        description: One line.
        activation: Container and scheme of activations.
        weight: Container, scheme, width and granularity of weights.
        int8: Operators with weights that have int8 kernels, with conditions.
        glue: Operators without weights that have int8 kernels; int8 when their neighbours are.
        carried: Operators that only move values, run on int8 codes with the same scale on both sides.
        float: Operators that must stay float, each with the reason.
        full: Operators that mode full quantizes, too, whatever makes their operands: on the kernel that ``int8`` or
            ``glue`` names, else computed in float between pairs.
        residual: Residual additions: ``auto``, ``float`` or ``int8``.
        matmul_output: What a Gemm or MatMul writes when only float nodes read it: ``float`` (the kernel scales its
            int32 sums itself) or ``int8``.
        fold_clip: Turn a Relu or Clip after an int8 node into limits of its codes; else the node stays in front of Q.
        shield_float: Put a node that changes nothing (a Sum of one tensor) between a float node and the Q behind it
            where the runtime would else run it in int8 against the plan.
        mismatched_pairs: Whether the runtime accepts a Q per channel with a DQ per tensor.
        float_bias: Keep biases float: the runtime refuses int32 ones.
        fixed_shapes: Whether the runtime refuses inputs with free dimensions.
        int4_weights: Whether the runtime reads weights of INT4 beside quantized activations.
        int16_activations: What becomes of activations of 16 bits: ``native`` kernels, ``float`` ones behind a
            DequantizeLinear, or ``none``: the runtime refuses them.
        cpu_kernels: Whether the kernels of ONNX Runtime's CPU provider are the ones that will run; else what the audit
            says about them is no finding.
        session: Session config entries with which ONNX Runtime optimises the graph on any machine as it does on a
            processor of this target.
        opsets: Lowest and highest opset that the runtime takes.
        profile: Name of the profile of kernels that ships for it (see ``onnx_hyvit.costs``), None without one.
    """

    name: str
    description: str
    activation: TensorRule
    weight: TensorRule
    int8: Mapping[str, OpRule]
    glue: Mapping[str, OpRule]
    carried: Mapping[str, OpRule]
    float: Mapping[str, str]
    full: Mapping[str, OpRule] = field(default_factory=dict)
    residual: str = "auto"
    matmul_output: str = "float"
    fold_clip: bool = True
    shield_float: bool = False
    mismatched_pairs: bool = False
    float_bias: bool = False
    fixed_shapes: bool = False
    int4_weights: bool = False
    int16_activations: str = "none"
    cpu_kernels: bool = True
    session: Mapping[str, str] = field(default_factory=dict)
    opsets: tuple[int, int] = (13, 23)
    profile: str | None = None

    def __post_init__(self) -> None:
        check_field_types(self, TargetError)
        _one_of("residual", self.residual, RESIDUALS)
        _one_of("matmul_output", self.matmul_output, MATMUL_OUTPUTS)
        _one_of("int16_activations", self.int16_activations, WIDE_ACTIVATIONS)
        if self.weight.dtype == "int8" and self.weight.scheme != "symmetric":
            raise TargetError("int8 weights must be symmetric: no kernel takes a weight zero point per channel")
        groups = {
            "int8": set(self.int8),
            "glue": set(self.glue),
            "carried": set(self.carried),
            "float": set(self.float),
        }
        seen: dict[str, str] = {}
        for group, ops in groups.items():
            for op in sorted(ops):
                if op in seen:
                    raise TargetError(f"operator {op} is listed under both {seen[op]} and {group}")
                seen[op] = group
        if not self.opsets[0] <= self.opsets[1]:
            raise TargetError(f"opsets {list(self.opsets)} must be [lowest, highest]")

    def with_small_weights(self) -> Target:
        """The target without the conditions that are about speed alone: whatever has a kernel may be int8."""
        rules = {op: replace(rule, min_channels=1, depthwise_block=1) for op, rule in self.int8.items()}
        return replace(self, int8=rules)

    def activation_spec(self, bits: int | None = None) -> QuantSpec:
        """Spec of an activation: one scale for the tensor; above 8 bits the rule's own limit does not count."""
        spec = self.activation.spec(bits)
        return replace(spec, bits=bits) if bits is not None and bits > 8 else spec

    @property
    def activation_dtypes(self) -> tuple[str, ...]:
        """Types of activation codes that it takes."""
        dtype = self.activation.dtype
        return (dtype,) if self.int16_activations == "none" else (dtype, dtype.replace("8", "16"))

    def weight_spec(self, bits: int | None = None, axis: int | None = None) -> QuantSpec:
        """Spec of a weight whose output channels lie on ``axis``; None asks for one scale."""
        return self.weight.spec(bits, axis, narrow=True)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise TargetError(f"{name} {value!r} is unknown; expected one of {', '.join(allowed)}")
