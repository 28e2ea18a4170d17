"""Does the session that ONNX Runtime deploys agree with the Q/DQ graph as it is written? If not, which kernel is wrong?

Small differences are normal: an integer kernel may round to the neighbouring code, and a deep net amplifies that. So a
difference of the outputs alone accuses nobody. The graph is therefore cut at every tensor of codes, and each stretch is
run from the very codes that the unfused graph has there; a kernel that is right then differs by one code at most.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from ..graph.io import infer_shapes
from ..graph.region import extract_region, names_read_by_bodies
from ..runtime import OptimizationLevel, make_session, optimized_model

PLAIN_OPS = frozenset({"QuantizeLinear", "DequantizeLinear", "Clip", "Transpose", "Reshape", "Squeeze", "Unsqueeze"})
FLOAT_TOLERANCE = 1e-3
_ENTERING = "::entering"


@dataclass(frozen=True)
class FusedReport:
    """Outcome of ``compare_fused``.

    Args:
        matches: Whether every kernel gives what the Q/DQ graph says, up to one code.
        max_diff: Largest difference of a graph output, in units of that output.
        relative_diff: The same, relative to the output's largest absolute value.
        culprit: The first kernel at fault: node, operator that really runs, and by how much; None when all agree.
        node: Name of that node, None when all agree.
        kernel: Operator that the optimised graph runs there, None when all agree.
    """

    matches: bool
    max_diff: float
    relative_diff: float
    culprit: str | None = None
    node: str | None = None
    kernel: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values (JSON)."""
        return dataclasses.asdict(self)


def compare_fused(
    proto: onnx.ModelProto,
    feeds: Mapping[str, np.ndarray],
    *,
    level: OptimizationLevel = "all",
    codes: int = 1,
    threads: int = 2,
) -> FusedReport:
    """Compare the optimised session with the unoptimised one, and name the kernel at fault.

    Args:
        proto: A QDQ model.
        feeds: One batch of inputs.
        level: Optimisation level to check against ``none``.
        codes: How far the codes of one stretch may be apart, in steps.
        threads: Threads of the sessions.

    Raises:
        RuntimeFailure: The model cannot be loaded or run at one of the two levels.
    """
    plain = run_unfused(proto, feeds, threads)
    return compare_level(proto, feeds, plain, level=level, codes=codes, threads=threads)[0]


def run_unfused(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray], threads: int = 2) -> dict[str, np.ndarray]:
    """Values of all codes and graph outputs when the graph runs as it is written."""
    exposed = _with_outputs(proto, _cuts(proto))
    return make_session(exposed, optimize="none", threads=threads, name="unfused model").run(feeds)


def compare_level(
    proto: onnx.ModelProto,
    feeds: Mapping[str, np.ndarray],
    plain: Mapping[str, np.ndarray],
    *,
    level: OptimizationLevel,
    codes: int = 1,
    threads: int = 2,
    config: Mapping[str, str] | None = None,
) -> tuple[FusedReport, dict[str, np.ndarray]]:
    """``compare_fused`` with the unfused values at hand (see ``run_unfused``), and the outputs of the whole session."""
    fused = make_session(proto, optimize=level, threads=threads, name="fused model", config=config).run(feeds)
    diffs = [(_largest(plain[name], fused[name]), _largest(plain[name], 0)) for name in fused]
    max_diff = max((diff for diff, _ in diffs), default=0.0)
    relative = max((diff / (size or 1.0) for diff, size in diffs), default=0.0)
    cut = _cut_model(proto, plain)
    entering = {**feeds, **{name + _ENTERING: plain[name] for name in _cuts(proto)}}
    entering = {value.name: entering[value.name] for value in cut.graph.input}
    name = "fused model, cut at its codes"
    found = make_session(cut, optimize=level, threads=threads, name=name, config=config).run(entering)
    for name, value in found.items():
        if not _agree(plain[name], value, codes):
            report = _accuse(proto, plain, feeds, name, _largest(plain[name], value), level, config)
            return dataclasses.replace(report, max_diff=max_diff, relative_diff=relative), fused
    return FusedReport(True, max_diff, relative), fused


def _largest(a: np.ndarray, b: np.ndarray | float) -> float:
    """Largest absolute difference; infinite where there is NaN."""
    if isinstance(b, np.ndarray) and a.dtype == b.dtype and a.dtype in (np.int8, np.uint8):
        return float(np.abs(np.subtract(a, b, dtype=np.int16)).max(initial=0))
    largest = float(np.abs(np.subtract(a, b, dtype=np.float64)).max(initial=0.0))
    return math.inf if math.isnan(largest) else largest  # max passes NaN on


def _cuts(proto: onnx.ModelProto) -> list[str]:
    """Tensors of codes, in graph order: what Q writes, or the Clip behind it."""
    clipped = {node.input[0]: node.output[0] for node in proto.graph.node if node.op_type == "Clip"}
    return [
        clipped.get(node.output[0], node.output[0]) for node in proto.graph.node if node.op_type == "QuantizeLinear"
    ]


def _with_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy with more outputs, all typed."""
    inferred = infer_shapes(proto)
    exposed = onnx.ModelProto()
    exposed.CopyFrom(inferred)
    types = {value.name: value for value in inferred.graph.value_info}
    present = {value.name for value in exposed.graph.output}
    for name in names:
        if name not in present:
            exposed.graph.output.append(types.get(name) or onnx.helper.make_empty_tensor_value_info(name))
    return exposed


def _cut_model(proto: onnx.ModelProto, plain: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The model with each tensor of codes cut: what makes it writes an output, what reads it reads an input."""
    cuts = set(_cuts(proto))
    cut = onnx.ModelProto()
    cut.CopyFrom(proto)
    del cut.graph.value_info[:]
    for node in cut.graph.node:
        for index, name in enumerate(node.input):
            if name in cuts:
                node.input[index] = name + _ENTERING
    for name in _cuts(proto):
        cut.graph.input.append(_info(name + _ENTERING, plain[name]))
        if name not in {value.name for value in proto.graph.output}:
            cut.graph.output.append(_info(name, plain[name]))
    return cut


def _info(name: str, value: np.ndarray) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def _agree(plain: np.ndarray, fused: np.ndarray, codes: int) -> bool:
    if plain.shape != fused.shape:
        return False
    if plain.dtype.itemsize == 2 and plain.dtype.kind in "iu":
        codes = max(codes, int(FLOAT_TOLERANCE * 2**16))  # made by float kernels
    allowed = codes if plain.dtype.kind in "iu" else FLOAT_TOLERANCE * max(_largest(plain, 0.0), 1e-6)
    return _largest(plain, fused) <= allowed


def _stretch(
    exposed: onnx.ModelProto, output: str, known: set[str], values: Mapping[str, np.ndarray]
) -> onnx.ModelProto:
    """The nodes between ``output`` and the nearest known tensors before it, as a model."""
    producer = {name: node for node in exposed.graph.node for name in node.output if name}
    entering: list[str] = []
    pending, seen = list(producer[output].input), set()
    while pending:
        name = pending.pop()
        if name in seen or not name:
            continue
        seen.add(name)
        if name in known:
            entering.append(name)
        elif name in producer:
            pending.extend(producer[name].input)
            pending.extend(names_read_by_bodies(producer[name]))
    stretch = extract_region(exposed, sorted(entering), [output])
    for value in stretch.graph.input:
        array = values[value.name]
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, list(array.shape)))
    return stretch


def _accuse(
    proto: onnx.ModelProto,
    plain: Mapping[str, np.ndarray],
    feeds: Mapping[str, np.ndarray],
    output: str,
    difference: float,
    level: OptimizationLevel,
    config: Mapping[str, str] | None,
) -> FusedReport:
    """Name the node and the kernel that make ``output`` wrong."""
    known = {*feeds, *_cuts(proto)}
    stretch = _stretch(_with_outputs(proto, _cuts(proto)), output, known, {**feeds, **plain})
    written = {node.op_type for node in stretch.graph.node}
    kernels = [node.op_type for node in optimized_model(stretch, level=level, config=config).graph.node]
    replaced = [op for op in kernels if op not in written and op not in PLAIN_OPS]
    nodes = [node for node in stretch.graph.node if node.op_type not in PLAIN_OPS]
    culprit = next((node for node in reversed(nodes) if any(node.op_type in op for op in replaced)), None)
    culprit = culprit or (nodes[-1] if nodes else stretch.graph.node[-1])
    kernel = next((op for op in replaced if culprit.op_type in op), replaced[0] if replaced else culprit.op_type)
    text = (
        f"node {culprit.name!r} ({culprit.op_type}) runs as {kernel} and is off by up to {difference:g} at {output!r}"
    )
    return FusedReport(False, 0.0, 0.0, text, culprit.name, kernel)
