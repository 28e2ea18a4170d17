"""From a plan to numbers: first scales of activations and weights, then block reconstruction as the recipe asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from .activation_scales import activation_qparams, weight_scales
from .blocks import Structure
from .calibration import Source
from .config import QuantConfig
from .graph import Model, model_to_proto
from .numerics import QParams, QuantSpec
from .placement import Conversion, Plan, converted_name
from .recipes import Recipe
from .reconstruct import BlockCache, Reconstructed, reconstruct
from .runtime import Progress
from .tasks import Workers


@dataclass(frozen=True)
class Work:
    """What every step behind the first plan works on.

    Args:
        model: Float model after the exact rewrites; not changed.
        shapes: Concrete shapes of its tensors.
        structure: Its blocks.
        source: Calibration data.
        recipe: How scales are found.
        config: Objective, bits, limits, threads, memory, seed.
        workers: Who reconstructs independent blocks, None for this process.
        labels: Class numbers of the samples in ``source``, see ``labels.load_labels``; None without.
        reference: Float model to stay close to, with the same tensors; ``model`` itself when None.
    """

    model: Model
    shapes: Mapping[str, tuple[int, ...]]
    structure: Structure
    source: Source
    recipe: Recipe
    config: QuantConfig
    workers: Workers | None = None
    labels: Mapping[str, int] | np.ndarray | None = None
    reference: onnx.ModelProto | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Scales:
    """All numbers that a plan needs.

    Args:
        qparams: Scale and zero point of every activation that is not tied, and of weights.
        parameters: New float values of weights (of their codes) and biases, by initializer name.
        reconstructed: What reconstruction did, None when the recipe has none.
    """

    qparams: Mapping[str, QParams]
    parameters: Mapping[str, np.ndarray] = field(default_factory=dict)
    reconstructed: Reconstructed | None = None


def first_scales(
    work: Work, plan: Plan, progress: Progress | None = None, widths: Sequence[QuantSpec] = ()
) -> dict[str, QParams]:
    """Scales from statistics alone, see ``activation_scales``.

    Args:
        work: Model, data and settings.
        plan: Where Q/DQ pairs go.
        progress: Called as ``progress(done, total, text)``.
        widths: Specs that activations may get in plans to come; their scales are found in the same pass over the data,
            under the names that conversions have.
    """
    config, plan = work.config, _with_widths(plan, widths)
    half = config.max_memory // 2 if config.max_memory else None
    found = activation_qparams(
        model_to_proto(work.model),
        plan,
        work.source,
        work.recipe,
        threads=config.threads,
        max_memory=half,
        progress=progress,
    )
    return found | weight_scales(work.model, plan, work.recipe)


def _with_widths(plan: Plan, widths: Sequence[QuantSpec]) -> Plan:
    """The plan with a conversion of every activation to each of ``widths`` that it has no scale for; none is read."""
    own = {name: spec for name, spec in plan.activations.items() if name not in plan.conversions}
    more = {
        converted_name(name, each): (name, each)
        for each in widths
        for name, spec in own.items()
        if spec != each or name in plan.tied
    }
    more = {name: entry for name, entry in more.items() if name not in plan.activations}
    return replace(
        plan,
        activations={**plan.activations, **{name: spec for name, (_, spec) in more.items()}},
        conversions={**plan.conversions, **{name: Conversion(tensor, ()) for name, (tensor, _) in more.items()}},
    )


def find_scales(
    work: Work,
    plan: Plan,
    first: Mapping[str, QParams] | None = None,
    cache: BlockCache | None = None,
    progress: Progress | None = None,
) -> Scales:
    """Every number of ``plan`` by the recipe.

    Args:
        work: Model, data and settings.
        plan: Where Q/DQ pairs go.
        first: Scales from statistics, of this plan or one with more int8 nodes, see ``first_scales``; found here when
            None.
        cache: Finished blocks of an interrupted run.
        progress: Called as ``progress(done, total, text)``.
    """
    qparams = _of_plan(plan, first or {})
    if qparams is None:
        qparams = first_scales(work, plan, progress)
    if work.recipe.reconstruction is None:
        return Scales(qparams)
    reconstructed = reconstruct(
        work.model,
        plan,
        qparams,
        work.shapes,
        work.source,
        work.recipe.reconstruction,
        structure=work.structure,
        losses=work.config.losses,
        threads=work.config.threads,
        seed=work.config.seed,
        cache=cache,
        max_memory=work.config.max_memory,
        workers=work.workers,
        reference=work.reference,
        progress=progress,
    )
    return Scales(dict(reconstructed.qparams), dict(reconstructed.parameters), reconstructed)


def _of_plan(plan: Plan, known: Mapping[str, QParams]) -> dict[str, QParams] | None:
    """The scales that ``plan`` needs out of ``known``; None when one is missing or of another type."""
    wanted = {name: spec for name, spec in plan.activations.items() if name not in plan.tied} | dict(plan.weights)
    found = {}
    for name, spec in wanted.items():
        tensor = plan.values_of(name)
        converted = converted_name(tensor, spec)
        names = (name, tensor, *([converted] if converted not in plan.activations else []))
        scale = next((known[each] for each in names if each in known and known[each].spec == spec), None)
        if scale is None:
            return None
        found[name] = scale
    return found
