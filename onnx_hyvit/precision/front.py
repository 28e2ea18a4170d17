"""What may be spent on precision, and the steps that were taken: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Budget:
    """What may be spent.

    Args:
        share: Of the plan's predicted time, 0 to 1; at 0 steps that cost nothing are taken, below 0 none.
        rate: A step must take away at least this many times the share of divergence that it costs of the time.
        least: It must take away this much divergence for the whole time, and for a share of it that share of it:
            where outputs hardly move, nothing is worth time.
        most: What may be spent instead of ``share`` while the divergence is above ``sound``.
        sound: Predicted divergence below which a model is sound.
        limit: Divergence that must be reached, whatever it costs; None asks for nothing.
        layers: Whether layers (units with weights) may become float while no limit asks for it.
        bytes: What a share of the weights' bytes counts beside the same share of time; a weight takes three more in
            float.
    """

    share: float
    rate: float
    least: float = 0.0
    most: float = 0.0
    sound: float = float("inf")
    limit: float | None = None
    layers: bool = True
    bytes: float = 0.0


@dataclass(frozen=True)
class Step:
    """One step towards float.

    Args:
        nodes: Names of the nodes that became float, or got 16-bit activations.
        cost_us: Microseconds that it costs, negative where it gains.
        divergence: Predicted divergence after it.
        wide: Whether they got 16-bit activations.
    """

    nodes: tuple[str, ...]
    cost_us: float
    divergence: float
    wide: bool = False

    @property
    def to(self) -> str:
        """What its nodes became: ``float`` or ``16 bits``."""
        return "16 bits" if self.wide else "float"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for reports."""
        cost = round(self.cost_us, 2)
        return {"nodes": list(self.nodes), "to": self.to, "cost_us": cost, "divergence": self.divergence}


@dataclass(frozen=True)
class Front:
    """The steps from the plan towards float.

    Args:
        divergence: Predicted divergence of the plan.
        int8_us: Its predicted microseconds.
        steps: The steps, in the order in which they were taken.
    """

    divergence: float
    int8_us: float
    steps: tuple[Step, ...]

    def float_nodes(self) -> dict[str, str]:
        """Nodes that are float after all steps, each with the reason."""
        return {name: reason for name, (to, reason) in self._reasons().items() if to == "float"}

    def wide_nodes(self) -> dict[str, str]:
        """Nodes that have 16-bit activations after all steps, each with the reason."""
        return {name: reason for name, (to, reason) in self._reasons().items() if to != "float"}

    def _reasons(self) -> dict[str, tuple[str, str]]:
        """Node -> what it is after all steps, and why: the last step that it was part of says that."""
        found: dict[str, tuple[str, str]] = {}
        before = self.divergence
        for step in self.steps:
            saved, before = (before - step.divergence) / self.divergence, step.divergence
            reason = f"{step.to} here takes away {saved:.1%} of the predicted divergence for {step.cost_us:.3g} us"
            found |= dict.fromkeys(step.nodes, (step.to, reason))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for reports."""
        return {
            "predicted_divergence": self.divergence,
            "predicted_int8_us": round(self.int8_us, 1),
            "steps": [step.to_dict() for step in self.steps],
        }
