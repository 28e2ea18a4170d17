"""From a prepared float model to a plan whose every number fits the calibration data.

The order is: which GELUs are replaced, which channels are padded, the plan with the exact edits that depend on it,
granularity, the residual stream, then precision, first scales and block reconstruction, as the recipe asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import onnx

from .channel_padding import ChannelPadding, with_padding, without_useless
from .errors import ModelError
from .gelus import Gelus, choose_gelus, replace_gelus
from .graph import Model, model_to_proto
from .mixed_precision import Decide, Fitted, fit_precision
from .passes import run_passes
from .passes.layout import unpad_stem
from .placement import WIDE_BITS, Plan
from .planning import Decision, decide
from .precision import NARROW_BITS
from .prepared import Prepared, kept_float, observe_renamed
from .reconstruct import (
    BlockCache,
    Codes,
    Granularity,
    Measure,
    choose_granularity,
    default_cache_folder,
    give_biases,
    run_key,
)
from .request import Request
from .residual_choice import ResidualChoice, choose_residual
from .runtime import ORT_VERSION, Progress, observe, samples_that_fit
from .scales import Work
from .storage import may_widen
from .version import __version__

FOLDS_BELOW = 8  # bits of activations: with more, folds gain little, and `debug` cannot take them back from biases


@dataclass(frozen=True)
class FittedModel:
    """A prepared model whose every scale is chosen, and what was decided on the way.

    Args:
        prepared: The model, with the exact edits that the plan asked for.
        work: Model, data and settings that its numbers were found with.
        decide: Makes the decision again with more float and wide nodes, each given with the reason.
        fitted: Its plan and numbers.
        gelus: Which GELUs were replaced; None where there was nothing to choose.
        padding: Which convolutions got more channels; None where there was nothing to weigh.
        granularity: Which activations have a scale per channel; None when the recipe has no gains.
        residual: Whether the residual stream of transformers is int8; None where there was nothing to weigh.
        caches: Blocks that were kept for the case of an interruption; to be removed at the end.
    """

    prepared: Prepared
    work: Work
    decide: Decide
    fitted: Fitted
    gelus: Gelus | None
    padding: ChannelPadding | None
    granularity: Granularity | None
    residual: ResidualChoice | None
    caches: tuple[BlockCache, ...]


def fit_model(prepared: Prepared, request: Request, progress: Progress | None = None) -> FittedModel:
    """Plan, then granularity, first scales and block reconstruction as the recipe asks.

    Args:
        prepared: The float model after the exact rewrites; its graph is edited in place, computing the same function
            but for replaced GELUs.
        request: Data and settings.
        progress: Called as ``progress(done, total, text)``.

    Returns:
        The model, its plan and all numbers.

    Raises:
        ModelError: Nothing can be quantized.
    """
    target, config = request.target, request.config
    kept = kept_float(prepared, config.float_nodes)
    # all that has int8 kernels: the widest plan for memory, and where only the GELUs make int8 slow, they are weighed
    whole = decide(prepared.model, prepared.shapes, target, config.replace(objective="size"), kept)
    _limit_memory(prepared, whole.plan, request)
    prepared, gelus = _with_gelus(prepared, whole, request)
    prepared, padding = with_padding(prepared, target, config, kept)
    decision = _decide(prepared, kept, request)
    prepared, granularity = _with_gains(prepared, decision.plan, request, progress)
    if granularity is not None:
        kept = (*kept_float(prepared, config.float_nodes), *granularity.added)
        decision = decide(prepared.model, prepared.shapes, target, config, kept, decision)
    exact = gelus.exact(model_to_proto(prepared.model)) if gelus and gelus.products else None
    work = _work(prepared, request, exact)
    residual = None
    if request.recipe.precision:
        decision, residual = choose_residual(work, target, kept, decision, progress)
        if residual and residual.chosen == "int8":
            config = config.replace(residual="int8")
    caches: list[BlockCache] = []

    def cache_for(plan: Plan) -> BlockCache | None:
        if not (request.recipe.reconstruction and config.cache):
            return None
        caches.append(_block_cache(prepared.model, plan, request))
        return caches[-1]

    def with_more(more: Mapping[str, str], wide: Mapping[str, str]) -> Decision:
        return decide(prepared.model, prepared.shapes, target, config, kept, decision, more, wide)

    spec = target.activation_spec(WIDE_BITS) if may_widen(config, target, prepared.model.opset) else None
    fitted = fit_precision(work, decision, with_more, wide=spec, cache_for=cache_for, progress=progress)
    if _unpad(prepared.model, fitted.decision.plan):  # precision took the stem back to float
        fitted = replace(fitted, decision=_decided_again(fitted.decision, with_more))
    if padding and (found := without_useless(prepared, padding, decision.plan, fitted)):
        prepared, padding, scales = found
        fitted = replace(fitted, decision=_decided_again(fitted.decision, with_more), scales=scales)
        work = replace(work, shapes=prepared.shapes)
    return FittedModel(prepared, work, with_more, fitted, gelus, padding, granularity, residual, tuple(caches))


def _work(prepared: Prepared, request: Request, reference: onnx.ModelProto | None = None) -> Work:
    model, shapes, structure = prepared.model, prepared.shapes, prepared.structure
    source, recipe, config = request.source, request.recipe, request.config
    return Work(model, shapes, structure, source, recipe, config, request.workers, request.labels, reference)


def _limit_memory(prepared: Prepared, plan: Plan, request: Request) -> None:
    """Make the batches of the data so small that their activations fit into ``config.max_memory``."""
    limit = request.config.max_memory
    if limit is not None:
        at_once = 1 if request.recipe.reconstruction is None else request.config.threads
        proto = model_to_proto(prepared.model)
        request.source.limit_batch(samples_that_fit(proto, prepared.shapes, plan.activations, limit // at_once))


def _with_gelus(prepared: Prepared, whole: Decision, request: Request) -> tuple[Prepared, Gelus | None]:
    """The prepared model with the other form of GELU where that is worth it, and what was weighed."""
    form = request.config.gelu
    if not request.recipe.precision or form == "exact":
        return prepared, None
    gelus = choose_gelus(_work(prepared, request), whole, request.target.glue, form)
    if gelus is None or not gelus.chosen:
        return prepared, gelus
    gelus = replace_gelus(prepared.model, gelus)
    shapes = observe(model_to_proto(prepared.model), prepared.inputs).shapes
    return replace(prepared, shapes=dict(shapes)), gelus


def _decide(prepared: Prepared, kept: tuple[str, ...], request: Request) -> Decision:
    """The plan of the prepared model, which gets the exact edits that depend on it.

    Raises:
        ModelError: Nothing can be quantized.
    """
    model, shapes, target, config = prepared.model, prepared.shapes, request.target, request.config
    decision = decide(model, shapes, target, config, kept)
    if _unpad(model, decision.plan):
        decision = decide(model, shapes, target, config, kept, decision)
    if not decision.plan.int8_nodes:
        reason = _first_reason(decision.plan)
        hint = "; give --objective size to quantize it all the same" if decision.profile else ""
        raise ModelError(f"{model.path}: no node can be quantized for target {target.name} ({reason}){hint}")
    if request.recipe.reconstruction is not None and give_biases(model, decision.plan):
        decision = decide(model, shapes, target, config, kept, decision)
    return decision


def _first_reason(plan: Plan) -> str:
    return next(
        (f"{name}: {reason}" for name, reason in plan.float_nodes.items()),
        "it has no Conv, Gemm or MatMul with constant weights",
    )


def _unpad(model: Model, plan: Plan) -> bool:
    """Take the padding of the stem back where the plan keeps its convolution float."""
    return run_passes(model, [unpad_stem(plan.float_nodes)])[0].count > 0


def _decided_again(decision: Decision, decide_with: Decide) -> Decision:
    """The same decision for the same model after an exact edit."""
    again = decide_with(decision.more_float, decision.wide)
    plan = again.plan.with_weight_bits(decision.narrow, NARROW_BITS)
    return replace(again, plan=plan, narrow=decision.narrow)


def _with_gains(
    prepared: Prepared, plan: Plan, request: Request, progress: Progress | None
) -> tuple[Prepared, Granularity | None]:
    """The prepared model with channel gains folded into it, and which; the plan has to be made again."""
    recipe, config = request.recipe, request.config
    if not recipe.gains:
        return prepared, None
    powers = observe(model_to_proto(prepared.model), prepared.inputs).powers
    granularity = choose_granularity(
        prepared.model,
        plan,
        request.source,
        rule=recipe.gain_rule,
        folds=recipe.folds if config.activation_bits < FOLDS_BELOW else frozenset(),
        measure=_measure(prepared, request),
        threads=config.threads,
        max_memory=config.max_memory // 2 if config.max_memory else None,
        progress=progress,
    )
    return replace(prepared, shapes=observe_renamed(prepared.model, powers, prepared.inputs)), granularity


def _measure(prepared: Prepared, request: Request) -> Measure | None:
    """How granularity is measured; None where the recipe leaves it to the closed form."""
    recipe, config = request.recipe, request.config
    if not recipe.measure_gains or recipe.reconstruction is None:
        return None
    codes = Codes(recipe.ranges, recipe.weights)
    return Measure(prepared.shapes, codes, recipe.reconstruction, config.losses, config.seed)


def _block_cache(model: Model, plan: Plan, request: Request) -> BlockCache:
    """Where the blocks of this run are kept: the model, the plan, the data and the settings decide."""
    settings = {key: value for key, value in request.config.to_dict().items() if key not in ("cache", "verify")}
    settings["target"] = asdict(request.target)
    recipe = asdict(request.recipe)  # its name does not say what is in it
    settings["recipe"] = {**recipe, "folds": sorted(recipe["folds"])}
    settings["versions"] = [__version__, ORT_VERSION, np.__version__]
    settings["int8"] = list(plan.int8_nodes)
    settings["wide"] = list(plan.wide_nodes)
    settings["weights"] = {name: spec.bits for name, spec in plan.weights.items()}
    proto = model_to_proto(model).SerializeToString(deterministic=True)
    return BlockCache(default_cache_folder(), run_key(proto, request.source.fingerprint(), settings))
