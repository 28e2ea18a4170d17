"""The validator of a finished model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx

from ..errors import ModelError, ValidationError, one_line
from ..kernel_audit import Audit, audit
from ..runtime import OptimizationLevel, RuntimeFailure, make_session, sums_saturate
from .fused import compare_level, run_unfused
from .patterns import Finding, find_patterns

LEVELS: tuple[OptimizationLevel, ...] = ("basic", "extended", "all")
DRIFT = 0.1
SATURATED = 0.02  # kernels that round differently move the outputs by less


def validate(
    proto: onnx.ModelProto,
    reference: onnx.ModelProto | None = None,
    feeds: Mapping[str, np.ndarray] | None = None,
    *,
    threads: int = 2,
    config: Mapping[str, str] | None = None,
    cpu_kernels: bool = True,
) -> list[Finding]:
    """Check a quantized model before it is handed out.

    Checks, in order: ``onnx.checker`` with full shape inference; inputs and outputs as in ``reference``; no Q/DQ
    pattern that fails (``find_patterns``); ONNX Runtime loads it at every optimisation level; with ``feeds``, every
    kernel of each level agrees with the Q/DQ graph (``compare_fused``) and all outputs are finite; whether the sums of
    a default session saturate on this processor; and what the optimised graph says about speed (``audit``).

    Args:
        proto: The quantized model.
        reference: The float model that it was made from.
        feeds: One batch of inputs; without it nothing is run.
        threads: Threads of the sessions.
        config: Session config entries, such as those of a target.
        cpu_kernels: Whether what the audit finds matters; it does not for a runtime with kernels of its own.

    Returns:
        What is worth knowing but not wrong, such as a large drift between levels, where it brings the outputs further
        from those of ``reference``, or a kernel that stayed float.

    Raises:
        ValidationError: The model is invalid, fails to load or run, or a kernel is wrong; one line names it.
    """
    _check_proto(proto)
    if reference is not None:
        _check_interface(proto, reference)
    findings = find_patterns(proto)
    for finding in findings:
        if finding.fatal:
            raise ValidationError(str(finding))
    if feeds is None:
        _check_loads(proto, threads, config)
    else:
        findings += _check_levels(proto, reference, feeds, threads, config)
        findings += find_saturation(proto, feeds, threads=threads, config=config)
    return findings + (_from_audit(audit(proto, threads=threads, config=config)) if cpu_kernels else [])


def _check_proto(proto: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(proto, full_check=True)
    except ValueError as error:
        if "2GB" not in str(error) and "exceeds maximum" not in str(error):
            raise ValidationError(f"onnx.checker refuses the model: {one_line(error)}") from error
    except Exception as error:
        raise ValidationError(f"onnx.checker refuses the model: {one_line(error)}") from error


def _check_interface(proto: onnx.ModelProto, reference: onnx.ModelProto) -> None:
    constants = {tensor.name for tensor in reference.graph.initializer}
    for kind in ("input", "output"):
        wanted = [value for value in getattr(reference.graph, kind) if value.name not in constants]
        found = {value.name: value for value in getattr(proto.graph, kind)}
        for value in wanted:
            if value.name not in found:
                raise ValidationError(f"{kind} {value.name!r} of the float model is missing in the quantized one")
            if found[value.name].type.tensor_type.elem_type != value.type.tensor_type.elem_type:
                raise ValidationError(f"{kind} {value.name!r} has another type than in the float model")


def _check_finite(outputs: Mapping[str, np.ndarray]) -> None:
    for name, value in outputs.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ValidationError(f"output {name!r} of the quantized model holds NaN or Inf")


def _check_loads(proto: onnx.ModelProto, threads: int, config: Mapping[str, str] | None) -> None:
    for level in ("none", *LEVELS):
        try:
            name = f"quantized model at level {level}"
            make_session(proto, optimize=level, threads=threads, name=name, config=config)
        except RuntimeFailure as error:
            raise ValidationError(str(error)) from error


def _check_levels(
    proto: onnx.ModelProto,
    reference: onnx.ModelProto | None,
    feeds: Mapping[str, np.ndarray],
    threads: int,
    config: Mapping[str, str] | None,
) -> list[Finding]:
    """Load and run each level once, and compare its kernels and outputs with the unfused graph."""
    findings = []
    truth: Mapping[str, np.ndarray] | None = None
    try:
        plain = run_unfused(proto, feeds, threads)
    except RuntimeFailure as error:
        raise ValidationError(str(error)) from error
    outputs = [value.name for value in proto.graph.output]
    _check_finite({name: plain[name] for name in outputs})
    for level in LEVELS:
        try:
            report, found = compare_level(proto, feeds, plain, level=level, threads=threads, config=config)
        except ModelError as error:
            raise ValidationError(f"at optimisation level {level}: {error}") from error
        _check_finite(found)
        if not report.matches:
            raise ValidationError(f"at optimisation level {level}: {report.culprit}")
        if report.relative_diff <= DRIFT:
            continue
        message = f"outputs differ by {report.relative_diff:.0%} from the unfused graph"
        if reference is not None:
            truth = truth or make_session(reference, threads=threads, name="float model").run(feeds)
            further = _further(truth, plain, found)
            if further <= DRIFT:
                continue
            message += f" and are {further:.0%} further from the float model"
        findings.append(Finding("drift", f"level {level}", f"{message}, though each kernel is right"))
    return findings


def find_saturation(
    proto: onnx.ModelProto,
    feeds: Mapping[str, np.ndarray],
    *,
    threads: int = 2,
    config: Mapping[str, str] | None = None,
) -> list[Finding]:
    """What saturating sums do to the outputs in a default session on this processor; nothing where sums are exact."""
    if not sums_saturate():
        return []
    exact, found = (
        make_session(proto, threads=threads, exact_sums=choice, config=config).run(feeds) for choice in (True, False)
    )
    worst = max((_relative_difference(exact[name], found[name]) for name in exact), default=0.0)
    if worst <= SATURATED:
        return []
    message = (
        f"this processor has no VNNI: int8 sums saturate in a default session and outputs are off by {worst:.0%}; for "
        'such processors use target ort-x86-avx2, or the session option "session.x64quantprecision" = "1"'
    )
    return [Finding("saturation", "model", message)]


def _further(
    truth: Mapping[str, np.ndarray], plain: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
) -> float:
    """How much larger the error of ``found`` is than that of ``plain``, of the output where that is most.

    A model that amplifies one code of difference amplifies its rounding as much: the outputs differ, and are equally
    far from those of the float model.
    """
    errors = [[_relative_difference(truth[name], values[name]) for values in (plain, found)] for name in found]
    return max((after / before - 1 if before else math.inf for before, after in errors if after), default=0.0)


def _relative_difference(exact: np.ndarray, found: np.ndarray) -> float:
    """Norm of the difference over the norm of ``exact``; 0 for what is no float."""
    if exact.dtype.kind != "f":
        return 0.0
    norm = float(np.linalg.norm(exact.astype(np.float64)))
    return float(np.linalg.norm(found.astype(np.float64) - exact)) / norm if norm else 0.0


def _from_audit(report: Audit) -> list[Finding]:
    findings = [Finding("bad-kernel", kernel.node, f"{kernel.op}: {kernel.detail}") for kernel in report.bad_kernels]
    findings += [Finding("dequantized-weight", kernel.node, kernel.detail) for kernel in report.dequantized_weights]
    findings += [Finding("float-layer", kernel.node, kernel.detail) for kernel in report.float_int8_weights]
    findings += [Finding("orphan-pair", kernel.node, kernel.detail) for kernel in report.orphan_pairs]
    return findings
