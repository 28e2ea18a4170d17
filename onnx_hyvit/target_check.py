"""Check an already quantized model for a target: its rules, the patterns that fail, and the kernels that really run."""

from __future__ import annotations

import os
from typing import Any

import onnx

from .config import AUTO_TARGET
from .errors import ModelError
from .graph.io import read_proto
from .kernel_audit import Audit, audit
from .processor import find_target
from .targets import Target, check_target, load_target
from .validate import Finding, find_patterns

_AUDIT_ADVICE = {
    "float_int8_weights": "put Q/DQ pairs on its inputs and its output, and an int32 bias; `quantize` does",
    "dequantized_weights": "put Q/DQ pairs on the inputs and the output of its reader, or store it as float",
    "bad_kernels": "keep this operator float: leave out the Q/DQ pair behind it",
    "orphan_pairs": "leave the pair out: it costs time and accuracy",
}
_PATTERN_ADVICE = "quantize the float model again; this pattern fails or is slow in ONNX Runtime"


def check(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto, target: str | os.PathLike[str] = AUTO_TARGET
) -> dict[str, Any]:
    """What a target would refuse, compute wrongly or run badly in a quantized model, and what to do.

    Args:
        model: Path, bytes or ModelProto of a QDQ model.
        target: Name of a target or path of a target file; ``auto`` is the one for this processor.

    Returns:
        Plain values (JSON): ``model``, ``target``, and ``problems``, each with ``node``, ``problem`` and ``advice``.

    Raises:
        ModelError: The model cannot be read or loaded, or holds no Q/DQ pair.
        TargetError: There is no such target.
    """
    rules = load_target(find_target(target))
    proto, name = read_proto(model)
    if not any(node.op_type == "DequantizeLinear" for node in proto.graph.node):
        raise ModelError(f"{name}: holds no Q/DQ pair, so there is nothing to check; quantize it first")
    problems = [
        {"node": breach.node, "problem": breach.problem, "advice": breach.advice}
        for breach in check_target(proto, rules)
    ]
    problems += [
        {"node": finding.node, "problem": finding.message, "advice": _PATTERN_ADVICE}
        for finding in find_patterns(proto)
        if _matters(finding, rules)
    ]
    if rules.cpu_kernels:
        problems += _kernel_problems(audit(proto, config=rules.session))
    return {"model": name, "target": rules.name, "problems": problems}


def _matters(finding: Finding, target: Target) -> bool:
    return finding.fatal or (target.cpu_kernels and not (finding.kind == "float-bias" and target.float_bias))


def _kernel_problems(found: Audit) -> list[dict[str, str]]:
    return [
        {"node": kernel.node, "problem": f"{kernel.op}: {kernel.detail}", "advice": advice}
        for key, advice in _AUDIT_ADVICE.items()
        for kernel in getattr(found, key)
    ]


def audit_for(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto, target: str | None = None, *, threads: int = 1
) -> Audit:
    """``audit`` with the session of a target, so that its processor need not be at hand; None is this processor."""
    return audit(model, threads=threads, config=load_target(find_target(target)).session if target else None)
