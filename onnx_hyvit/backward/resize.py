"""VJP of Resize and Upsample: interpolation is linear and separable, one matrix per axis, so the adjoint is too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .registry import ForwardNode, Gradients, NoRule, vjp
from .shape_ops import constant_input, first
from .tape import Tape


@dataclass(frozen=True)
class Interpolation:
    """How Resize reads the input.

    Args:
        mode: nearest, linear or cubic.
        coordinates: ``coordinate_transformation_mode``.
        nearest: ``nearest_mode``.
        cubic_coeff: ``cubic_coeff_a``.
        exclude_outside: Leave out taps beyond the border instead of repeating the border.
        antialias: Widen the filter when shrinking.
    """

    mode: str = "nearest"
    coordinates: str = "half_pixel"
    nearest: str = "round_prefer_floor"
    cubic_coeff: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False


@vjp("Resize", "Upsample")
def resize(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """``grad_x = R^T grad_y`` along every axis that changes."""
    g = grads[0]
    assert g is not None
    shape, out = tape.shape(node.inputs[0]), tape.shape(node.outputs[0])
    scales = _scales(tape, node, shape, out)
    how = _interpolation(node)
    for axis, (n, m, scale) in enumerate(zip(shape, out, scales, strict=True)):
        if n != m or scale != 1.0:
            matrix = interpolation_matrix(n, m, scale, how).astype(tape.dtype(node.inputs[0]))
            g = tape.contract(g, len(shape), axis, matrix)
    return first(node, g)


def _interpolation(node: ForwardNode) -> Interpolation:
    if node.op == "Upsample":
        return Interpolation(str(node.attrs.get("mode", "nearest")), "asymmetric", "floor")
    how = Interpolation(
        str(node.attrs.get("mode", "nearest")),
        str(node.attrs.get("coordinate_transformation_mode", "half_pixel")),
        str(node.attrs.get("nearest_mode", "round_prefer_floor")),
        float(node.attrs.get("cubic_coeff_a", -0.75)),
        bool(node.attrs.get("exclude_outside", 0)),
        bool(node.attrs.get("antialias", 0)),
    )
    if how.coordinates == "tf_crop_and_resize":
        raise NoRule("coordinate_transformation_mode 'tf_crop_and_resize'")
    return how


def _scales(tape: Tape, node: ForwardNode, shape: Sequence[int], out: Sequence[int]) -> list[float]:
    """Scale of every axis: as given, or from the sizes."""
    given = constant_input(tape, node, 1 if node.op == "Upsample" else 2, "scale")
    scales = [m / n for n, m in zip(shape, out, strict=True)]
    if given is not None and given.size:
        axes = node.attrs.get("axes") or range(len(shape))
        for axis, scale in zip(axes, given, strict=True):
            scales[axis] = float(scale)
    return scales


def interpolation_matrix(size: int, out: int, scale: float, how: Interpolation) -> np.ndarray:
    """Resize along one axis as a matrix ``[out, size]``, float64 (equations of the ONNX Resize operator).

    Args:
        size: Input extent.
        out: Output extent.
        scale: Ratio of extents as the node states it.
        how: Interpolation.
    """
    position = _source_positions(size, out, scale, how.coordinates)
    matrix = np.zeros((out, size))
    if how.mode == "nearest":
        matrix[np.arange(out), np.clip(_round(position, how.nearest), 0, size - 1).astype(int)] = 1.0
        return matrix
    stretch = max(1.0, 1.0 / scale) if how.antialias else 1.0
    reach = 1.0 if how.mode == "linear" else 2.0
    span = int(np.ceil(reach * stretch)) + 1
    taps = np.floor(position)[:, None].astype(int) + np.arange(-span, span + 1)
    weights = _filter((position[:, None] - taps) / stretch, how)
    if how.exclude_outside:
        weights = np.where((taps >= 0) & (taps < size), weights, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    rows = np.repeat(np.arange(out), taps.shape[1])
    np.add.at(matrix, (rows, np.clip(taps, 0, size - 1).reshape(-1)), weights.reshape(-1))
    return matrix


def _source_positions(size: int, out: int, scale: float, coordinates: str) -> np.ndarray:
    target = np.arange(out, dtype=np.float64)
    if coordinates == "align_corners":
        return target * (size - 1) / (out - 1) if out > 1 else np.zeros(1)
    if coordinates == "asymmetric":
        return target / scale
    if coordinates == "pytorch_half_pixel" and out == 1:
        return np.zeros(1)
    if coordinates == "half_pixel_symmetric":
        adjustment = out / (size * scale)
        centre = size / 2
        return centre * (1 - adjustment) + (target + 0.5) / scale - 0.5
    return (target + 0.5) / scale - 0.5


def _round(position: np.ndarray, mode: str) -> np.ndarray:
    if mode == "floor":
        return np.floor(position)
    if mode == "ceil":
        return np.ceil(position)
    return np.ceil(position - 0.5) if mode == "round_prefer_floor" else np.floor(position + 0.5)


def _filter(distance: np.ndarray, how: Interpolation) -> np.ndarray:
    """Triangle (linear) or Keys' cubic kernel (R. Keys, 1981)."""
    t = np.abs(distance)
    if how.mode == "linear":
        return np.maximum(1.0 - t, 0.0)
    a = how.cubic_coeff
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))
