"""``--bits auto``: what 4 bits of each weight do to the outputs, measured once, and a choice for each limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .activation_scales import weight_scales
from .backward import LossSpec
from .graph import model_to_proto
from .graph.edit import constant_of
from .numerics import QParams
from .placement import Plan
from .precision import NARROW_BITS, Width, choose_widths, measure_effects
from .scales import Work

DIVERGENCE = 0.01  # budget without max_drop: KL in nats, or relative squared error
LEFT = 1 / 3  # of the predicted divergence that reconstruction leaves, about
SAMPLES = 16


class NarrowWeights:
    """Scales and effects of every weight of a plan at 4 bits."""

    def __init__(self, work: Work, plan: Plan, loss: LossSpec) -> None:
        """Measure them.

        Args:
            work: Model, data and settings.
            plan: The plan with 8-bit weights.
            loss: Loss at the outputs.
        """
        tensors = work.model.graph.tensors()
        self._sizes = {}
        for name, spec in plan.weights.items():
            values = constant_of(tensors[name])
            if values is not None and spec.bits > NARROW_BITS:
                self._sizes[name] = int(values.size)
        narrow = plan.with_weight_bits(self._sizes, NARROW_BITS)
        self._scales = weight_scales(work.model, narrow, work.recipe)
        self._effects = measure_effects(
            model_to_proto(work.model),
            replace(narrow, activations={}, tied={}, conversions={}),
            self._scales,
            work.shapes,
            (feeds for _, feeds in work.source),
            loss,
            samples=SAMPLES,
            seed=work.config.seed,
            threads=work.config.threads,
        )

    def within(self, spent: float, limit: float) -> tuple[Width, ...]:
        """The widths for a predicted divergence of at most ``limit``, of which other roundings take ``spent``."""
        return choose_widths(self._effects, self._sizes, spent, limit)

    def scales_of(self, plan: Plan) -> Mapping[str, QParams]:
        """Scales of the weights that ``plan`` has at 4 bits."""
        return {name: self._scales[name] for name, spec in plan.weights.items() if spec == self._scales[name].spec}


def predicted_of(widths: Sequence[Width]) -> float:
    """Predicted divergence of all weights with 4 bits."""
    return sum(width.divergence or 0.0 for width in widths if width.bits == NARROW_BITS)


def describe_widths(widths: Sequence[Width], budget: float, reached: float | None) -> dict[str, Any]:
    """Plain values for the report.

    Args:
        widths: The choice.
        budget: What must not be exceeded: a divergence, or a share of samples.
        reached: What the finished model reached; None where it is not this choice's.
    """
    return {
        "budget": budget,
        "reached": reached,
        "saved_bytes": sum(width.saved_bytes for width in widths if width.bits == NARROW_BITS),
        "weights": [width.to_dict() for width in widths],
    }
