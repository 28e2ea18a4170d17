"""Check that each exported file computes what the .onnx computes, and how long it takes to load and to run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ValidationError
from ..runtime import INT8_OPTION, REPLAY_OPTION, RuntimeFailure, Session, benchmark, make_session

_REPLAYABLE = {"optimization.minimal_build_optimizations": "apply"}
_NCHWC = ("NchwcTransformer",)
UNFUSED = "Runtime without its option"  # far slower: timed apart, so that it does not clear the caches of the others
Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Form:
    """One way to load the model.

    Args:
        path: File.
        config: Session config entries that it is loaded with.
        reference: Entries under which the .onnx runs the same optimised graph; None when none does.
    """

    path: Path
    config: Mapping[str, str]
    reference: Mapping[str, str] | None = field(default=None)


def find_forms(onnx_file: Path, files: Mapping[str, Path], platform: str) -> dict[str, Form]:
    """The .onnx and its .ort files as a device would load them; ``files`` may lack the Runtime style."""
    base = {INT8_OPTION: "1" if platform == "arm" else "0"}
    forms = {"onnx": Form(onnx_file, base), "Fixed": Form(files["Fixed"], base, base)}
    if "Runtime" in files:
        forms["Runtime"] = Form(files["Runtime"], {**base, **REPLAY_OPTION}, {**base, **_REPLAYABLE})
        forms[UNFUSED] = Form(files["Runtime"], base)
    return forms


def loading_failure(form: Form, platform: str) -> str | None:
    """Why ONNX Runtime refuses a file that its own converter wrote; None when it loads."""
    try:
        open_form(form, form.config, platform, 1)
    except RuntimeFailure as error:
        return str(error)
    return None


def open_form(form: Form, config: Mapping[str, str], platform: str, threads: int) -> Session:
    """A session with the sums of the processor as it is.

    The conversion bakes the kernels in, so the session option for exact sums does nothing for an .ort file. Both sides
    of a comparison must therefore do without it. The .onnx also leaves out the layouts that the converter leaves out.
    """
    without = _NCHWC if platform != "amd64" else ()
    return make_session(form.path, threads=threads, config=config, exact_sums=False, disabled_optimizers=without)


def check_forms(forms: Mapping[str, Form], feeds: Sequence[Feeds], platform: str) -> dict[str, dict[str, Any]]:
    """Compare every .ort file with the .onnx in the same session settings.

    Returns:
        Name of the form -> ``identical`` (None without a reference) and ``max_difference`` to the plain .onnx session.

    Raises:
        ValidationError: A file does not give the bits that the .onnx gives.
    """
    plain = forms["onnx"]
    expected = _run(open_form(plain, plain.config, platform, 1), feeds)
    results = {}
    for name, form in forms.items():
        found = _run(open_form(form, form.config, platform, 1), feeds)
        identical = None
        if form.reference is not None:
            same = _run(open_form(plain, form.reference, platform, 1), feeds)
            identical = all(
                np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(same, found, strict=True)
            )
            if not identical:
                worst = f"up to {_difference(same, found):g}"
                raise ValidationError(f"{form.path.name}: differs from the .onnx by {worst}; nothing was written")
        results[name] = {"identical": identical, "max_difference": _difference(expected, found)}
    return results


def _run(session: Session, feeds: Sequence[Feeds]) -> list[np.ndarray]:
    return [value for feed in feeds for value in session.run(feed).values()]


def _difference(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    pairs = zip(expected, found, strict=True)
    return max(
        (float(np.nanmax(np.abs(a.astype(np.float64) - b), initial=0.0)) for a, b in pairs if a.dtype.kind in "fiu"),
        default=0.0,
    )


def time_forms(
    forms: Mapping[str, Form], feeds: Feeds, platform: str, *, threads: int, runs: int
) -> dict[str, dict[str, float]]:
    """Median load and run times in ms; the forms take turns, so that a drift of the machine hits all of them alike."""
    loads: dict[str, list[float]] = {name: [] for name in forms}
    sessions: dict[str, Session] = {}
    for turn in range(-1, runs):
        for name, form in forms.items():
            start = time.perf_counter()
            sessions[name] = open_form(form, form.config, platform, threads)
            if turn >= 0:
                loads[name].append((time.perf_counter() - start) * 1e3)
    rivals = {name: session for name, session in sessions.items() if name != UNFUSED}
    timed = benchmark(rivals, feeds, runs=runs)
    if UNFUSED in sessions:
        timed |= benchmark({UNFUSED: sessions[UNFUSED]}, feeds, runs=runs)
    return {
        name: {"load_ms": round(statistics.median(loads[name]), 2), "run_ms": round(timed[name].median_ms, 3)}
        for name in forms
    }
