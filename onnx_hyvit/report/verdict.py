"""The verdict on a quantized model, and what to do next."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass
from typing import Any

from .results import Results
from .values import items, mapping, mappings, number, percent, text

GOOD_AGREEMENT, FAIR_AGREEMENT = 0.99, 0.97
GOOD_DROP, FAIR_DROP = 0.005, 0.02
GOOD_SQNR, FAIR_SQNR = 25.0, 15.0
FEW_SAMPLES = 200
STEPS_OF_DEBUG = 3


@dataclass(frozen=True)
class Step:
    """Something to do: a sentence, and a command where there is one."""

    text: str
    command: str = ""


@dataclass(frozen=True)
class Verdict:
    """``level`` is good, fair, bad or unknown; ``text`` one or two sentences; ``steps`` what to do next."""

    level: str
    text: str
    steps: tuple[Step, ...]


def find_verdict(results: Results) -> Verdict:
    """Judge accuracy before speed before size, and say what to do."""
    if not results.compare:
        return Verdict(
            "unknown", "Quantized, and not yet measured against the float model.", tuple(_unmeasured(results))
        )
    level, sentence = _accuracy(results)
    speed = number(mapping(results.compare.get("latency")).get("speedup"))
    if results.compare.get("fused_matches_unfused") is False:
        level, sentence = "bad", "A kernel of the runtime computes something else than the file says."
    elif speed is not None and speed < 1 and level == "good":
        level, sentence = "fair", f"{sentence} But it is slower than the float model."
    return Verdict(level, sentence, tuple(_steps(results, level, speed)))


def _accuracy(results: Results) -> tuple[str, str]:
    compare = results.compare
    accuracy, agreement = mapping(compare.get("accuracy")), number(compare.get("top1_agreement"))
    before, after = number(accuracy.get("float_top1")), number(accuracy.get("int8_top1"))
    if before is not None and after is not None:
        drop = before - after
        level = "good" if drop <= GOOD_DROP else "fair" if drop <= FAIR_DROP else "bad"
        if drop <= 0:
            return level, "The int8 model is as accurate as the float model."
        return level, f"The int8 model loses {100 * drop:.2f} points of accuracy."
    if agreement is not None:
        level = "good" if agreement >= GOOD_AGREEMENT else "fair" if agreement >= FAIR_AGREEMENT else "bad"
        return (
            level,
            f"The int8 model gives the same answer as the float model for {percent(agreement)} of the samples.",
        )
    ratios = [number(mapping(output).get("sqnr_db")) for output in mapping(compare.get("outputs")).values()]
    worst = min((ratio for ratio in ratios if ratio is not None), default=None)
    if worst is None:
        return "unknown", "The result holds no measure of accuracy."
    level = "good" if worst >= GOOD_SQNR else "fair" if worst >= FAIR_SQNR else "bad"
    return level, f"The outputs are {worst:.1f} dB above their error."


def interval(share: float, samples: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share that was seen in ``samples`` samples."""
    z = 1.96
    middle = (share + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z / (1 + z * z / samples) * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    return max(0.0, middle - half), min(1.0, middle + half)


def _pair(results: Results) -> str:
    float_name = text(results.compare.get("float") or mapping(results.quantize.get("found")).get("model"), "FLOAT.onnx")
    int8_name = text(results.compare.get("int8") or results.quantize.get("output"), "INT8.onnx")
    return f"{shlex.quote(float_name)} {shlex.quote(int8_name)}"


def _unmeasured(results: Results) -> list[Step]:
    steps = [
        Step(
            "Measure accuracy and speed on images that calibration did not see.",
            f"onnx-hyvit compare {_pair(results)} --data IMAGES --labels LABELS.csv --report report.html",
        )
    ]
    steps += [Step(text(finding)) for finding in items(results.quantize.get("findings"))[:5] if text(finding)]
    return steps


def _steps(results: Results, level: str, speed: float | None) -> list[Step]:
    compare, steps = results.compare, []
    if compare.get("fused_matches_unfused") is False:
        culprit = text(mapping(compare.get("fused")).get("culprit"), "see the fused entry of the result")
        steps.append(Step(f"Do not ship this file: {culprit}. Keep that node float (float_nodes) and quantize again."))
    if text(compare.get("saturation")):
        steps.append(Step(text(compare.get("saturation"))))
    advice = [line for line in mappings(results.debug.get("advice")) if text(line.get("text"))]
    if advice and level != "good":
        steps += [_from_advice(line) for line in advice[:STEPS_OF_DEBUG]]
    elif level in ("fair", "bad") and not results.debug:
        steps.append(
            Step(
                "Find the blocks and tensors that lose accuracy, and the option that cures it.",
                f"onnx-hyvit debug {_pair(results)} --data IMAGES",
            )
        )
    steps += _speed_steps(results, speed)
    samples = number(compare.get("samples"))
    if samples is not None and samples < FEW_SAMPLES:
        steps.append(Step(f"Measured on {samples:.0f} samples only: use {FEW_SAMPLES} or more before you decide."))
    if not compare.get("accuracy") and compare.get("top1_agreement") is not None:
        steps.append(Step("Give --labels to see accuracy beside agreement: a changed answer may be a better one."))
    if level == "good" and not steps:
        steps.append(Step("Ship it: accuracy and speed hold on these samples."))
    return steps


def _from_advice(line: dict[str, Any]) -> Step:
    words = text(line.get("text"))
    nodes = [text(node) for node in items(line.get("float_nodes"))]
    return Step(f"{words[:1].upper()}{words[1:]}.", f"float_nodes = {json.dumps(nodes)}" if nodes else "")


def _speed_steps(results: Results, speed: float | None) -> list[Step]:
    if speed is None or speed >= 1.05:
        return []
    audit = mapping(results.compare.get("audit"))
    stuck = len(items(audit.get("dequantized_weights"))) + len(items(audit.get("orphan_pairs")))
    if stuck:
        return [
            Step(
                f"{stuck} nodes dequantize at run time without an int8 kernel: quantize again with this tool's "
                "target for your runtime (--target)."
            )
        ]
    return [
        Step(
            "Time it on the processor that will run it: int8 pays on processors with VNNI, AMX or ARM dot products, "
            "and on larger inputs; small models are ruled by fixed costs."
        )
    ]
