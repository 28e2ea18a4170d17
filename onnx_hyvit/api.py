"""The pipeline on one screen: load, rewrite, find the blocks, plan, calibrate, insert Q/DQ, check, save."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from . import calibration as calib
from .blocks import Structure, find_structure
from .config import QuantConfig
from .errors import ConfigError, ModelError, OutputError
from .gelus import Gelus, choose_gelus, replace_gelus
from .graph import Model, load_model, model_to_proto, save_proto
from .graph.edit import names_used_by_subgraphs, unique_name
from .graph.io import model_bytes
from .insert_qdq import insert_qdq
from .keep_fast import keep_fast
from .kernel_audit import audit
from .limits import read_labels
from .mixed_precision import Decide, Fitted, fit_precision
from .passes import CANONICAL, LOWERING, PassResult, run_passes
from .passes.layout import LAYOUT, unpad_stem
from .placement import Plan
from .planning import Decision, decide
from .precision import NARROW_BITS
from .processor import find_target
from .recipes import Recipe, Reconstruction, find_recipe, with_weighting
from .reconstruct import (
    BlockCache,
    Granularity,
    choose_granularity,
    default_cache_folder,
    give_biases,
    run_key,
)
from .runtime import Progress, observe, samples_that_fit
from .scales import Work
from .storage import check_storage, describe_storage, load_for, pack_weights
from .targets import Target, check_target, load_target
from .tasks import Workers, check_jobs, local_processes
from .validate import Finding, validate
from .version import __version__

logger = logging.getLogger(__name__)
FOLDS_BELOW = 8  # bits of activations: with more, folds gain little, and `debug` cannot take them back from biases
ModelLike = str | os.PathLike[str] | bytes | onnx.ModelProto


@dataclass(frozen=True)
class QuantResult:
    """What ``quantize`` made.

    Args:
        model: The int8 QDQ model.
        report: Plain values (JSON): what was found, what was done, sizes, choices and what stayed float and why.
        path: Where the model was written, None when no output was asked for.
    """

    model: onnx.ModelProto
    report: dict[str, Any] = field(repr=False)
    path: Path | None = None


@dataclass(frozen=True)
class Prepared:
    """A float model after the exact rewrites, and what was recognised in it on the way.

    Args:
        model: The rewritten model.
        structure: Blocks of the canonical graph.
        shapes: Concrete shapes of all tensors.
        passes: What each pass did.
        inputs: Shapes of the inputs that were given, see ``prepare``.
    """

    model: Model
    structure: Structure
    shapes: dict[str, tuple[int, ...]]
    passes: tuple[PassResult, ...]
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def quantize(
    model: ModelLike,
    output: str | os.PathLike[str] | None = None,
    *,
    calibration: Any,
    config: QuantConfig | None = None,
    preprocess: calib.Preprocess | str | os.PathLike[str] | None = None,
    skip_unreadable: bool = False,
    jobs: int = 1,
    executor: Executor | None = None,
    labels: str | os.PathLike[str] | np.ndarray | None = None,
    progress: Progress | None = None,
) -> QuantResult:
    """Quantize a float ONNX model to int8 (QDQ form).

    Args:
        model: Path, serialized bytes, or ModelProto of a float model.
        output: Where to write the result; None keeps it in memory only.
        calibration: Folder of images, ``.npz``, ``.npy``, a dict of float arrays (first axis samples), an iterable of
            feeds, or an ``onnxruntime.quantization.CalibrationDataReader``.
        config: Settings; the defaults when None.
        preprocess: For images: a ``Preprocess``, the name of a preset, or the path of a TOML or JSON file.
        skip_unreadable: Leave out images that cannot be read (each is named in a warning) instead of stopping.
        jobs: Blocks that are reconstructed at the same time, in processes of their own, where the recipe's blocks are
            independent (``ptq4vit``); the result does not depend on it. See ``quantize_many``, too.
        executor: Runs the blocks instead of local processes.
        labels: Class numbers of the calibration samples, for a ``max_drop`` in percent: an array, or a file as for
            ``compare``.
        progress: Called as ``progress(done, total, text)`` during long work.

    Returns:
        The model, a report, and the path.

    Raises:
        HyvitError: The model, the data, a setting or the output cannot be used; one line says which and what to do.
    """
    config = config or QuantConfig()
    with _block_workers(find_recipe(config.recipe), jobs, executor) as workers:
        return _quantize(model, output, calibration, config, preprocess, skip_unreadable, labels, workers, progress)


def _block_workers(recipe: Recipe, jobs: int, executor: Executor | None) -> AbstractContextManager[Workers | None]:
    """Who reconstructs independent blocks; nobody where the blocks depend on each other."""
    check_jobs(jobs)
    settings = recipe.reconstruction
    if settings is None or settings.sequential or (jobs == 1 and executor is None):
        return nullcontext()
    return local_processes(jobs) if executor is None else nullcontext(Workers(executor, jobs))


def _quantize(
    model: ModelLike,
    output: str | os.PathLike[str] | None,
    calibration: Any,
    config: QuantConfig,
    preprocess: calib.Preprocess | str | os.PathLike[str] | None,
    skip_unreadable: bool,
    labels: str | os.PathLike[str] | np.ndarray | None,
    workers: Workers | None,
    progress: Progress | None,
) -> QuantResult:
    started = time.perf_counter()
    asked, config = config, config.replace(target=os.fspath(find_target(config.target)))
    recipe, target = with_weighting(find_recipe(config.recipe), config.weighting), adapted_target(config)
    check_storage(target, config)
    truth = read_labels(labels, config)
    if output is not None:
        check_output(output, model)
    loaded = load_for(model, config)
    float_size = model_bytes(model)
    names = check_node_names(loaded, config.float_nodes)
    source = open_calibration(loaded, calibration, config, preprocess, skip_unreadable)
    prepared = prepare(loaded, config, input_shapes(source))
    scaled = _scale(prepared, names, source, recipe, target, config, truth, workers, progress)
    prepared, fitted = scaled.prepared, scaled.fitted
    plan, scales = fitted.decision.plan, fitted.scales
    quantized = model_to_proto(insert_qdq(prepared.model, plan, scales.qparams, scales.parameters), check=True)
    check, precision = None, dict(fitted.summary) if fitted.summary else None
    if config.verify_speed:
        quantized, plan, scales, check = keep_fast(model, quantized, scaled.work, scaled.decide, fitted, progress)
        if precision and scales is not fitted.scales:
            precision.pop("top1", None)
            precision.pop("reached", None)  # of a model that was not kept; blocks in float only come closer
    packed = pack_weights(quantized, prepared.model, plan) if config.pack_int4 else None
    stored, notes = describe_storage(config, target, packed)
    findings = []
    if config.verify and plan.int8_nodes:
        findings = _validate(quantized, model_to_proto(prepared.model), source, target, config)
    report: dict[str, Any] = {
        "onnx_hyvit": __version__,
        "config": config.to_dict(),
        "chosen_target": asked.target != config.target,
        "found": describe(prepared),
        "passes": {result.name: result.count for result in prepared.passes if result.count},
        "plan": _describe_plan(plan),
        "speed": {**fitted.decision.to_dict(), "check": check.to_dict() if check else None},
        "gelus": scaled.gelus.to_dict() if scaled.gelus else None,
        "granularity": scaled.granularity.to_dict() if scaled.granularity else None,
        "precision": precision,
        "reconstruction": scales.reconstructed.to_dict() if scales.reconstructed else None,
        "calibration": {
            "samples": len(source),
            "fingerprint": source.fingerprint(),
            "warnings": list(source.warnings),
        },
        "audit": audit(quantized, config=target.session).to_dict(),
        "findings": [*notes, *(str(finding) for finding in findings)],
        "size": {"float_bytes": float_size, "int8_bytes": quantized.ByteSize(), **stored},
    }
    path = None
    if output is not None:
        path = Path(output)
        report["size"]["int8_bytes"] = save_proto(quantized, path)
    for cache in scaled.caches:
        cache.remove()
    report["seconds"] = round(time.perf_counter() - started, 2)
    return QuantResult(quantized, report, path)


@dataclass(frozen=True)
class _Scaled:
    """A prepared model whose every scale is chosen, and what was decided on the way."""

    prepared: Prepared
    work: Work
    decide: Decide
    fitted: Fitted
    gelus: Gelus | None
    granularity: Granularity | None
    caches: tuple[BlockCache, ...]


def _scale(
    prepared: Prepared,
    names: frozenset[str],
    source: calib.Source,
    recipe: Recipe,
    target: Target,
    config: QuantConfig,
    labels: Mapping[str, int] | np.ndarray | None,
    workers: Workers | None,
    progress: Progress | None,
) -> _Scaled:
    """Plan, then granularity, first scales and block reconstruction as the recipe asks."""
    kept = _kept_float(prepared, config, names)
    # all that has int8 kernels: the widest plan for memory, and where only the GELUs make int8 slow, they are weighed
    whole = decide(prepared.model, prepared.shapes, target, config.replace(objective="size"), kept)
    _limit_memory(prepared, whole.plan, source, config)
    prepared, gelus = _with_gelus(prepared, whole, source, recipe, target, config)
    decision = _decide(prepared, target, config, recipe, kept)
    half = config.max_memory // 2 if config.max_memory else None
    granularity = None
    if recipe.gains:
        powers = observe(model_to_proto(prepared.model), prepared.inputs).powers
        granularity = choose_granularity(
            prepared.model,
            decision.plan,
            source,
            rule=recipe.gain_rule,
            folds=recipe.folds if config.activation_bits < FOLDS_BELOW else frozenset(),
            threads=config.threads,
            max_memory=half,
            progress=progress,
        )
        prepared = replace(prepared, shapes=observe_renamed(prepared.model, powers, prepared.inputs))
        kept = (*_kept_float(prepared, config, names), *granularity.added)
        decision = decide(prepared.model, prepared.shapes, target, config, kept, decision)
    caches: list[BlockCache] = []

    def cache_for(plan: Plan) -> BlockCache | None:
        if not (recipe.reconstruction and config.cache):
            return None
        caches.append(_block_cache(prepared.model, plan, source, recipe.reconstruction, config))
        return caches[-1]

    def with_more(more: Mapping[str, str]) -> Decision:
        return decide(prepared.model, prepared.shapes, target, config, kept, decision, more)

    exact = gelus.exact(model_to_proto(prepared.model)) if gelus and gelus.products else None
    work = Work(prepared.model, prepared.shapes, prepared.structure, source, recipe, config, workers, labels, exact)
    fitted = fit_precision(work, decision, with_more, cache_for=cache_for, progress=progress)
    if _unpad(prepared.model, fitted.decision.plan):  # precision took the stem back to float
        fitted = replace(fitted, decision=_decided_again(fitted.decision, with_more))
    return _Scaled(prepared, work, with_more, fitted, gelus, granularity, tuple(caches))


def _with_gelus(
    prepared: Prepared, whole: Decision, source: calib.Source, recipe: Recipe, target: Target, config: QuantConfig
) -> tuple[Prepared, Gelus | None]:
    """The prepared model with the other form of GELU where that is worth it, and what was weighed."""
    if not recipe.precision or config.gelu == "exact":
        return prepared, None
    work = Work(prepared.model, prepared.shapes, prepared.structure, source, recipe, config)
    gelus = choose_gelus(work, whole, target.glue, config.gelu)
    if gelus is None or not gelus.chosen:
        return prepared, gelus
    gelus = replace_gelus(prepared.model, gelus)
    shapes = observe(model_to_proto(prepared.model), prepared.inputs).shapes
    return replace(prepared, shapes=dict(shapes)), gelus


def _decide(prepared: Prepared, target: Target, config: QuantConfig, recipe: Recipe, kept: tuple[str, ...]) -> Decision:
    """The plan of the prepared model, which gets the exact edits that depend on it.

    Raises:
        ModelError: Nothing can be quantized.
    """
    model, shapes = prepared.model, prepared.shapes
    decision = decide(model, shapes, target, config, kept)
    if _unpad(model, decision.plan):
        decision = decide(model, shapes, target, config, kept, decision)
    if not decision.plan.int8_nodes:
        reason = _first_reason(decision.plan)
        hint = "; give --objective size to quantize it all the same" if decision.profile else ""
        raise ModelError(f"{model.path}: no node can be quantized for target {target.name} ({reason}){hint}")
    if recipe.reconstruction is not None and give_biases(model, decision.plan):
        decision = decide(model, shapes, target, config, kept, decision)
    return decision


def _unpad(model: Model, plan: Plan) -> bool:
    """Take the padding of the stem back where the plan keeps its convolution float."""
    return run_passes(model, [unpad_stem(plan.float_nodes)])[0].count > 0


def _decided_again(decision: Decision, decide_with: Decide) -> Decision:
    """The same decision for the same model after an exact edit."""
    again = decide_with(decision.more_float)
    plan = again.plan.with_weight_bits(decision.narrow, NARROW_BITS)
    return replace(again, plan=plan, narrow=decision.narrow)


def _block_cache(
    model: Model, plan: Plan, source: calib.Source, reconstruction: Reconstruction, config: QuantConfig
) -> BlockCache:
    """Where the blocks of this run are kept: the model, the plan, the data and the settings decide."""
    settings = {key: value for key, value in config.to_dict().items() if key not in ("cache", "verify")}
    settings["target"] = asdict(adapted_target(config))
    settings["reconstruction"] = asdict(reconstruction)  # a recipe's name does not say what is in it
    settings["int8"] = list(plan.int8_nodes)
    settings["weights"] = {name: spec.bits for name, spec in plan.weights.items()}
    proto = model_to_proto(model).SerializeToString(deterministic=True)
    return BlockCache(default_cache_folder(), run_key(__version__, proto, source.fingerprint(), settings))


def _validate(
    quantized: onnx.ModelProto, proto: onnx.ModelProto, source: calib.Source, target: Target, config: QuantConfig
) -> list[Finding]:
    """Check the finished model in the sessions of its target, then against the rules of its target."""
    findings = validate(
        quantized,
        proto,
        _first_feed(source),
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


def adapted_target(config: QuantConfig) -> Target:
    """The target of ``config`` with the types and granularity that the config asks for instead."""
    target = load_target(find_target(config.target))
    activation, weight = target.activation, target.weight
    if config.activation_type is not None:
        activation = replace(activation, dtype=config.activation_type)
    if config.activation_symmetric is not None:
        activation = replace(activation, scheme="symmetric" if config.activation_symmetric else "asymmetric")
    if not config.per_channel:
        weight = replace(weight, granularity="per_tensor")
    return replace(target, activation=activation, weight=weight)


def check_node_names(model: Model, wanted: Sequence[str]) -> frozenset[str]:
    """Names of the loaded model's nodes; refuses names in ``wanted`` that no node has.

    Raises:
        ConfigError: Names the first such node.
    """
    known = frozenset(node.name for node in model.graph.nodes)
    for name in wanted:
        if name not in known:
            raise ConfigError(f"float_nodes: {model.path} has no node {name!r}; `onnx-hyvit inspect --json` lists them")
    return known


def _kept_float(prepared: Prepared, config: QuantConfig, names: frozenset[str]) -> tuple[str, ...]:
    """Nodes of the rewritten graph that must stay float: those named, and those that rewrites made of them.

    A rewrite names its new nodes after the one that they come from, with an ending; a node that was folded into another
    one is gone, and so is the request.
    """
    return tuple(
        node.name
        for node in prepared.model.graph.nodes
        if node.name in config.float_nodes
        or (node.name not in names and any(node.name.startswith(f"{name}_") for name in config.float_nodes))
    )


def _limit_memory(prepared: Prepared, plan: Plan, source: calib.Source, config: QuantConfig) -> None:
    """Make the batches of ``source`` so small that their activations fit into ``config.max_memory``."""
    if config.max_memory is not None:
        proto = model_to_proto(prepared.model)
        source.limit_batch(samples_that_fit(proto, prepared.shapes, plan.activations, config.max_memory))


def open_calibration(
    model: Model, calibration: Any, config: QuantConfig, preprocess: Any = None, skip_unreadable: bool = False
) -> calib.Source:
    """Open calibration data for the inputs of ``model``; see ``quantize`` for the kinds accepted."""
    if isinstance(preprocess, (str, os.PathLike)):
        preprocess = calib.load_preprocess(preprocess)
    return calib.open_source(
        calibration,
        calib.inputs_of(model_to_proto(model)),
        preprocess=preprocess,
        samples=config.samples,
        seed=config.seed,
        batch_size=config.batch_size,
        skip_unreadable=skip_unreadable,
    )


def input_shapes(source: calib.Source) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs for one sample like the first one; a batch that the model fixes is kept."""
    free = {info.name for info in source.inputs if info.shape and not isinstance(info.shape[0], int)}
    return {name: (1, *array.shape[1:]) if name in free else array.shape for name, array in _first_feed(source).items()}


def prepare(model: Model, config: QuantConfig, inputs: Mapping[str, tuple[int, ...]] | None = None) -> Prepared:
    """Run the exact rewrites on ``model`` (edited in place) and find its structure between them.

    Args:
        model: The loaded model.
        config: Whether data layouts are rewritten.
        inputs: Shapes of inputs with free sizes, as they will be in use; guessed when left out.

    Returns:
        The rewritten model, the structure of the canonical graph, concrete shapes, and what each pass did.
    """
    inputs = dict(inputs or {})
    before = observe(model_to_proto(model), inputs).powers
    results = run_passes(model, CANONICAL)
    structure = find_structure(model, observe(model_to_proto(model), inputs).shapes)
    if config.rewrite_layout:
        results += run_passes(model, LAYOUT)
    results += run_passes(model, LOWERING)
    return Prepared(model, structure, observe_renamed(model, before, inputs), tuple(results), inputs)


def observe_renamed(
    model: Model, before: Mapping[str, float], inputs: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, tuple[int, ...]]:
    """Give a new name to every tensor that kept its name but no longer its values, and return all shapes.

    Folds change what flows between two nodes. With this, a name that the int8 model shares with the float file stands
    for the same values, so the two can be compared tensor by tensor.

    Args:
        model: The rewritten model; edited in place.
        before: Power of each tensor before the rewrites, see ``runtime.observe``.
        inputs: Shapes of inputs that were given then.
    """
    observed = observe(model_to_proto(model), inputs)
    outputs = {tensor.name for tensor in model.graph.outputs} | names_used_by_subgraphs(model.graph)
    shapes = dict(observed.shapes)
    for name, tensor in model.graph.tensors().items():
        power, after = before.get(name), observed.powers.get(name)
        if power is None or after is None or name in outputs or np.isclose(power, after, rtol=1e-3, atol=1e-12):
            continue
        tensor.name = unique_name(model.graph, f"{name}_rewritten")
        shapes[tensor.name] = shapes.pop(name)
    return shapes


def inspect(model: ModelLike) -> dict[str, Any]:
    """What is in a model: blocks, bridges, norms, activations, attentions, and what was not recognised and why.

    Args:
        model: Path, serialized bytes, or ModelProto; an already quantized one is accepted.

    Returns:
        Plain values (JSON).
    """
    loaded = load_model(model, quantized_ok=True)
    results = run_passes(loaded, CANONICAL)
    shapes = observe(model_to_proto(loaded)).shapes
    structure = find_structure(loaded, shapes)
    return describe(Prepared(loaded, structure, shapes, tuple(results)))


def describe(prepared: Prepared) -> dict[str, Any]:
    """The structure of a prepared model as plain values, the form of ``inspect --json``."""
    model = prepared.model
    return {
        "model": model.path,
        "opset": model.origin.opset,
        "producer": model.producer,
        "inputs": [{"name": tensor.name, "shape": list(tensor.shape or ())} for tensor in model.graph.inputs],
        "outputs": [{"name": tensor.name, "shape": list(tensor.shape or ())} for tensor in model.graph.outputs],
        "dynamic_axes": _dynamic_axes(model),
        **prepared.structure.to_dict(),
    }


def _dynamic_axes(model: Model) -> dict[str, dict[int, str]]:
    found = {}
    for tensor in model.graph.inputs:
        free = {axis: str(dim) for axis, dim in enumerate(tensor.shape or ()) if not isinstance(dim, int)}
        if free:
            found[tensor.name] = free
    return found


def _describe_plan(plan: Plan) -> dict[str, Any]:
    return {
        "paired_nodes": list(plan.paired),
        "emulated": {name: f"{codes.describe()}, emulated" for name, codes in plan.log_codes.items()},
        "int8_nodes": len(plan.int8_nodes),
        "carried_nodes": len(plan.carried_nodes),
        "float_nodes": dict(plan.float_nodes),
    }


def _first_reason(plan: Plan) -> str:
    return next(
        (f"{name}: {reason}" for name, reason in plan.float_nodes.items()),
        "it has no Conv, Gemm or MatMul with constant weights",
    )


def _first_feed(source: calib.Source) -> dict[str, np.ndarray]:
    return next(iter(source))[1]


def check_output(output: str | os.PathLike[str], model: Any = None) -> None:
    """Refuse an output that cannot be written, before any work is done.

    Raises:
        OutputError: The folder is missing or read-only, the path is a folder, or it is the input model itself.
    """
    path = Path(output)
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"{path}: the folder {folder} does not exist")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, expected a file name")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{path}: the folder {folder} is not writable ({error.strerror or error})") from error
    if isinstance(model, (str, os.PathLike)) and path.exists() and path.samefile(model):
        raise OutputError(f"{path}: is the input model; choose another output")
