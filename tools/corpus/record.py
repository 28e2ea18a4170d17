"""What the index says about a corpus file, and how a file is cleaned, checked and written.

Nothing here imports a training framework: only numpy, onnx and onnxruntime, which each framework's
environment has anyway.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

DROPPED_NODE_METADATA = ("pkg.torch.onnx.", "namespace", "pkg.onnxscript.", "pkg.jax2onnx.")
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:[\w.+-]+/)+[\w.+-]+\.py\S*")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One reduced model and what a person counts in it.

    Attributes:
        name: unique name, the first part of the file name.
        family: family of models that it stands for.
        build: returns the framework's model with random weights; deterministic.
        shape: input shape for one sample, in the framework's own layout.
        bridges: entries from convolution features into a token region with attention, counted by hand.
        attentions: attention computations (softmax or linear) in one forward pass.
        note: how `bridges` was counted.
        exporters: labels of the exporters that write it.
        dynamic_width: whether exporters of the dynamic kind also leave the last axis open.
        source: package which the model comes from; the framework itself where this corpus defines it.
    """

    name: str
    family: str
    build: Callable[[], Any]
    shape: tuple[int, ...]
    bridges: int
    attentions: int
    note: str
    exporters: tuple[str, ...] = ()
    dynamic_width: bool = False
    source: str = "torch"


@dataclasses.dataclass(frozen=True)
class Export:
    """One way of writing a model to ONNX.

    Attributes:
        label: unique name, the second part of the file name.
        kind: name of the exporter.
        opset: the opset that is asked for; None leaves the exporter's default.
        dynamic: whether a dynamic batch axis is asked for.
        eager: whether attention is spelled out (q @ k, softmax, @ v) in the framework instead of fused.
    """

    label: str
    kind: str
    opset: int | None
    dynamic: bool
    eager: bool = False


def seeded_input(shape: tuple[int, ...], seed: int = 7) -> np.ndarray:
    """Standard normal float32 input of `shape`."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def strip_machine_details(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drops source paths and call stacks, which exporters store and which depend on the machine.

    The graph itself (nodes, names, attributes, initializers, value_info) stays as it was written.
    """
    _strip_graph(model.graph)
    for function in model.functions:
        _strip_nodes(function.node)
        _drop_metadata(function)
    model.graph.doc_string = MACHINE_PATH.sub("", model.graph.doc_string)
    model.doc_string = MACHINE_PATH.sub("", model.doc_string)
    return model


def _strip_graph(graph: onnx.GraphProto) -> None:
    _drop_metadata(graph)
    _strip_nodes(graph.node)
    for value in [*graph.value_info, *graph.input, *graph.output, *graph.initializer]:
        _drop_metadata(value)
    for value in [*graph.value_info, *graph.input, *graph.output]:
        value.doc_string = ""


def _strip_nodes(nodes: Any) -> None:
    for node in nodes:
        node.doc_string = ""
        _drop_metadata(node)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _strip_graph(attribute.g)


def _drop_metadata(proto: Any) -> None:
    kept = [p for p in proto.metadata_props if not p.key.startswith(DROPPED_NODE_METADATA)]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Runs `model` on the CPU with ONNX Runtime, one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def write(
    path: Path,
    model: onnx.ModelProto,
    architecture: Architecture,
    export: Export,
    version: str,
    sample: np.ndarray,
    expected: list[np.ndarray],
) -> dict[str, Any]:
    """Cleans, checks and writes one file.

    Args:
        path: where the file goes.
        model: what the exporter made.
        architecture: what it was made from.
        export: how it was made.
        version: the exporter's version.
        sample: one input batch, in the layout of the graph's input.
        expected: the framework's own outputs for `sample`.

    Returns:
        The record for the index.

    Raises:
        ValueError: the outputs differ, or are constant or not finite.
    """
    strip_machine_details(model)
    complaint = check(model)
    text = model.SerializeToString()
    if re.search(rb"/(?:home|opt|work|usr|tmp|root)/", text):
        raise ValueError("the file names a path of the machine that made it")
    feeds = {model.graph.input[0].name: sample}
    error = max_difference(run(model, feeds), expected)
    path.write_bytes(text)
    return {
        "file": path.name,
        "family": architecture.family,
        "architecture": architecture.name,
        "source": f"{architecture.source} {importlib.metadata.version(architecture.source)}",
        "exporter": export.kind,
        "exporter_version": version,
        "attention_spelling": "eager" if export.eager else "framework default",
        "requested_opset": export.opset,
        "actual_opset": next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
        "dynamic_batch": export.dynamic,
        "input": describe(model.graph.input[0]),
        "outputs": [describe(o) for o in model.graph.output],
        "parameters": parameter_count(model),
        "bytes": len(text),
        "sha256": hashlib.sha256(text).hexdigest(),
        "max_abs_diff": float(f"{error:.3g}"),
        "expected_bridges": architecture.bridges,
        "expected_attentions": architecture.attentions,
        "bridge_note": architecture.note,
        **({"checker_complaint": complaint} if complaint else {}),
    }


def check(model: onnx.ModelProto) -> str:
    """Checks `model`; returns why its stored shapes are wrong ("" if they are right), which some exporters let pass."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.shape_inference.InferenceError as error:
        onnx.checker.check_model(model)
        return one_line(error)
    return ""


def max_difference(actual: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Largest absolute difference, after checking that outputs are finite, alive and about the same."""
    if len(actual) != len(expected):
        raise ValueError(f"{len(actual)} outputs, but the framework has {len(expected)}")
    worst = 0.0
    for a, e in zip(actual, expected, strict=True):
        if a.shape != e.shape:
            raise ValueError(f"output of shape {a.shape}, but the framework's is {e.shape}")
        if not np.isfinite(a).all() or a.std() < 1e-3 or np.abs(a).max() > 1e3:
            raise ValueError(f"output is not sane: std {a.std():.3g}, max {np.abs(a).max():.3g}")
        difference = float(np.abs(a - e).max())
        if difference > 1e-4 * max(1.0, float(np.abs(e).max())):
            raise ValueError(f"differs from the framework by {difference:.3g}")
        worst = max(worst, difference)
    return worst


def describe(value: onnx.ValueInfoProto) -> dict[str, Any]:
    """Name and shape of a graph input or output; open axes are strings."""
    dims = value.type.tensor_type.shape.dim
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims]
    return {"name": value.name, "shape": shape}


def parameter_count(model: onnx.ModelProto) -> int:
    """Number of float values in initializers and Constant nodes."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    tensors = [*model.graph.initializer]
    tensors += [a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"]
    return int(sum(np.prod(t.dims, dtype=np.int64) for t in tensors if t.data_type in floats))


def merge_index(path: Path, section: str, records: list[dict[str, Any]], failures: list[dict[str, Any]]) -> None:
    """Puts `records` and `failures` into the index file, replacing those of the same file."""
    with open(path, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # frameworks may run side by side
        file.seek(0)
        index: dict[str, Any] = json.loads(file.read() or '{"schema": 1}')
        done = {record["file"] for record in [*records, *failures]}
        for name in ("models", "edge", "failures"):
            new = records if name == section else failures if name == "failures" else []
            kept = [record for record in index.get(name, []) if record["file"] not in done]
            index[name] = sorted([*kept, *new], key=lambda record: record["file"])
        file.truncate(0)
        file.write(json.dumps(index, indent=1) + "\n")


def one_line(error: BaseException) -> str:
    """First useful line of an error, without paths."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {MACHINE_PATH.sub('', lines[0] if lines else '')}"[:240]
