"""Check a quantized model: valid ONNX, loads and agrees at every optimisation level, no pattern that fails."""

from .fused import FusedReport, compare_fused
from .patterns import Finding, find_patterns
from .validate import find_saturation, validate

__all__ = ["Finding", "FusedReport", "compare_fused", "find_patterns", "find_saturation", "validate"]
