"""How codes are stored: the opset that their types need, what a target can read, and 4-bit weights as INT4."""

from __future__ import annotations

import os
from typing import Any

import onnx

from .config import WIDE_OPSET, QuantConfig
from .errors import ModelError, TargetError
from .graph import Model, load_model
from .graph.int4 import Packed, pack_int4
from .placement import Plan
from .targets import Target

NARROW_BITS = 4
_GEMM_NOTE = (
    "from version 1.25 ONNX Runtime rounds what a Gemm reads to 8 bits unless the session option "
    '"session.qdq_matmulnbits_accuracy_level" is "1"'
)


def may_widen(config: QuantConfig, target: Target, opset: int = WIDE_OPSET) -> bool:
    """Whether ``max_drop`` may raise nodes to 16-bit activations: it is set, and the target has kernels for them.

    Args:
        config: Settings.
        target: Rules of the runtime.
        opset: Opset of the model.
    """
    able = target.int16_activations == "native" and target.opsets[1] >= WIDE_OPSET and opset >= WIDE_OPSET
    return able and config.max_drop is not None and config.activation_bits <= 8


def load_for(model: str | os.PathLike[str] | bytes | onnx.ModelProto, config: QuantConfig, target: Target) -> Model:
    """Load a float model with the opset that the result needs, see ``QuantConfig.needed_opset`` and ``may_widen``.

    Raises:
        ModelError: The file is unusable, or its opset cannot be raised as far as the widths asked for need it; where
            only ``max_drop`` could use a higher one, it does without.
    """
    opset = max(config.needed_opset, WIDE_OPSET) if may_widen(config, target) else config.needed_opset
    loaded = load_model(model, opset)
    if config.is_wide and loaded.opset < WIDE_OPSET:
        raise ModelError(
            f"{loaded.path}: opset {loaded.opset} cannot be raised to {WIDE_OPSET}, which {_asked(config)} needs; "
            f"export the model with opset {WIDE_OPSET}"
        )
    return loaded


def check_storage(target: Target, config: QuantConfig) -> None:
    """Refuse types of codes that ``target`` cannot read.

    Raises:
        TargetError: Names the target and the setting.
    """
    if config.is_wide and target.opsets[1] < WIDE_OPSET:
        raise TargetError(
            f"target {target.name} takes opsets up to {target.opsets[1]}, {_asked(config)} needs {WIDE_OPSET}"
        )
    if config.activation_bits > 8 and target.int16_activations == "none":
        raise TargetError(f"target {target.name} takes no activations of 16 bits; choose bits w8a8, or another target")
    if config.pack_int4 and not target.int4_weights:
        raise TargetError(f"target {target.name} cannot read INT4 weights; leave out pack_int4")


def _asked(config: QuantConfig) -> str:
    return "pack_int4" if config.pack_int4 else f"bits {config.bits}"


def pack_weights(quantized: onnx.ModelProto, model: Model, plan: Plan) -> Packed:
    """Store the plan's weights of 4 bits or fewer as INT4; edits ``quantized``.

    Args:
        quantized: The model that was made from ``plan``.
        model: Float model that the plan was made for.
        plan: Says which weights are that narrow.
    """
    narrow = {name for name, spec in plan.weights.items() if spec.bits <= NARROW_BITS}
    int8 = set(plan.int8_nodes)
    layers = {
        node.name
        for node in model.graph.nodes
        if node.name in int8 and len(node.inputs) > 1 and node.inputs[1].name in narrow
    }
    return pack_int4(quantized, layers)


def describe_storage(config: QuantConfig, target: Target, packed: Packed | None) -> tuple[dict[str, Any], list[str]]:
    """What was stored how: (plain values for the report's sizes, notes for its findings)."""
    notes = []
    if config.is_wide and config.opset < WIDE_OPSET:
        notes.append(f"opset: model: raised to {WIDE_OPSET}, which {_asked(config)} needs (asked for: {config.opset})")
    elif may_widen(config, target) and config.opset < WIDE_OPSET:
        notes.append(f"opset: model: raised to {WIDE_OPSET}, for max_drop may raise activations to 16 bits")
    if config.activation_bits > 8 and target.int16_activations == "float":
        whose = "ONNX Runtime's CPU" if target.cpu_kernels else f"target {target.name}"
        notes.append(f"int16-activations: model: not accelerated: {whose} has no 16-bit kernels, layers run in float")
        if target.cpu_kernels:
            notes.append(f"int16-activations: model: {_GEMM_NOTE}")
    if config.is_auto and packed is None:
        notes.append("weight-widths: model: 4-bit weights in 8-bit containers make no file smaller; add pack_int4")
    if packed is None:
        return {}, notes
    saved = packed.bytes_before - packed.bytes_after
    stored = f"{len(packed.weights)} weights are stored as INT4, {saved} bytes less"
    note = "; ONNX Runtime's CPU has no kernels for them: their layers run in float" if target.cpu_kernels else ""
    notes.append(f"int4-weights: model: {stored}{note}")
    return {"int4_weights": len(packed.weights), "int4_saved_bytes": saved}, notes
