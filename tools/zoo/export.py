"""From a torch model to a portable ONNX file."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

OPSET = 20
INPUT, OUTPUT = "input", "logits"
TOLERANCE = 1e-3  # largest difference of a logit between torch and onnxruntime

_log = logging.getLogger(__name__)


def export_onnx(model: nn.Module, path: Path, shape: tuple[int, int, int], opset: int = OPSET) -> onnx.ModelProto:
    """Write `model` as float32 ONNX with a dynamic batch, and check it against torch.

    Args:
        model: takes one float32 tensor [n, *shape] and returns one tensor [n, classes].
        path: file to write.
        shape: channels, height, width.
        opset: version of the ai.onnx operator set.

    Returns:
        The written model.

    Raises:
        RuntimeError: if onnxruntime and torch disagree on the logits.
    """
    model = model.float().eval().to(memory_format=torch.contiguous_format)
    torch.manual_seed(0)
    example = torch.randn(2, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            verbose=False,
        )
    assert program is not None
    proto = strip_metadata(program.model_proto)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    difference = largest_difference(model, path, shape)
    if difference > TOLERANCE:
        raise RuntimeError(f"{path}: logits differ from torch by {difference:.2g} (at most {TOLERANCE:g} expected)")
    _log.info("%s: %d nodes, largest difference from torch %.2g", path, len(proto.graph.node), difference)
    return proto


def strip_metadata(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop the notes of the exporter (stack traces with local paths); returns the same model."""
    del model.metadata_props[:]
    model.doc_string = ""
    graph = model.graph
    graph.doc_string = ""
    for item in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    return model


@torch.inference_mode()
def largest_difference(model: nn.Module, path: Path, shape: tuple[int, int, int], batch: int = 3) -> float:
    """Largest absolute difference of a logit between torch and onnxruntime on random input."""
    import onnxruntime as ort

    x = np.random.default_rng(1).standard_normal((batch, *shape)).astype(np.float32)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ours = session.run([OUTPUT], {INPUT: x})[0]
    return float(np.abs(ours - model(torch.from_numpy(x)).numpy()).max())
