"""Uniform affine quantization: ``q = clip(round(x / scale) + zero_point, qmin, qmax)``.

Rounding is half to even, as ONNX QuantizeLinear states. Codes narrower than 8 bits live in 8-bit containers: the
container is what the graph stores, ``qmin`` and ``qmax`` are what the codes may use.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError


@dataclass(frozen=True)
class QuantSpec:
    """How a tensor is quantized, before its scale is known.

    Args:
        bits: Code width, 2 to 16.
        signed: Signed container (int8/int16), else unsigned (uint8/uint16).
        symmetric: Zero point fixed at 0 (signed) or the middle code (unsigned).
        axis: Axis with one scale per index; None is one scale for the tensor.
        narrow: Symmetric codes only: leave out the most negative one (-127..127), as weights do.
    """

    bits: int = 8
    signed: bool = False
    symmetric: bool = False
    axis: int | None = None
    narrow: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ConfigError(f"bits must be 2 to 16, found {self.bits}")
        if self.narrow and not (self.signed and self.symmetric):
            raise ConfigError("narrow codes need a signed symmetric spec")

    @property
    def dtype(self) -> np.dtype:
        """Container dtype: 8 bits wide up to 8-bit codes, else 16."""
        names = {(True, False): "int8", (False, False): "uint8", (True, True): "int16", (False, True): "uint16"}
        return np.dtype(names[(self.signed, self.bits > 8)])

    @property
    def qmin(self) -> int:
        """Smallest code."""
        return (-(2 ** (self.bits - 1)) + int(self.narrow)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """Largest code."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    @property
    def is_full_container(self) -> bool:
        """Whether the codes use the whole container, so that QuantizeLinear's own saturation is right."""
        info = np.iinfo(self.dtype)
        return self.qmax == info.max and self.qmin in (info.min, info.min + 1)


@dataclass(frozen=True)
class QParams:
    """Scale and zero point of one tensor.

    Args:
        scale: float32, shape [] or [C] along ``spec.axis``; positive and finite.
        zero_point: Container dtype, same shape as ``scale``.
        spec: The spec that they belong to.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    spec: QuantSpec

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", np.asarray(self.scale, np.float32))
        object.__setattr__(self, "zero_point", np.asarray(self.zero_point, self.spec.dtype))
        if self.scale.shape != self.zero_point.shape:
            raise ConfigError(f"scale {self.scale.shape} and zero_point {self.zero_point.shape} differ in shape")
        if not (np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ConfigError("scale must be positive and finite")
        if (self.spec.axis is None) != (self.scale.ndim == 0):
            raise ConfigError(f"axis {self.spec.axis} does not fit a scale of shape {self.scale.shape}")

    def broadcast(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Scale (float32) and zero point (int32), shaped to broadcast against a tensor of ``rank`` axes."""
        scale, zero_point = self.scale, self.zero_point.astype(np.int32)
        if self.spec.axis is None:
            return scale, zero_point
        shape = [1] * rank
        shape[self.spec.axis] = -1
        return scale.reshape(shape), zero_point.reshape(shape)


def qparams_from_range(low: np.ndarray | float, high: np.ndarray | float, spec: QuantSpec) -> QParams:
    """Scale and zero point that cover ``[low, high]``, extended to include 0, so that the zero point never overflows.

    Args:
        low: Smallest value, scalar or [C].
        high: Largest value, same shape.
        spec: Bits, sign, scheme and axis.

    Returns:
        Asymmetric: ``scale = (high - low) / (qmax - qmin)``, ``zero_point = round(qmin - low / scale)``.
        Symmetric: ``scale = max(|low|, |high|) / qmax`` (half the code range when unsigned).
        A dead channel (range 0) gets scale 1.

    Raises:
        ConfigError: The range is not finite or ``low > high``.
    """
    low = np.minimum(np.asarray(low, np.float64), 0.0)
    high = np.maximum(np.asarray(high, np.float64), 0.0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ConfigError("range is not finite")
    tiny = np.finfo(np.float32).tiny * 4
    if spec.symmetric:
        middle = 0 if spec.signed else (spec.qmax + 1) // 2
        scale = np.maximum(-low, high) / (spec.qmax - middle)
        scale = np.where(scale > tiny, scale, 1.0).astype(np.float32)
        return QParams(scale, np.full(scale.shape, middle), spec)
    scale = (high - low) / (spec.qmax - spec.qmin)
    scale = np.where(scale > tiny, scale, 1.0).astype(np.float32)
    zero_point = np.clip(np.rint(spec.qmin - low / scale), spec.qmin, spec.qmax)
    return QParams(scale, zero_point, spec)


def quantize(x: np.ndarray | np.floating, qparams: QParams) -> np.ndarray:
    """Codes of ``x`` in the container dtype, saturated to ``spec.qmin..spec.qmax``; same shape as ``x``.

    Infinities saturate. The arithmetic is float32 for a float32 ``x``, as in QuantizeLinear.
    """
    return _codes(np.asarray(x), qparams).astype(qparams.spec.dtype)


def _codes(x: np.ndarray, qparams: QParams) -> np.ndarray:
    """Codes as floats: whole numbers below 2**16, exact in float32."""
    scale, zero_point = qparams.broadcast(x.ndim)
    codes = np.asarray(x / scale)
    np.rint(codes, out=codes)
    codes += zero_point.astype(np.float32)
    return np.clip(codes, qparams.spec.qmin, qparams.spec.qmax, out=codes)


def dequantize(codes: np.ndarray, qparams: QParams) -> np.ndarray:
    """Values of ``codes``: ``(codes - zero_point) * scale`` in float32."""
    scale, zero_point = qparams.broadcast(codes.ndim)
    values = np.asarray(codes.astype(np.float32) - zero_point.astype(np.float32))
    values *= scale
    return values


def fake_quantize(x: np.ndarray, qparams: QParams) -> np.ndarray:
    """``dequantize(quantize(x))`` in float32, the value that an int8 graph sees."""
    return dequantize(_codes(x, qparams), qparams)
