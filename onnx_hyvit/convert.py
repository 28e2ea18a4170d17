"""From a fitted model to the int8 model: insert Q/DQ, time it where that was asked for, pack its weights, check it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from .channel_padding import unpadded_proto
from .fit_model import FittedModel
from .graph import model_to_proto
from .insert_qdq import insert_qdq
from .keep_fast import keep_fast
from .placement import Plan
from .request import Request, first_feed
from .runtime import ModelSource, Progress
from .scales import Scales
from .speed_check import SpeedCheck
from .storage import describe_storage, pack_weights
from .targets import check_target
from .validate import Finding, validate


@dataclass(frozen=True)
class Converted:
    """The int8 model and what was found in making it.

    Args:
        model: The QDQ model.
        plan: Where its Q/DQ pairs are.
        scales: Their numbers.
        speed_check: What timing it against the float file gave; None where that was not asked for.
        stored: How its weights are stored, plain values for the report's sizes.
        findings: What a person should know of it, a line each.
    """

    model: onnx.ModelProto
    plan: Plan
    scales: Scales = field(repr=False)
    speed_check: SpeedCheck | None
    stored: Mapping[str, Any]
    findings: tuple[str, ...]


def convert(original: ModelSource, fit: FittedModel, request: Request, progress: Progress | None = None) -> Converted:
    """Make the int8 model.

    Args:
        original: The float file, which ``verify_speed`` times.
        fit: The prepared model with its plan and numbers.
        request: Data and settings.
        progress: Called as ``progress(done, total, text)``.

    Raises:
        ModelError: The model cannot be written.
        ValidationError: It does not run, or not as its graph says.
    """
    config, model = request.config, fit.prepared.model
    plan, scales, check = fit.fitted.decision.plan, fit.fitted.scales, None
    quantized = model_to_proto(insert_qdq(model, plan, scales.qparams, scales.parameters), check=True)
    if config.verify_speed:
        rewritten = unpadded_proto(fit.prepared, fit.padding)
        made = keep_fast(original, rewritten, quantized, fit.work, fit.decide, fit.fitted, progress)
        quantized, plan, scales, check = made
    packed = pack_weights(quantized, model, plan) if config.pack_int4 else None
    stored, notes = describe_storage(config, request.target, packed)
    if config.verify and plan.int8_nodes:
        notes += [str(finding) for finding in _validate(quantized, model_to_proto(model), request)]
    return Converted(quantized, plan, scales, check, stored, tuple(notes))


def _validate(quantized: onnx.ModelProto, proto: onnx.ModelProto, request: Request) -> list[Finding]:
    """Check the finished model in the sessions of its target, then against the rules of its target."""
    target, config = request.target, request.config
    findings = validate(
        quantized,
        proto,
        first_feed(request.source),
        threads=config.threads,
        config=target.session,
        cpu_kernels=target.cpu_kernels,
    )
    known = {"float-bias"} if target.float_bias else set()
    if config.pack_int4:
        known.add("narrow-container")  # told once for all of them
    if config.mode == "full":
        known.add("orphan-pair")  # pairs around what computes in float are what was asked for
    findings = [finding for finding in findings if finding.kind not in known]
    breaches = check_target(quantized, target)
    return findings + [Finding("target", breach.node, f"{breach.problem}; {breach.advice}") for breach in breaches]
