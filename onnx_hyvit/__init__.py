"""onnx_hyvit: int8 post-training quantization of hybrid CNN+transformer ONNX models, by graph rewriting."""

from .version import __version__

__all__ = ["__version__"]
