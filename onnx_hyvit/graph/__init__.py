"""ONNX structure only: load and save, match, edit, shapes, regions. Knows nothing of quantization."""

from .io import Model, load_model, model_to_proto
from .write import save_proto

__all__ = ["Model", "load_model", "model_to_proto", "save_proto"]
