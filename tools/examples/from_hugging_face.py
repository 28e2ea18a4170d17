"""From a Hugging Face checkpoint to an int8 ONNX file: export with torch, quantize here.

    pip install onnx_hyvit torch transformers onnxscript
    python tools/examples/from_hugging_face.py apple/mobilevit-xx-small images/ int8.onnx

The checkpoint is a name on the hub or a folder. Its own preprocessing is saved beside the exported model, in the
form of transformers, which ``preprocess`` reads.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

import onnx_hyvit


class Logits(torch.nn.Module):
    """A classifier as a function of one tensor."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Scores of the classes."""
        return self.model(pixel_values=pixel_values).logits


def export(checkpoint: str, folder: Path) -> None:
    """Write ``model.onnx`` and ``preprocessor_config.json``."""
    model = AutoModelForImageClassification.from_pretrained(checkpoint, attn_implementation="eager")
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    processor.save_pretrained(folder)
    example = processor(Image.new("RGB", (256, 256)), return_tensors="pt")["pixel_values"]
    torch.onnx.export(
        Logits(model).eval(), (example,), folder / "model.onnx", opset_version=20, dynamo=True, external_data=False
    )


def quantize_export(folder: Path, images: str, output: str) -> None:
    """Quantize the ``model.onnx`` of an export, with the ``preprocessor_config.json`` beside it."""
    model, preprocess = folder / "model.onnx", folder / "preprocessor_config.json"
    result = onnx_hyvit.quantize(model, output, calibration=images, preprocess=preprocess)
    report = onnx_hyvit.compare(model, output, images, preprocess=preprocess, samples=64)
    print(f"{result.report['plan']['int8_nodes']} nodes in int8, same class as float: {report['top1_agreement']:.1%}")
    print(f"{report['latency']['speedup']:.2f}x faster, {report['size']['ratio']:.1f}x smaller")


def main() -> None:
    checkpoint, images, output = sys.argv[1:4]
    with tempfile.TemporaryDirectory() as folder:
        export(checkpoint, Path(folder))
        quantize_export(Path(folder), images, output)


if __name__ == "__main__":
    main()
