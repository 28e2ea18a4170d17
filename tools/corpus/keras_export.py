"""Writes Keras models (TensorFlow backend) with Keras' own export and with tf2onnx."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx

from .record import Architecture, Export, seeded_input

EXPORTS = {
    export.label: export
    for export in (
        Export("keras", "keras", None, dynamic=True),
        Export("tf2onnx-13", "tf2onnx", 13, dynamic=True),
        Export("tf2onnx-18", "tf2onnx", 18, dynamic=True),
        Export("tf2onnx-18-nchw", "tf2onnx", 18, dynamic=False),
    )
}


def export_model(
    architecture: Architecture, export: Export
) -> tuple[onnx.ModelProto, str, np.ndarray, list[np.ndarray]]:
    """Exports one model; the label's `nchw` asks tf2onnx for an input with channels first.

    Returns:
        The graph, the exporter's version, a sample input and the framework's outputs for it.
    """
    model = architecture.build()
    sample = seeded_input(architecture.shape)
    batch = np.concatenate([sample, seeded_input(architecture.shape, seed=8)]) if export.dynamic else sample
    outputs = [np.array(model(batch, training=False))]
    if export.kind == "keras":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            model.export(path, format="onnx", verbose=False)
            return onnx.load(path), keras.__version__, batch, outputs
    nchw = export.label.endswith("nchw")
    signature = [tf.TensorSpec([None if export.dynamic else 1, *architecture.shape[1:]], tf.float32, name="image")]
    function = tf.function(lambda image: model(image, training=False), input_signature=signature)
    options = {"inputs_as_nchw": ["image:0"]} if nchw else {}
    graph, _ = tf2onnx.convert.from_function(function, signature, opset=export.opset, **options)
    return graph, tf2onnx.__version__, batch.transpose(0, 3, 1, 2) if nchw else batch, outputs
