"""What the terminal says of a reconstruction, and of what was weighed before it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from onnx_hyvit import display_quantized


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
    display_quantized._reconstruction(Console(file=text, width=200), found)
    line = next(line for line in text.getvalue().splitlines() if "divergence" in line)
    assert line.endswith(words)


@pytest.mark.parametrize("held_out", [True, False])
def test_it_says_how_weightings_compared(held_out: bool) -> None:
    text = io.StringIO()
    found = {"weighting": "mse", "blocks": [], "divergence_before": 0.2, "divergence_after": 0.1, "kept": True}
    found["compared"] = {"samples": 32, "held_out": held_out, "divergence": {"mse": 0.01234, "fisher": 0.02}}
    display_quantized._reconstruction(Console(file=text, width=200), found)
    where = "32 samples held out" if held_out else "32 samples, too few to hold some out"
    assert f"on {where}: mse 0.0123, fisher 0.02" in text.getvalue()


def test_it_says_what_became_of_the_gelus() -> None:
    text = io.StringIO()
    entries = [{"replaced": True}, {"replaced": False}]
    display_quantized._gelus(Console(file=text, width=200), {"nodes": entries, "saved_us": 420.0, "divergence": 3e-5})
    assert "1 of 2 GELUs" in text.getvalue() and "0.42 ms less" in text.getvalue() and "3e-05" in text.getvalue()
    nothing = io.StringIO()
    for found in (None, {"nodes": entries[1:], "saved_us": 0.0, "divergence": 0.0}):
        display_quantized._gelus(Console(file=nothing, width=200), found)
    assert not nothing.getvalue()


def test_it_says_how_many_convolutions_were_padded() -> None:
    text, nothing = io.StringIO(), io.StringIO()
    found = {"found": 3, "convolutions": 5, "saved_us": 79.6, "regions": [{}]}
    display_quantized._channel_padding(Console(file=text, width=200), found)
    assert "5 convolutions have channels added" in text.getvalue() and "0.08 ms less" in text.getvalue()
    for silent in (None, {"found": 3, "convolutions": 0, "saved_us": 0.0, "regions": []}):
        display_quantized._channel_padding(Console(file=nothing, width=200), silent)
    assert not nothing.getvalue()


def test_it_says_what_became_of_the_residual_stream() -> None:
    text, nothing = io.StringIO(), io.StringIO()
    found = {"chosen": "float", "borrowed": True, "predicted_us": {"float": 200.0, "int8": 190.0}}
    found["predicted_divergence"] = {"float": 1e-4, "int8": 3e-4}
    display_quantized._residual(Console(file=text, width=200), found)
    assert (
        "in float: int8 saves about 5.0 %" in text.getvalue()
        and "0.0003 instead of 0.0001 (borrowed" in text.getvalue()
    )
    for silent in (None, {**found, "predicted_divergence": {"float": None, "int8": None}}):
        display_quantized._residual(Console(file=nothing, width=200), silent)
    assert not nothing.getvalue()


def test_it_says_which_activations_have_a_scale_per_channel() -> None:
    text, nothing = io.StringIO(), io.StringIO()
    choices = [
        {"fold": "affine", "shift": True, "granularity": "channel"},
        {"fold": "affine", "shift": True, "granularity": "channel"},
        {"fold": "attention", "shift": False, "granularity": "head"},
    ]
    found = {"sites": 7, "per_channel": choices, "added_nodes": 2}
    display_quantized._granularity(Console(file=text, width=200), found)
    assert "3 of 7 activations have a scale per channel or head" in text.getvalue()
    assert "(2 affine with shift, 1 attention by head), at the cost of 2 nodes in float" in text.getvalue()
    for silent in (None, {"sites": 0, "per_channel": [], "added_nodes": 0}):
        display_quantized._granularity(Console(file=nothing, width=200), silent)
    assert not nothing.getvalue()
