"""Program that runs ONNX Runtime's own mobile tools in a process of its own: see ``ort_format``, which starts it.

Those tools print, set up logging, change ``sys.path`` and patch ``onnx.NodeProto``; none of that reaches the caller.
Argument: a JSON object with ``model`` (path of an .onnx file), ``folder`` (for results) and ``platform``.
Last line of standard output: a JSON object, ``{"partitions": ..., "failures": ...}`` or ``{"error": "..."}``.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any


def convert(model: Path, folder: Path, platform: str) -> dict[str, str]:
    """Write ``model`` as .ort into the folders ``Fixed`` and ``Runtime``, each with its list of required operators.

    Returns:
        Style -> why it could not be written, for those that could not.
    """
    import onnxruntime
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    onnxruntime.set_default_logger_severity(4)
    failures = {}
    for style in (OptimizationStyle.Fixed, OptimizationStyle.Runtime):
        place = folder / style.name
        place.mkdir()
        try:
            convert_onnx_models_to_ort(model, place, [style], target_platform=platform, enable_type_reduction=True)
        except Exception as error:
            failures[style.name] = " ".join(str(error).split())
    return failures


def find_partitions(model: Path, scratch: Path) -> dict[str, dict[str, Any]]:
    """How many pieces of the graph each accelerator would take, by its list of operators; the model as it is."""
    import onnx
    from onnxruntime.tools.mobile_helpers import usability_checker
    from onnxruntime.tools.onnx_model_utils import optimize_model

    simple = scratch / "basic.onnx"
    optimize_model(model, simple, use_external_initializers=True)
    shaped = onnx.shape_inference.infer_shapes(onnx.load(simple), strict_mode=True)
    found = {
        "NNAPI": usability_checker.check_nnapi_partitions(shaped, True),
        "CoreML NeuralNetwork": usability_checker.check_coreml_partitions(
            shaped, True, "coreml_supported_neuralnetwork_ops.md"
        ),
        "CoreML MLProgram": usability_checker.check_coreml_partitions(
            shaped, True, "coreml_supported_mlprogram_ops.md"
        ),
    }
    return {
        name: {
            "partitions": info.num_partitions,
            "supported_nodes": info.num_supported_nodes,
            "nodes": info.num_nodes,
            "verdict": info.suitability().name.lower(),
            "unsupported_operators": sorted(info.unsupported_ops),
            "dynamic_nodes": info.nodes_unsupported_due_to_dynamic_input,
        }
        for name, info in found.items()
    }


def main() -> None:
    """Run both tools on the model that the argument names."""
    logging.basicConfig(level=logging.ERROR)
    job = json.loads(sys.argv[1])
    os.environ.pop("ORT_CONVERT_ONNX_MODELS_TO_ORT_OPTIMIZATION_LEVEL", None)
    folder = Path(job["folder"])
    answer: dict[str, Any]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            failures = convert(Path(job["model"]), folder, job["platform"])
            if "Fixed" in failures:
                answer = {"error": failures["Fixed"]}
            else:
                answer = {"failures": failures, "partitions": find_partitions(Path(job["model"]), folder)}
    except Exception as error:
        answer = {"error": " ".join(str(error).split()) or type(error).__name__}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
