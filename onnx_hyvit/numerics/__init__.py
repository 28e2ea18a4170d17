"""Quantization arithmetic in numpy; knows nothing of graphs."""

from .affine import QParams, QuantSpec, dequantize, fake_quantize, qparams_from_range, quantize
from .histogram import Histogram
from .log_codes import LogCodes
from .power_of_two import power_of_two_qparams
from .ranges import MinMax, MovingAverage, Observer, RangeMethod, entropy_range, extremes, mse_range, percentile_range
from .weights import WEIGHT_SPEC, fit_scale_to_bias, quantize_bias, quantize_weight, weight_qparams

__all__ = [
    "WEIGHT_SPEC",
    "Histogram",
    "LogCodes",
    "MinMax",
    "MovingAverage",
    "Observer",
    "QParams",
    "QuantSpec",
    "RangeMethod",
    "dequantize",
    "entropy_range",
    "extremes",
    "fake_quantize",
    "fit_scale_to_bias",
    "mse_range",
    "percentile_range",
    "power_of_two_qparams",
    "qparams_from_range",
    "quantize",
    "quantize_bias",
    "quantize_weight",
    "weight_qparams",
]
