"""Whether the residual stream of a transformer is int8: what that saves of the time, what it does to the outputs.

An int8 residual stream is the rounding that hurts most for what it saves, so the target's rule (float where the sum is
normalized) stands until costs say that int8 saves time, and gradients that the outputs bear it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from .costs import LEAST_SHARE
from .mixed_precision import WORTH, predicted_divergence
from .planning import Decision, decide_int8_residual
from .runtime import Progress
from .scales import Work
from .targets import Target

RATE = 0.5  # share of the divergence that one share of the time may cost: the other side of the 2 that float must give


@dataclass(frozen=True)
class ResidualChoice:
    """What was weighed.

    Args:
        nodes: Nodes that are int8 only with an int8 residual stream.
        float_us: Predicted microseconds by the target's rule.
        int8_us: Predicted microseconds with them.
        float_divergence: Predicted divergence by the rule; None where time decided already.
        int8_divergence: Predicted divergence with them; None where time decided already.
        borrowed: Whether the costs are those of another target, for want of its own.
    """

    nodes: tuple[str, ...]
    float_us: float
    int8_us: float
    float_divergence: float | None = None
    int8_divergence: float | None = None
    borrowed: bool = False

    @property
    def saved(self) -> float:
        """Share of the predicted time that int8 saves."""
        return 1 - self.int8_us / self.float_us

    @property
    def chosen(self) -> str:
        """``int8`` or ``float``."""
        if self.saved < LEAST_SHARE or self.float_divergence is None or self.int8_divergence is None:
            return "float"
        added = self.int8_divergence - self.float_divergence
        bearable = added <= WORTH * self.saved and added <= RATE * self.saved * self.float_divergence
        return "int8" if bearable else "float"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the report."""
        return {
            "chosen": self.chosen,
            "nodes": list(self.nodes),
            "borrowed": self.borrowed,
            "predicted_us": {"float": round(self.float_us, 1), "int8": round(self.int8_us, 1)},
            "predicted_divergence": {"float": self.float_divergence, "int8": self.int8_divergence},
        }


def choose_residual(
    work: Work, target: Target, float_nodes: Collection[str], ruled: Decision, progress: Progress | None = None
) -> tuple[Decision, ResidualChoice | None]:
    """Weigh an int8 residual stream against the target's rule.

    Args:
        work: Model, data and settings.
        target: Rules.
        float_nodes: Names of nodes that must stay float.
        ruled: The decision by the rule.
        progress: Called as ``progress(done, total, text)``.

    Returns:
        The better decision, and what was weighed; None where there was nothing to weigh.
    """
    found = decide_int8_residual(work.model, work.shapes, target, work.config, float_nodes, ruled)
    if found is None:
        return ruled, None
    decision, int8_us, float_us = found
    more = sorted(set(decision.plan.int8_nodes) - set(ruled.plan.int8_nodes))
    choice = ResidualChoice(tuple(more), float_us, int8_us, borrowed=ruled.profile is None)
    if choice.saved >= LEAST_SHARE:
        before, after = (predicted_divergence(work, which, progress) for which in (ruled, decision))
        choice = replace(choice, float_divergence=before, int8_divergence=after)
    return (decision if choice.chosen == "int8" else ruled), choice
