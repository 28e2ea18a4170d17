"""Gradients of whole models of every family against directional differences of the forward run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_hyvit.backward import build_backward, linear_loss

CORPUS = Path(__file__).parent.parent / "corpus"
TENSORS = 3
WITHOUT_RULE: dict[str, set[str]] = {}


def _one_file_per_architecture() -> list[str]:
    """The variant of the newest opset of each architecture, of both ways of exporting from torch in turn."""
    found: dict[str, str] = {}
    for record in sorted(json.loads((CORPUS / "index.json").read_text())["models"], key=lambda record: record["file"]):
        if record["actual_opset"] >= 16:
            found[record["architecture"]] = record["file"]
    return sorted(found.values())


def _feeds(proto: onnx.ModelProto, rng: np.random.Generator) -> dict[str, np.ndarray]:
    fixed = {tensor.name for tensor in proto.graph.initializer}
    feeds = {}
    for info in proto.graph.input:
        if info.name not in fixed:
            free = [1, 3, 64, 64]
            dims = info.type.tensor_type.shape.dim
            shape = [dim.dim_value or free[min(index, 3)] for index, dim in enumerate(dims)]
            feeds[info.name] = rng.normal(size=shape).astype(np.float32)
    return feeds


@pytest.mark.parametrize("file", _one_file_per_architecture())
def test_gradients_of_a_whole_model(file: str, run_model, load_model, observe_model, insert_deltas) -> None:
    proto = onnx.load(CORPUS / file)
    rng = np.random.default_rng(3)
    feeds = _feeds(proto, rng)
    values = observe_model(proto, feeds)
    shapes = {name: value.shape for name, value in values.items()}
    outputs = [info.name for info in proto.graph.output if values[info.name].dtype == np.float32]
    layers = [node for node in proto.graph.node if node.op_type in ("Conv", "MatMul", "Gemm", "Add")]
    targets = [
        name for node in layers for name in node.output if values[name].dtype == np.float32 and name not in outputs
    ]
    model = build_backward(proto, targets, linear_loss({name: shapes[name] for name in outputs}), shapes)
    assert {entry.op for entry in model.unsupported} == WITHOUT_RULE.get(file.split(".")[0], set())

    seeds = {name: rng.normal(size=shapes[name]).astype(np.float32) for name in outputs}
    found = run_model(model.proto, {**feeds, **{f"noise/{name}": seed for name, seed in seeds.items()}})
    count = min(TENSORS, len(model.gradients))
    chosen = [str(name) for name in rng.choice(list(model.gradients), count, replace=False)]
    moved = load_model(insert_deltas(proto, {name: shapes[name] for name in chosen}))
    still = {f"delta/{name}": np.zeros(shapes[name], np.float32) for name in chosen}
    size = max(float(np.linalg.norm(values[name])) for name in outputs)
    for target in chosen:
        gradient = found[f"grad/{target}"].astype(np.float64)
        direction = (np.sign(gradient) * rng.uniform(0.5, 1.5, gradient.shape)).astype(np.float32)
        expected = float((gradient * direction).sum())
        errors = []
        for change in (1e-1, 1e-2, 1e-3):  # of the output; rounding spoils small steps, curvature and kinks large ones
            step = np.float32(change * size / expected)
            ends = [moved({**feeds, **still, f"delta/{target}": sign * step * direction}) for sign in (1, -1)]
            rise = sum(float((seed.astype(np.float64) * (ends[0][n] - ends[1][n])).sum()) for n, seed in seeds.items())
            errors.append(abs(rise / (2 * float(step)) - expected))
        assert min(errors) <= 0.03 * expected, f"{target}: {errors}, expected {expected}"
