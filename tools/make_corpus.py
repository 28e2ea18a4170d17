"""Makes the corpus of tiny ONNX graphs in tests/corpus: reduced models x exporters, with random weights.

Each framework lives in an environment of its own; a run writes what its environment can write and merges its records
into index.json, so several runs make the whole corpus:

    pip install torch torchvision timm onnx onnxscript onnxruntime   # torchscript-*, dynamo-*
    pip install "transformers<5"                                     # + *-hf (EfficientFormer left in release 5)
    pip install tensorflow-cpu tf2onnx onnx onnxruntime              # keras, tf2onnx-*
    pip install paddlepaddle paddle2onnx onnxruntime                 # paddle2onnx-*
    pip install jax2onnx flax onnx onnxruntime                       # jax2onnx
    pip install onnx onnxruntime                                     # edge

    python tools/make_corpus.py --framework torch
    python tools/make_corpus.py --framework torch --only svtr --exporter dynamo-20

The same versions give the same bytes. A combination that fails is recorded under "failures" with its reason.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from corpus import record
from corpus.record import Architecture, Export

SOURCES = {
    "torch": ("torch_export", ("timm_models", "mobile_former", "svtr")),
    "transformers": ("torch_export", ("transformers_models",)),
    "keras": ("keras_export", ("keras_models",)),
    "paddle": ("paddle_export", ("paddle_models",)),
    "jax": ("jax_export", ("jax_models",)),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", choices=[*SOURCES, "edge"], required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "tests" / "corpus")
    parser.add_argument("--only", metavar="FAMILY", help="only this family or architecture")
    parser.add_argument("--exporter", metavar="NAME", help="only exporters whose label starts with this")
    return parser.parse_args()


def make_one(module: Any, architecture: Architecture, export: Export, out: Path) -> tuple[bool, dict[str, Any]]:
    """Exports, checks and writes one file; returns success and the record for the index."""
    path = out / f"{architecture.name}.{export.label}.onnx"
    try:
        graph, version, sample, expected = module.export_model(architecture, export)
        return True, record.write(path, graph, architecture, export, version, sample, expected)
    except Exception as error:
        path.unlink(missing_ok=True)
        return False, {
            "file": path.name,
            "family": architecture.family,
            "architecture": architecture.name,
            "exporter": export.kind,
            "requested_opset": export.opset,
            "dynamic_batch": export.dynamic,
            "reason": record.one_line(error),
        }


def make_models(framework: str, arguments: argparse.Namespace) -> None:
    """Writes all files of one framework and updates the index after each."""
    exporter, sources = SOURCES[framework]
    module = importlib.import_module(f"corpus.{exporter}")
    for source in sources:
        for architecture in importlib.import_module(f"corpus.{source}").architectures():
            if arguments.only not in (None, architecture.family, architecture.name):
                continue
            for label in architecture.exporters:
                if not label.startswith(arguments.exporter or ""):
                    continue
                start = time.perf_counter()
                good, result = make_one(module, architecture, module.EXPORTS[label], arguments.out)
                lists = ([result], []) if good else ([], [result])
                record.merge_index(arguments.out / "index.json", "models", *lists)
                size = f"{result['bytes'] / 1e3:.0f} kB" if good else result["reason"]
                print(f"{result['file']}: {size} ({time.perf_counter() - start:.1f} s)", flush=True)


def main() -> None:
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.framework == "edge":
        from corpus import edge_export

        edge_export.make_all(arguments.out)
    else:
        make_models(arguments.framework, arguments)


if __name__ == "__main__":
    main()
