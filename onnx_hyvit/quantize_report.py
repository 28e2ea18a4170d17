"""What ``quantize`` tells of its result, as plain values (JSON)."""

from __future__ import annotations

from typing import Any

import onnx

from .backward import choose_loss
from .calibration import Source
from .convert import Converted
from .errors import ModelError
from .fit_model import FittedModel
from .graph import model_to_proto
from .kernel_audit import audit
from .mixed_precision import Fitted
from .placement import Plan
from .prepared import describe
from .request import Request
from .scales import Scales
from .version import __version__


def build_report(request: Request, fit: FittedModel, made: Converted, float_bytes: int) -> dict[str, Any]:
    """What was found, what was done, choices, sizes, and what stayed float and why.

    Args:
        request: Data and settings.
        fit: The prepared model with its plan and numbers.
        made: The int8 model.
        float_bytes: Size of the float file.
    """
    check, reconstructed = made.speed_check, made.scales.reconstructed
    return {
        "onnx_hyvit": __version__,
        "config": request.config.to_dict(),
        "chosen_target": request.chosen_target,
        "found": describe(fit.prepared),
        "passes": {result.name: result.count for result in fit.prepared.passes if result.count},
        "plan": _describe_plan(made.plan, made.model),
        "speed": {**fit.fitted.decision.to_dict(), "check": check.to_dict() if check else None},
        "gelus": fit.gelus.to_dict() if fit.gelus else None,
        "channel_padding": fit.padding.to_dict() if fit.padding and made.plan.int8_nodes else None,
        "granularity": fit.granularity.to_dict() if fit.granularity else None,
        "residual": fit.residual.to_dict() if fit.residual else None,
        "loss": _describe_loss(request, fit),
        "precision": _describe_precision(fit.fitted, made.scales),
        "reconstruction": reconstructed.to_dict() if reconstructed else None,
        "calibration": _describe_source(request.source),
        "audit": audit(made.model, config=request.target.session).to_dict(),
        "findings": list(made.findings),
        "size": {"float_bytes": float_bytes, "int8_bytes": made.model.ByteSize(), **made.stored},
    }


def _describe_plan(plan: Plan, model: onnx.ModelProto) -> dict[str, Any]:
    written = [node.name for node in model.graph.node if node.op_type == "Conv" and node.name in plan.as_convolution]
    return {
        "paired_nodes": list(plan.paired),
        "emulated": {name: f"{codes.describe()}, emulated" for name, codes in plan.log_codes.items()},
        "int8_nodes": len(plan.int8_nodes),
        "carried_nodes": len(plan.carried_nodes),
        "wide_nodes": dict(plan.wide_nodes),
        "converted_tensors": len(plan.conversions),
        "written_as_convolutions": written,
        "float_nodes": dict(plan.float_nodes),
    }


def _describe_loss(request: Request, fit: FittedModel) -> str | None:
    """How errors in each output count, where something weighs them; None for outputs of whole numbers."""
    try:
        return choose_loss(model_to_proto(fit.prepared.model), fit.prepared.shapes, request.config.losses).describe()
    except ModelError:
        return None


def _describe_precision(fitted: Fitted, scales: Scales) -> dict[str, Any] | None:
    """What went back to float for accuracy; what was reached only where ``scales`` are those that reached it."""
    if not fitted.summary:
        return None
    gone = () if scales is fitted.scales else ("top1", "reached")  # blocks in float only come closer
    return {key: value for key, value in fitted.summary.items() if key not in gone}


def _describe_source(source: Source) -> dict[str, Any]:
    return {"samples": len(source), "fingerprint": source.fingerprint(), "warnings": list(source.warnings)}
