"""Time of every node that a session really runs, from ONNX Runtime's profiler."""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError
from .session import ModelSource, make_session

_SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class NodeTime:
    """What one node of the optimised graph took.

    Args:
        name: Name in the optimised graph.
        op: Operator that runs, such as ``QLinearConv``.
        dtype: Type of its first input in the runtime's words: ``float``, ``uint8`` ...
        inputs: Shapes of its inputs, weights included; absent ones are left out.
        outputs: Shapes of its outputs.
        us: Microseconds: the ``quantile`` asked for, over all runs.
    """

    name: str
    op: str
    dtype: str
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    us: float


def profile_nodes(
    model: ModelSource,
    feeds: Mapping[str, np.ndarray],
    *,
    runs: int = 20,
    warmup: int = 3,
    threads: int = 1,
    quantile: float = 0.25,
    exact_sums: bool = False,
) -> list[NodeTime]:
    """Run a model with the profiler on, and give the time of each node.

    Times are whole microseconds in the profiler, so the mean of the faster runs is taken: a low quantile leaves out
    the runs in which another process had the core.

    Args:
        model: Model as for ``make_session``.
        feeds: One batch.
        runs: Timed runs, 1 or more.
        warmup: Runs before that.
        threads: Threads inside an operator.
        quantile: Share of the runs, the fastest ones, whose mean is reported: above 0, at most 1.
        exact_sums: As for ``make_session``; False is the session that a user gets.

    Returns:
        One entry per node, in the order in which they ran.

    Raises:
        ConfigError: ``runs`` or ``quantile`` is out of range.
        RuntimeFailure: The model cannot be loaded or run.
    """
    if runs < 1 or not 0 < quantile <= 1:
        raise ConfigError(f"runs must be 1 or more and quantile above 0 to 1, found {runs} and {quantile}")
    with tempfile.TemporaryDirectory(prefix="onnx_hyvit_") as folder:
        session = make_session(
            model, threads=threads, exact_sums=exact_sums, profile_prefix=os.path.join(folder, "profile")
        )
        for _ in range(warmup + runs):
            session.run(feeds)
        with open(session.end_profiling(), encoding="utf-8") as file:
            events = json.load(file)
    return _node_times(events, runs, quantile)


def _node_times(events: list[dict[str, Any]], runs: int, quantile: float) -> list[NodeTime]:
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX)]
    taken: dict[tuple[str, str], list[float]] = defaultdict(list)
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for event in kernels:
        key = event["name"], event["args"].get("node_index", "")
        taken[key].append(float(event["dur"]))
        first.setdefault(key, event["args"])
    keep = max(1, round(quantile * runs))
    return [
        NodeTime(
            name=key[0].removesuffix(_SUFFIX),
            op=str(args["op_name"]),
            dtype=next(iter(args["input_type_shape"][0]), "") if args["input_type_shape"] else "",
            inputs=_shapes(args["input_type_shape"]),
            outputs=_shapes(args["output_type_shape"]),
            us=float(np.mean(sorted(taken[key][-runs:])[:keep])),
        )
        for key, args in first.items()
    ]


def _shapes(entries: list[dict[str, list[int]]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(size) for size in shape) for entry in entries for shape in entry.values())
