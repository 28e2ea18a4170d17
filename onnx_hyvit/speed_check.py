"""Time the int8 model against the float one on this machine, and take blocks back to float until it is not slower.

Clocks decide here, so the same input may end in different models: it is done only when asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from .runtime import Progress, Ratio, Session, make_session, paired_ratio, take_turns

RUNS = 60
SECONDS = 6.0
Build = Callable[[Mapping[str, str]], onnx.ModelProto]


@dataclass(frozen=True)
class SpeedCheck:
    """What the timing led to.

    Args:
        verdict: ``faster`` or ``even`` (the int8 model is kept as it was), ``blocks`` (some went back to float),
            ``float`` (all of it did), ``slower`` (nothing found is as fast as the float file).
        speedup: Latency of the float file over that of what was chosen.
        before: The same for the int8 model as it came.
        float_nodes: Nodes that went back to float, with the reason.
        all_float: Whether the rewritten float model was chosen.
        tried: Blocks that were tried in float, in order, each with its ratio of times and whether it was kept.
    """

    verdict: str
    speedup: Ratio
    before: Ratio
    float_nodes: Mapping[str, str] = field(default_factory=dict)
    all_float: bool = False
    tried: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the report."""
        return {
            "verdict": self.verdict,
            "speedup": _plain(self.speedup),
            "speedup_before": _plain(self.before),
            "float_nodes": dict(self.float_nodes),
            "blocks": list(self.tried),
        }


def check_speed(
    original: Session,
    rewritten: onnx.ModelProto,
    quantized: onnx.ModelProto,
    blocks: Mapping[str, Sequence[str]],
    build: Build,
    feed: Mapping[str, np.ndarray],
    threads: int,
    progress: Progress | None = None,
) -> SpeedCheck:
    """Find a model that is not slower than the float file, beginning with the int8 one.

    A model is slower when the 95 % interval of the paired ratios of its times says so. Each block is tried in float, in
    order, on top of what was kept before it; it stays float when that is faster. If the result is still slower than the
    float file, the rewritten float model takes its place, unless that is slower than it.

    Args:
        original: Session of the float file as the user has it, with default options.
        rewritten: Float model after the exact rewrites.
        quantized: The int8 model.
        blocks: Block name -> int8 nodes in it, in graph order.
        build: Makes the int8 model with more nodes float, each with its reason; scales need not be right.
        feed: What all of them are run on.
        threads: Threads inside an operator.
        progress: Called as ``progress(done, total, text)``.

    Returns:
        What was found; when ``float_nodes`` are not empty, the caller builds that model with right scales.
    """

    def session(proto: onnx.ModelProto, name: str) -> Session:
        return make_session(proto, threads=threads, name=name, exact_sums=False)

    current = session(quantized, "int8")
    before = speedup = _ratio(original, current, feed)
    if speedup.high >= 1:
        return SpeedCheck("faster" if speedup.low > 1 else "even", speedup, before)
    kept: dict[str, str] = {}
    tried = []
    for done, (name, nodes) in enumerate(blocks.items()):
        reason = f"block {name} is faster in float on this machine"
        more = {**kept, **dict.fromkeys(nodes, reason)}
        candidate = session(build(more), name)
        gain = _ratio(current, candidate, feed)
        tried.append({"block": name, "faster": _plain(gain), "kept": gain.low > 1})
        if gain.low > 1:
            kept, current = more, candidate
        if progress:
            progress(done + 1, len(blocks), "timing blocks in float")
    if kept:
        speedup = _ratio(original, current, feed)
        if speedup.high >= 1:
            return SpeedCheck("blocks", speedup, before, kept, tried=tuple(tried))
    plain = session(rewritten, "rewritten float")
    floats = _ratio(original, plain, feed)
    if floats.high >= 1:
        return SpeedCheck("float", floats, before, all_float=True, tried=tuple(tried))
    if floats.median > speedup.median:
        return SpeedCheck("slower", floats, before, all_float=True, tried=tuple(tried))
    return SpeedCheck("slower", speedup, before, kept, tried=tuple(tried))


def group_by_block(
    nodes: Sequence[str], int8_nodes: Sequence[str], blocks: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Int8 nodes of each block.

    Args:
        nodes: Names of all nodes of the rewritten graph, in order.
        int8_nodes: Those that may go back to float.
        blocks: Block name -> names of its nodes before the last rewrites; a node that came later belongs to the block
            of the node before it.
    """
    home = {name: block for block, names in blocks.items() for name in names}
    wanted, grouped = set(int8_nodes), {}  # type: set[str], dict[str, list[str]]
    block = next(iter(blocks), "all")
    for name in nodes:
        block = home.get(name, block)
        if name in wanted:
            grouped.setdefault(block, []).append(name)
    return grouped


def _ratio(above: Session, below: Session, feed: Mapping[str, np.ndarray]) -> Ratio:
    """How many times longer ``above`` takes."""
    taken = take_turns({"above": above, "below": below}, feed, RUNS, seconds=SECONDS)
    return paired_ratio(taken["above"], taken["below"])


def _plain(ratio: Ratio) -> dict[str, float]:
    return {"median": round(ratio.median, 4), "low": round(ratio.low, 4), "high": round(ratio.high, 4)}
