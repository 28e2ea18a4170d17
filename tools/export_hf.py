"""Export an image classifier of transformers to ONNX, with its preprocessing beside it.

    python tools/export_hf.py apple/mobilevit-small --out models
    python tools/export_hf.py mobilevit --random --out models

Writes NAME.onnx (float32, dynamic batch) and NAME.toml, the preprocessing that `onnx-hyvit` reads.
NAME is a model of the hub or a local folder with its files; with `--random` it is a model type and the
weights are random, which serves for testing only.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from zoo.preprocess_file import from_transformers, write_preprocess_file


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="model of the hub, local folder, or (with --random) model type")
    parser.add_argument("--random", action="store_true", help="build the model type with random weights")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the files (default: this one)")
    parser.add_argument("--opset", type=int, default=20, help="ONNX operator set (default 20)")
    return parser.parse_args(argv)


def load(name: str, random: bool) -> tuple[Any, dict[str, Any]]:
    """Model and the settings of its image processor."""
    import torch
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    if not random:
        model = AutoModelForImageClassification.from_pretrained(name, attn_implementation="eager")
        return model, AutoImageProcessor.from_pretrained(name).to_dict()
    torch.manual_seed(0)
    config = AutoConfig.for_model(name)
    processors = IMAGE_PROCESSOR_MAPPING[type(config)]
    processor = next(p for p in (processors.values() if isinstance(processors, dict) else processors) if p)
    model = AutoModelForImageClassification.from_config(config, attn_implementation="eager")
    return model, processor().to_dict()


def logits_only(model: Any) -> Any:
    """Wrap a model of transformers so that it maps a tensor to a tensor."""
    from torch import Tensor, nn

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(pixel_values=x).logits

    return Logits()


def export(arguments: argparse.Namespace) -> Path:
    """Export and return the path of the model.

    Raises:
        OSError: if the model cannot be found.
        RuntimeError: if onnxruntime computes something else than torch.
    """
    from zoo.export import export_onnx

    model, processor = load(arguments.name, arguments.random)
    preprocessing = from_transformers(processor)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{Path(arguments.name).name}.onnx"
    export_onnx(logits_only(model), path, (3, *preprocessing["size"]), arguments.opset)
    write_preprocess_file(path.with_suffix(".toml"), preprocessing, f"Preprocessing of {path.stem}")
    return path


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        path = export(arguments)
    except (RuntimeError, ValueError, KeyError, OSError) as e:
        print(f"error: {arguments.name}: {str(e).splitlines()[0]}", file=sys.stderr)
        return 1
    if arguments.random:
        print("warning: the weights are random", file=sys.stderr)
    print(f"wrote {path} and {path.with_suffix('.toml').name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
