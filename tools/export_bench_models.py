"""Export the timm architectures that the bench measures, with random weights, once, into a folder.

    python tools/export_bench_models.py --out models/bench [--models mobilevit_s ...] [--size 64] [--dynamic]

Weights are random (seed 0), so these files measure speed and exactness of rewrites and never accuracy. Biases and
normalizations are disturbed, so that none of them is a no-op which a rewrite could drop, and batch normalization gets
plausible statistics, so that activations neither vanish nor explode through the depth of a model.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import onnx
import onnx.shape_inference

SIZES = {
    "mobilevit_s": 256,
    "mobilevit_xxs": 256,
    "mobilevitv2_100": 256,
    "mobilevitv2_050": 256,
    "efficientformer_l1": 224,
    "efficientformerv2_s0": 224,
    "edgenext_xx_small": 256,
}


def _settle_batch_norm(model: object, image: object) -> None:
    """Let batch normalization see one random batch, so that its statistics fit the random weights."""
    import torch

    for module in model.modules():  # type: ignore[attr-defined]
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # cumulative average: one batch sets the statistics
            module.reset_running_stats()
            module.train()
    with torch.no_grad():
        model(image)  # type: ignore[operator]
    model.eval()  # type: ignore[attr-defined]


def _disturb_constants(model: object) -> None:
    """Add noise to parameters that start as one value (biases 0, norms 1): a trained model has no such no-ops."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():  # type: ignore[attr-defined]
            if parameter.numel() > 1 and (parameter == parameter.flatten()[0]).all():
                parameter.add_(0.1 * torch.randn_like(parameter))


def export(name: str, size: int, opset: int = 20, dynamic: bool = False, batch: int = 1) -> onnx.ModelProto:
    """Build ``name`` with random weights and export it through TorchScript, input [batch, 3, size, size]."""
    import timm
    import torch

    torch.manual_seed(0)
    options: dict[str, object] = {"img_size": size} if name.startswith("efficientformerv2") else {}
    model = timm.create_model(name, pretrained=False, **options).eval()
    _disturb_constants(model)
    _settle_batch_norm(model, torch.randn(8, 3, size, size))
    buffer = io.BytesIO()
    torch.onnx.export(
        model,
        (torch.randn(batch, 3, size, size),),
        buffer,
        opset_version=opset,
        dynamo=False,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}} if dynamic else None,
    )
    return onnx.shape_inference.infer_shapes(onnx.load_from_string(buffer.getvalue()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the .onnx files; existing ones are kept")
    parser.add_argument("--models", nargs="+", default=sorted(SIZES), help="timm names")
    parser.add_argument("--size", type=int, help="input height and width; each model's own when left out")
    parser.add_argument("--opset", type=int, default=20)
    parser.add_argument("--dynamic", action="store_true", help="leave the batch dimension free")
    parser.add_argument("--batch", type=int, default=1, help="fixed batch size")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.models:
        size = arguments.size or SIZES.get(name, 224)
        suffix = f"_{size}" if arguments.size else ""
        suffix += f"_batch{arguments.batch}" if arguments.batch > 1 else ""
        path = arguments.out / f"{name}{suffix}{'_dynamic' if arguments.dynamic else ''}.onnx"
        if not path.exists():
            onnx.save(export(name, size, arguments.opset, arguments.dynamic, arguments.batch), path)
        print(path)


if __name__ == "__main__":
    main()
