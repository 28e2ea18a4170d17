"""From a plan and calibration data to the scale and zero point of every planned activation."""

from __future__ import annotations

import onnx

from .calibration import Source
from .graph import Model
from .graph.edit import constant_of
from .numerics import Histogram, MinMax, QParams, QuantSpec, power_of_two_qparams, qparams_from_range
from .numerics.weights import weight_qparams
from .placement import Plan
from .recipes import Recipe
from .runtime import Progress, collect
from .runtime.collect import MAX_MEMORY


def activation_qparams(
    proto: onnx.ModelProto,
    plan: Plan,
    source: Source,
    recipe: Recipe,
    *,
    threads: int = 2,
    max_memory: int | None = None,
    progress: Progress | None = None,
) -> dict[str, QParams]:
    """Observe the planned activations over the data, in one pass with constant memory, and choose their ranges.

    Args:
        proto: The float model that the plan was made for.
        plan: Which tensors are quantized, and how.
        source: Calibration data.
        recipe: Says how a range is chosen.
        threads: Threads of ONNX Runtime.
        max_memory: Bytes of activations held at a time; None is the default of ``collect``.
        progress: Called as ``progress(done, total, text)``.

    Returns:
        Tensor name -> scale and zero point, for every activation that is not tied to another.

    Raises:
        CalibrationError: The data hold NaN or Inf, or do not fit the model.
    """
    own = {name: spec for name, spec in plan.activations.items() if name not in plan.tied}
    free = {name: spec for name, spec in own.items() if name not in plan.fixed}
    values = {plan.values_of(name): None for name in free}
    observers = collect(
        proto,
        list(values),
        source,
        {name: _observer(name, plan, recipe) for name in values},
        progress,
        threads=threads,
        max_memory=max_memory or MAX_MEMORY,
    )
    known = {name: qparams_from_range(*plan.fixed[name], spec) for name, spec in own.items() if name in plan.fixed}
    found = {name: _qparams(name, spec, observers[plan.values_of(name)], plan, recipe) for name, spec in free.items()}
    return found | known


def _observer(name: str, plan: Plan, recipe: Recipe) -> MinMax | Histogram:
    """The observer of a tensor, for its own codes and those that they are converted to, which have one scale."""
    axis = plan.activations[name].axis if name in plan.activations else None
    needs_values = axis is not None or name in plan.log_codes
    return Histogram(axis=axis) if needs_values else recipe.ranges.observer()


def _qparams(name: str, spec: QuantSpec, observer: MinMax | Histogram, plan: Plan, recipe: Recipe) -> QParams:
    """Scale of one activation: of logarithmic codes, by powers of two per channel, or by the recipe's range."""
    if isinstance(observer, Histogram) and name in plan.log_codes:
        return qparams_from_range(0.0, plan.log_codes[name].largest(observer), spec)
    if isinstance(observer, Histogram) and spec.axis is not None:
        return power_of_two_qparams(observer, spec)
    return recipe.ranges.qparams(observer, spec)


def weight_scales(model: Model, plan: Plan, recipe: Recipe) -> dict[str, QParams]:
    """Scales of every planned weight, by the method of the recipe.

    Args:
        model: The float model that the plan was made for.
        plan: Which weights are quantized, and how.
        recipe: Says how a weight's scale is chosen.

    Returns:
        Tensor name -> scale and zero point.
    """
    tensors = model.graph.tensors()
    found = {}
    for name, spec in plan.weights.items():
        weight = constant_of(tensors[name])
        assert weight is not None, name
        found[name] = weight_qparams(weight, spec, recipe.weights)
    return found
