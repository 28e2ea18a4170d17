"""Writes flax models with jax2onnx."""

from __future__ import annotations

from importlib.metadata import version

import jax.numpy as jnp
import jax2onnx
import numpy as np
import onnx

from .jax_models import forward
from .record import Architecture, Export, seeded_input

EXPORTS = {
    export.label: export
    for export in (
        Export("jax2onnx-23", "jax2onnx", 23, dynamic=True),
        Export("jax2onnx-23-nchw", "jax2onnx", 23, dynamic=False),
    )
}


def export_model(
    architecture: Architecture, export: Export
) -> tuple[onnx.ModelProto, str, np.ndarray, list[np.ndarray]]:
    """Exports one model; the label's `nchw` asks for an input with channels first.

    Returns:
        The graph, the exporter's version, a sample input and the framework's outputs for it.
    """
    model = architecture.build()
    sample = seeded_input(architecture.shape)
    batch = np.concatenate([sample, seeded_input(architecture.shape, seed=8)]) if export.dynamic else sample
    outputs = [np.asarray(forward(model, jnp.asarray(batch)))]
    nchw = export.label.endswith("nchw")
    shape = ("B" if export.dynamic else 1, *architecture.shape[1:])
    options = {"inputs_as_nchw": [0]} if nchw else {}
    graph = jax2onnx.to_onnx(model, [shape], opset=export.opset, **options)
    return graph, version("jax2onnx"), batch.transpose(0, 3, 1, 2) if nchw else batch, outputs
