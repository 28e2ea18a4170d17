"""The pipeline's step behind ``verify_speed``: build int8 models with fewer int8 blocks until one is not slower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from .blocks import Structure
from .calibration import Source
from .config import QuantConfig
from .graph import Model, model_to_proto
from .insert_qdq import insert_qdq
from .numerics import QParams
from .placement import Plan
from .planning import Decision, decide
from .recipes import Recipe
from .runtime import ModelSource, Progress, make_session
from .scales import Scales, find_scales
from .speed_check import SpeedCheck, check_speed, group_by_block
from .targets import Target


@dataclass(frozen=True)
class Work:
    """What quantization has made so far, from which variants are built.

    Args:
        model: Float model after the exact rewrites.
        shapes: Concrete shapes of its tensors.
        structure: Its blocks.
        target: Rules.
        config: Settings.
        recipe: How scales are found.
        source: Calibration data.
        decision: Plan and costs.
        kept_float: Names of nodes that must stay float.
        scales: Numbers of the decision's plan.
    """

    model: Model
    shapes: Mapping[str, tuple[int, ...]]
    structure: Structure
    target: Target
    config: QuantConfig
    recipe: Recipe
    source: Source
    decision: Decision
    kept_float: tuple[str, ...]
    scales: Scales


def keep_fast(
    original: ModelSource, quantized: onnx.ModelProto, work: Work, progress: Progress | None = None
) -> tuple[onnx.ModelProto, Plan, Scales, SpeedCheck]:
    """Time ``quantized`` against the float file, and replace it when it is slower (see ``speed_check``).

    Returns:
        The model to write, its plan and its numbers, and what was measured.
    """
    session = make_session(original, threads=work.config.threads, name="float", exact_sums=False)
    rewritten = model_to_proto(work.model)
    plan = work.decision.plan
    homes = {block.name: block.nodes for block in work.structure.blocks}
    blocks = group_by_block([node.name for node in work.model.graph.nodes], plan.int8_nodes, homes)
    feed = next(iter(work.source))[1]
    if not isinstance(session.inputs[0].shape[0], int):
        feed = {name: values[:1] for name, values in feed.items()}
    check = check_speed(
        session,
        rewritten,
        quantized,
        blocks,
        lambda more: _for_timing(work, _plan(work, more)),
        feed,
        work.config.threads,
        progress,
    )
    if check.all_float:
        plan = _plan(work, dict.fromkeys(plan.int8_nodes, "the float model is faster on this machine"))
        return rewritten, plan, Scales({}), check
    if not check.float_nodes:
        return quantized, plan, work.scales, check
    plan = _plan(work, check.float_nodes)
    scales = find_scales(
        work.model, plan, work.shapes, work.structure, work.source, work.recipe, work.config, progress=progress
    )
    return _build(work, plan, scales), plan, scales, check


def _plan(work: Work, more: Mapping[str, str]) -> Plan:
    decision = decide(work.model, work.shapes, work.target, work.config, work.kept_float, work.decision, more)
    return decision.plan


def _for_timing(work: Work, plan: Plan) -> onnx.ModelProto:
    """The int8 model of a plan with numbers that are good for timing only: those known, and anything for the rest."""
    qparams = dict(work.scales.qparams)
    for name, spec in plan.activations.items():
        source = plan.source_of(name)
        if source not in qparams:
            middle = np.array((spec.qmin + spec.qmax + 1) // 2, spec.dtype)
            qparams[source] = QParams(np.array(0.05, np.float32), middle, spec)
    return _build(work, plan, Scales(qparams, work.scales.parameters))


def _build(work: Work, plan: Plan, scales: Scales) -> onnx.ModelProto:
    return model_to_proto(insert_qdq(work.model, plan, scales.qparams, scales.parameters), check=True)
