"""From a Hugging Face checkpoint to an int8 ONNX file: export with Optimum, quantize here.

    pip install onnx_hyvit "optimum-onnx[onnxruntime]"
    python tools/examples/from_hugging_face.py apple/mobilevit-xx-small images/ int8.onnx

Optimum writes the preprocessing of the checkpoint beside the model, in a form that ``preprocess`` reads.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import onnx_hyvit


def main() -> None:
    checkpoint, images, output = sys.argv[1:4]
    from optimum.exporters.onnx import main_export

    with tempfile.TemporaryDirectory() as folder:
        main_export(checkpoint, output=folder, task="image-classification", opset=17)
        quantize_export(Path(folder), images, output)


def quantize_export(folder: Path, images: str, output: str) -> None:
    """Quantize the ``model.onnx`` of an export, with the ``preprocessor_config.json`` beside it."""
    model, preprocess = folder / "model.onnx", folder / "preprocessor_config.json"
    result = onnx_hyvit.quantize(model, output, calibration=images, preprocess=preprocess)
    report = onnx_hyvit.compare(model, output, images, preprocess=preprocess, samples=64)
    print(f"{result.report['plan']['int8_nodes']} nodes in int8, same class as float: {report['top1_agreement']:.1%}")
    print(f"{report['latency']['speedup']:.2f}x faster, {report['size']['ratio']:.1f}x smaller")


if __name__ == "__main__":
    main()
