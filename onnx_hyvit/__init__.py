"""onnx_hyvit: int8 post-training quantization of hybrid CNN+transformer ONNX models, by graph rewriting.

import onnx_hyvit

result = onnx_hyvit.quantize("model.onnx", "model_int8.onnx", calibration="images/", preprocess="imagenet")
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# ONNX Runtime 1.32 and later send usage data unless this is set before it is loaded; set it to 0 to let them
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from .version import __version__

if TYPE_CHECKING:
    from .api import QuantResult, inspect, quantize
    from .calibration import Preprocess
    from .comparison import compare
    from .config import QuantConfig
    from .diagnosis import debug
    from .errors import (
        CalibrationError,
        ConfigError,
        HyvitError,
        ModelError,
        OutputError,
        PassError,
        TargetError,
        ValidationError,
    )
    from .evidence import compare_for_report
    from .kernel_audit import Audit, audit
    from .many import ModelResult, quantize_many
    from .mobile import MobileConfig, export_mobile
    from .recipes import Recipe, Reconstruction, add_recipe
    from .report import render_report, write_report
    from .static import quantize_static
    from .target_check import check

_LAZY = {
    "QuantConfig": "config",
    "CalibrationError": "errors",
    "ConfigError": "errors",
    "HyvitError": "errors",
    "ModelError": "errors",
    "OutputError": "errors",
    "PassError": "errors",
    "TargetError": "errors",
    "ValidationError": "errors",
    "quantize": "api",
    "inspect": "api",
    "QuantResult": "api",
    "compare": "comparison",
    "debug": "diagnosis",
    "compare_for_report": "evidence",
    "render_report": "report",
    "write_report": "report",
    "quantize_static": "static",
    "Preprocess": "calibration",
    "MobileConfig": "mobile",
    "export_mobile": "mobile",
    "Audit": "kernel_audit",
    "audit": "kernel_audit",
    "quantize_many": "many",
    "ModelResult": "many",
    "check": "target_check",
    "Recipe": "recipes",
    "Reconstruction": "recipes",
    "add_recipe": "recipes",
}

__all__ = [
    "Audit",
    "CalibrationError",
    "ConfigError",
    "HyvitError",
    "MobileConfig",
    "ModelError",
    "ModelResult",
    "OutputError",
    "PassError",
    "Preprocess",
    "QuantConfig",
    "QuantResult",
    "Recipe",
    "Reconstruction",
    "TargetError",
    "ValidationError",
    "__version__",
    "add_recipe",
    "audit",
    "check",
    "compare",
    "compare_for_report",
    "debug",
    "export_mobile",
    "inspect",
    "quantize",
    "quantize_many",
    "quantize_static",
    "render_report",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import what a name needs when it is first used: ``import onnx_hyvit`` stays quick."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value
