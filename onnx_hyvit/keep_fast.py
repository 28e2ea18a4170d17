"""The pipeline's step behind ``verify_speed``: build int8 models with fewer int8 blocks until one is not slower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from .calibrate import activation_qparams, weight_scales
from .calibration import Source
from .config import QuantConfig
from .graph import Model, model_to_proto
from .insert_qdq import insert_qdq
from .numerics import QParams
from .placement import Plan
from .planning import Decision, decide
from .recipes import Recipe
from .runtime import ModelSource, Progress, make_session
from .speed_check import SpeedCheck, check_speed, group_by_block
from .targets import Target


@dataclass(frozen=True)
class Work:
    """What quantization has made so far, from which variants are built.

    Args:
        model: Float model after the exact rewrites.
        shapes: Concrete shapes of its tensors.
        blocks: Block name -> names of its nodes.
        target: Rules.
        config: Settings.
        recipe: How scales are found.
        source: Calibration data.
        decision: Plan and costs.
        kept_float: Names of nodes that must stay float.
        qparams: Scales of the decision's plan.
    """

    model: Model
    shapes: Mapping[str, tuple[int, ...]]
    blocks: Mapping[str, Sequence[str]]
    target: Target
    config: QuantConfig
    recipe: Recipe
    source: Source
    decision: Decision
    kept_float: tuple[str, ...]
    qparams: Mapping[str, QParams]


def keep_fast(
    original: ModelSource, quantized: onnx.ModelProto, work: Work, progress: Progress | None = None
) -> tuple[onnx.ModelProto, Plan, SpeedCheck]:
    """Time ``quantized`` against the float file, and replace it when it is slower (see ``speed_check``).

    Returns:
        The model to write, its plan, and what was measured.
    """
    session = make_session(original, threads=work.config.threads, name="float", exact_sums=False)
    rewritten = model_to_proto(work.model)
    plan = work.decision.plan
    blocks = group_by_block([node.name for node in work.model.graph.nodes], plan.int8_nodes, work.blocks)
    feed = next(iter(work.source))[1]
    if not isinstance(session.inputs[0].shape[0], int):
        feed = {name: values[:1] for name, values in feed.items()}
    check = check_speed(
        session,
        rewritten,
        quantized,
        blocks,
        lambda more: _build(work, _plan(work, more), None),
        feed,
        work.config.threads,
        progress,
    )
    if check.all_float:
        return (
            rewritten,
            _plan(work, dict.fromkeys(plan.int8_nodes, "the float model is faster on this machine")),
            check,
        )
    if not check.float_nodes:
        return quantized, plan, check
    plan = _plan(work, check.float_nodes)
    threads = work.config.threads
    qparams = activation_qparams(rewritten, plan, work.source, work.recipe, threads=threads, progress=progress)
    return _build(work, plan, qparams | weight_scales(work.model, plan, work.recipe)), plan, check


def _plan(work: Work, more: Mapping[str, str]) -> Plan:
    decision = decide(work.model, work.shapes, work.target, work.config, work.kept_float, work.decision, more)
    return decision.plan


def _build(work: Work, plan: Plan, qparams: Mapping[str, QParams] | None) -> onnx.ModelProto:
    """The int8 model of a plan; without ``qparams`` with scales that are good for timing only."""
    if qparams is None:
        qparams = dict(work.qparams)
        for name, spec in plan.activations.items():
            source = plan.source_of(name)
            if source not in qparams:
                qparams[source] = QParams(
                    np.array(0.05, np.float32), np.array((spec.qmin + spec.qmax + 1) // 2, spec.dtype), spec
                )
    return model_to_proto(insert_qdq(work.model, plan, qparams), check=True)
