"""Export an image classifier of timm to ONNX, with its preprocessing beside it.

    python tools/export_timm.py mobilevit_s --pretrained --out models

Writes NAME.onnx (float32, dynamic batch) and NAME.toml, the preprocessing that `onnx-hyvit` reads.
`--pretrained` downloads the weights of timm; without it they are random, which serves for testing only.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from zoo.preprocess_file import from_timm, write_preprocess_file


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="name of the model in timm, e.g. mobilevit_s or efficientformer_l1")
    parser.add_argument("--pretrained", action="store_true", help="download trained weights (else random ones)")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the files (default: this one)")
    parser.add_argument("--size", type=int, help="input size in pixels, if not the model's own")
    parser.add_argument("--opset", type=int, default=20, help="ONNX operator set (default 20)")
    return parser.parse_args(argv)


def export(arguments: argparse.Namespace) -> Path:
    """Export and return the path of the model.

    Raises:
        RuntimeError: if timm does not know the model, or onnxruntime computes something else than torch.
    """
    import timm
    import torch
    from timm.data import resolve_data_config
    from zoo.export import export_onnx
    from zoo.speed import use_plain_attention

    torch.manual_seed(0)
    use_plain_attention()
    model = timm.create_model(arguments.name, pretrained=arguments.pretrained, exportable=True)
    wanted = {} if arguments.size is None else {"input_size": (3, arguments.size, arguments.size)}
    preprocessing = from_timm(resolve_data_config(wanted, model=model))
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{arguments.name.replace('/', '_')}.onnx"
    export_onnx(model, path, (3, *preprocessing["size"]), arguments.opset)
    write_preprocess_file(path.with_suffix(".toml"), preprocessing, f"Preprocessing of timm's {arguments.name}")
    return path


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        path = export(arguments)
    except (RuntimeError, ValueError, OSError) as e:
        print(f"error: {arguments.name}: {str(e).splitlines()[0]}", file=sys.stderr)
        return 1
    if not arguments.pretrained:
        print("warning: the weights are random (no --pretrained)", file=sys.stderr)
    print(f"wrote {path} and {path.with_suffix('.toml').name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
