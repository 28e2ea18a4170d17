"""What the terminal says of a reconstruction."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from onnx_hyvit import display


@pytest.mark.parametrize(
    ("before", "after", "kept", "words"),
    [
        (0.002, 0.001, True, "0.002 -> 0.001"),
        (0.001, 0.0012, True, "0.001 -> 0.0012 (used: chance explains the rise)"),
        (0.001, 0.01, False, "0.001 -> 0.01 (worse: not used)"),
    ],
)
def test_it_says_whether_a_reconstruction_is_used(before: float, after: float, kept: bool, words: str) -> None:
    text = io.StringIO()
    found = {"weighting": "mse", "blocks": [], "divergence_before": before, "divergence_after": after, "kept": kept}
    display._reconstruction(Console(file=text, width=200), found)
    line = next(line for line in text.getvalue().splitlines() if "divergence" in line)
    assert line.endswith(words)
