"""Writes PaddlePaddle models with paddle2onnx."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import paddle
import paddle2onnx

from .record import Architecture, Export, seeded_input

EXPORTS = {
    export.label: export
    for export in (
        Export("paddle2onnx-11", "paddle2onnx", 11, dynamic=True),
        Export("paddle2onnx-17", "paddle2onnx", 17, dynamic=False),
    )
}


def export_model(
    architecture: Architecture, export: Export
) -> tuple[onnx.ModelProto, str, np.ndarray, list[np.ndarray]]:
    """Exports one model.

    Returns:
        The graph, the exporter's version, a sample input and the framework's outputs for it.
    """
    model = architecture.build()
    batch = seeded_input(architecture.shape)
    if export.dynamic:
        batch = np.concatenate([batch, seeded_input(architecture.shape, seed=8)])
        batch = np.concatenate([batch, batch[..., :16]], axis=3) if architecture.dynamic_width else batch
    outputs = [model(paddle.to_tensor(batch)).numpy()]
    shape = list(architecture.shape)
    if export.dynamic:
        shape[0], shape[3] = None, None if architecture.dynamic_width else shape[3]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        paddle.jit.save(model, str(path), [paddle.static.InputSpec(shape, "float32", "x")])
        program = next(p for p in (path.with_suffix(".json"), path.with_suffix(".pdmodel")) if p.exists())
        target = path.with_suffix(".onnx")
        paddle2onnx.export(
            str(program),
            str(path.with_suffix(".pdiparams")),
            str(target),
            opset_version=export.opset,
            optimize_tool="None",
        )
        return onnx.load(target), paddle2onnx.__version__, batch, outputs
