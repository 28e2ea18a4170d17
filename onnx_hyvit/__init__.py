"""onnx_hyvit: int8 post-training quantization of hybrid CNN+transformer ONNX models, by graph rewriting.

import onnx_hyvit

result = onnx_hyvit.quantize("model.onnx", "model_int8.onnx", calibration="images/", preprocess="imagenet")
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# ONNX Runtime 1.32 and later send usage data unless this is set before it is loaded; set it to 0 to let them
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from .config import QuantConfig
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
from .version import __version__

if TYPE_CHECKING:
    from .api import QuantResult, inspect, quantize
    from .calibration import Preprocess
    from .comparison import compare
    from .static import quantize_static

_LAZY = {
    "quantize": "api",
    "inspect": "api",
    "QuantResult": "api",
    "compare": "comparison",
    "quantize_static": "static",
    "Preprocess": "calibration",
}

__all__ = [
    "CalibrationError",
    "ConfigError",
    "HyvitError",
    "ModelError",
    "OutputError",
    "PassError",
    "Preprocess",
    "QuantConfig",
    "QuantResult",
    "TargetError",
    "ValidationError",
    "__version__",
    "compare",
    "inspect",
    "quantize",
    "quantize_static",
]


def __getattr__(name: str) -> Any:
    """Import the pipeline when it is first used: ``import onnx_hyvit`` stays quick."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value
