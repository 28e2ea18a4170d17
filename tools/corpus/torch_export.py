"""Writes PyTorch models with both of torch's ONNX exporters."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from .record import Architecture, Export, seeded_input

EXPORTS = {
    export.label: export
    for export in (
        Export("torchscript-13", "torchscript", 13, dynamic=True, eager=True),  # 13 cannot write fused attention
        Export("torchscript-17", "torchscript", 17, dynamic=False),
        Export("torchscript-20", "torchscript", 20, dynamic=True),
        Export("dynamo-18", "dynamo", 18, dynamic=False),
        Export("dynamo-20", "dynamo", 20, dynamic=True),
        Export("dynamo-23", "dynamo", 23, dynamic=False),
        Export("torchscript-17-eager", "torchscript", 17, dynamic=False, eager=True),
    )
}


def export_model(
    architecture: Architecture, export: Export
) -> tuple[onnx.ModelProto, str, np.ndarray, list[np.ndarray]]:
    """Exports one model.

    Returns:
        The graph, the exporter's version, a sample input and the framework's outputs for it.
    """
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operator has no ONNX form
    with _attention(export.eager), torch.no_grad(), _quiet():
        model = architecture.build()
        for module in model.modules():
            if hasattr(module, "eager_attention"):
                module.eager_attention = export.eager
        sample = batch = seeded_input(architecture.shape)
        if export.dynamic:
            batch = np.concatenate([sample, seeded_input(architecture.shape, seed=8)])
        write = _dynamo if export.kind == "dynamo" else _torchscript
        graph = write(model, torch.from_numpy(batch), export, architecture.dynamic_width)
        if export.dynamic:  # another batch size (and width) than the one that was traced
            batch = np.concatenate([batch, sample])
            batch = np.concatenate([batch, batch[..., :16]], axis=3) if architecture.dynamic_width else batch
        outputs = architecture.build()(torch.from_numpy(batch))
    return graph, torch.__version__, batch, [o.numpy() for o in flatten(outputs)]


def flatten(outputs: object) -> list[torch.Tensor]:
    """Tensors in a model's output, in order."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    values: Iterable[object] = outputs.values() if isinstance(outputs, dict) else outputs  # type: ignore[assignment]
    return [tensor for value in values for tensor in flatten(value)]


def _torchscript(model: nn.Module, sample: torch.Tensor, export: Export, wide: bool) -> onnx.ModelProto:
    axes = None
    if export.dynamic:
        axes = {"input": {0: "batch", 3: "width"} if wide else {0: "batch"}}
    buffer = io.BytesIO()
    names = {"input_names": ["input"], "opset_version": export.opset}
    torch.onnx.export(model, (sample,), buffer, dynamo=False, dynamic_axes=axes, **names)
    return onnx.load_from_string(buffer.getvalue())


def _dynamo(model: nn.Module, sample: torch.Tensor, export: Export, wide: bool) -> onnx.ModelProto:
    shapes = None
    if export.dynamic:
        dim = {0: torch.export.Dim("batch", min=1, max=64)}
        shapes = ({**dim, 3: 8 * torch.export.Dim("octets", min=4, max=128)} if wide else dim,)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        names = {"input_names": ["input"], "opset_version": export.opset}
        options = {"dynamic_shapes": shapes, "external_data": False, "verbose": False}
        torch.onnx.export(model, (sample,), path, dynamo=True, **names, **options)
        return onnx.load(path)


@contextlib.contextmanager
def _attention(eager: bool) -> Iterator[None]:
    try:
        from timm.layers import set_fused_attn

        set_fused_attn(not eager)
    except ImportError:
        set_fused_attn = None
    try:
        yield
    finally:
        if set_fused_attn:
            set_fused_attn(True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logging.getLogger("torch").setLevel(logging.ERROR)
    sink = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        yield
