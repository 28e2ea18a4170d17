"""What a check for a target finds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Breach:
    """A rule of a target that a model breaks.

    Args:
        node: Name of the node or input.
        problem: What it is and what the target takes.
        advice: What to do.
    """

    node: str
    problem: str
    advice: str

    def __str__(self) -> str:
        return f"{self.node}: {self.problem}; {self.advice}"
