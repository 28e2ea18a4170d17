"""The pipeline's step behind ``verify_speed``: build int8 models with fewer int8 blocks until one is not slower."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from .graph import Model, model_to_proto
from .insert_qdq import insert_qdq
from .mixed_precision import Decide, Fitted
from .numerics import QParams
from .placement import Plan
from .precision import NARROW_BITS
from .runtime import ModelSource, Progress, Session, make_session
from .scales import Scales, Work, find_scales
from .speed_check import SpeedCheck, check_speed, group_by_block


def keep_fast(
    original: ModelSource,
    rewritten: onnx.ModelProto,
    quantized: onnx.ModelProto,
    work: Work,
    decide: Decide,
    fitted: Fitted,
    progress: Progress | None = None,
) -> tuple[onnx.ModelProto, Plan, Scales, SpeedCheck]:
    """Time ``quantized`` against the float file, and replace it when it is slower (see ``speed_check``).

    Args:
        original: The float file.
        rewritten: The same after the exact rewrites that make float faster, too.
        quantized: Its int8 model.
        work: Model, data and settings that it was made with.
        decide: Makes a decision with more float and wide nodes, each given with the reason.
        fitted: Its plan and numbers.
        progress: Called as ``progress(done, total, text)``.

    Returns:
        The model to write, its plan and its numbers, and what was measured.
    """
    threads, plan = work.config.threads, fitted.decision.plan
    session = make_session(original, threads=threads, name="float", exact_sums=False)

    def plan_with(more: Mapping[str, str]) -> Plan:
        plan = decide({**fitted.decision.more_float, **more}, fitted.decision.wide).plan
        return plan.with_weight_bits(fitted.decision.narrow, NARROW_BITS)

    def build(more: Mapping[str, str]) -> onnx.ModelProto:
        return _for_timing(work.model, plan_with(more), fitted.scales)

    blocks, feed = _blocks(work, plan), _one_feed(session, work)
    check = check_speed(session, rewritten, quantized, blocks, build, feed, threads, progress)
    if check.all_float:
        plan = plan_with(dict.fromkeys(plan.int8_nodes, "the float model is faster on this machine"))
        return rewritten, plan, Scales({}), check
    if not check.float_nodes:
        return quantized, plan, fitted.scales, check
    plan = plan_with(check.float_nodes)
    scales = find_scales(work, plan, progress=progress)
    return _build(work.model, plan, scales), plan, scales, check


def _blocks(work: Work, plan: Plan) -> dict[str, list[str]]:
    """Int8 nodes by block."""
    homes = {block.name: block.nodes for block in work.structure.blocks}
    return group_by_block([node.name for node in work.model.graph.nodes], plan.int8_nodes, homes)


def _one_feed(session: Session, work: Work) -> dict[str, np.ndarray]:
    """The first sample, or the first batch of a model whose batch is fixed."""
    feed = next(iter(work.source))[1]
    if isinstance(session.inputs[0].shape[0], int):
        return dict(feed)
    return {name: values[:1] for name, values in feed.items()}


def _for_timing(model: Model, plan: Plan, known: Scales) -> onnx.ModelProto:
    """The int8 model of a plan with numbers that are good for timing only: those known, and anything for the rest."""
    qparams = dict(known.qparams)
    for name, spec in plan.activations.items():
        source = plan.source_of(name)
        if source not in qparams or qparams[source].spec != spec:
            middle = np.array((spec.qmin + spec.qmax + 1) // 2, spec.dtype)
            qparams[source] = QParams(np.array(0.05, np.float32), middle, spec)
    return _build(model, plan, Scales(qparams, known.parameters))


def _build(model: Model, plan: Plan, scales: Scales) -> onnx.ModelProto:
    return model_to_proto(insert_qdq(model, plan, scales.qparams, scales.parameters), check=True)
