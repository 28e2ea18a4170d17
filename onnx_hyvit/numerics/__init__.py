"""Quantization arithmetic in numpy; knows nothing of graphs."""

from .affine import QParams, QuantSpec, dequantize, fake_quantize, qparams_from_range, quantize

__all__ = ["QParams", "QuantSpec", "dequantize", "fake_quantize", "qparams_from_range", "quantize"]
