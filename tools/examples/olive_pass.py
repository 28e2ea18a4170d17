"""onnx_hyvit as a pass of Olive, beside Olive's own.

    pip install onnx_hyvit olive-ai requests
    python tools/examples/olive_pass.py model.onnx images/ imagenet out/

``quantize_with_olive`` shows a workflow of this one pass; others go before or after it in ``passes``. Olive keeps what
it has done in its cache, by model and settings: empty the cache when the images have changed. Olive 0.13 needs requests
without saying so, and sends usage data unless OLIVE_DISABLE_TELEMETRY is 1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import PassConfigParam
from olive.workflows import run

import onnx_hyvit


class HyvitQuantization(Pass):
    """Int8 with ``onnx_hyvit.quantize``: an ONNX model in, an ONNX model out."""

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, PassConfigParam]:
        return {
            "calibration": PassConfigParam(type_=str, required=True, description="Folder of images, .npz or .npy."),
            "preprocess": PassConfigParam(type_=str, default_value=None, description="For images: a preset or a file."),
            "settings": PassConfigParam(type_=dict, default_value={}, description="Those of onnx_hyvit.QuantConfig."),
        }

    def _run_for_config(self, model: ONNXModelHandler, config: Any, output_model_path: str) -> ONNXModelHandler:
        output = resolve_onnx_path(output_model_path)
        onnx_hyvit.quantize(
            model.model_path,
            output,
            calibration=config.calibration,
            preprocess=config.preprocess,
            config=onnx_hyvit.QuantConfig(**config.settings),
        )
        return ONNXModelHandler(output)


def quantize_with_olive(model: Path, output: Path, **options: Any) -> Path:
    """Run a workflow of Olive with this pass.

    Args:
        model: Float ONNX model.
        output: Folder for Olive's results and cache.
        options: ``calibration``, ``preprocess`` and ``settings`` of the pass.

    Returns:
        The int8 model.
    """
    packages = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text())
    packages["passes"]["HyvitQuantization"] = {
        "module_path": f"{Path(__file__).stem}.HyvitQuantization",
        "supported_providers": ["*"],
        "supported_accelerators": ["*"],
        "supported_precisions": ["int8"],
    }
    workflow = {
        "input_model": {"type": "ONNXModel", "model_path": str(model)},
        "passes": {"int8": {"type": "HyvitQuantization", **options}},
        "output_dir": str(output),
        "cache_dir": str(output / "cache"),
    }
    found = run(workflow, package_config=packages).get_best_candidate()
    if found is None:
        raise RuntimeError("a pass failed; Olive's log above says why")
    return Path(found.model_path)


def main() -> None:
    model, images, preprocess, output = sys.argv[1:5]
    print(quantize_with_olive(Path(model), Path(output), calibration=images, preprocess=preprocess))


if __name__ == "__main__":
    main()
