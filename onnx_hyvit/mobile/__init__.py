"""From a finished .onnx to what a phone needs: .ort files, the operators of a minimal build, and what was checked."""

from .config import MobileConfig
from .export import export_mobile

__all__ = ["MobileConfig", "export_mobile"]
