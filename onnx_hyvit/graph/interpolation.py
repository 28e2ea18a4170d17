"""Interpolation as Resize of ONNX defines it: along each axis a fixed weighted sum of inputs, so a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from .edit import constant_of, dim_of, has_input, rank_of

SCALES, SIZES = 2, 3  # inputs of Resize


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


def interpolation_of(attributes: Mapping[str, Any]) -> Interpolation:
    """How a Resize with these attributes reads its input."""
    return Interpolation(
        str(attributes.get("mode", "nearest")),
        str(attributes.get("coordinate_transformation_mode", "half_pixel")),
        str(attributes.get("nearest_mode", "round_prefer_floor")),
        float(attributes.get("cubic_coeff_a", -0.75)),
        bool(attributes.get("exclude_outside", 0)),
        bool(attributes.get("antialias", 0)),
    )


def interpolation_matrix(size: int, out: int, scale: float, how: Interpolation) -> np.ndarray:
    """Resize along one axis as a matrix ``[out, size]``, float64 (equations of the ONNX Resize operator).

    Args:
        size: Input extent.
        out: Output extent.
        scale: Ratio of extents as the node states it.
        how: Interpolation.
    """
    matrix = np.zeros((out, size))
    if how.mode == "nearest":
        matrix[np.arange(out), _nearest(size, out, scale, how)] = 1.0
        return matrix
    position = _source_positions(np.arange(out, dtype=np.float64), size, scale, how.coordinates)
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


def _nearest(size: int, out: int, scale: float, how: Interpolation) -> np.ndarray:
    """Positions [out] that are copied; in float32, as runtimes compute them: the last bit may decide."""
    position = _source_positions(np.arange(out, dtype=np.float32), size, scale, how.coordinates)
    return np.clip(_round(position, how.nearest), 0, size - 1).astype(np.int64)


def _source_positions(target: np.ndarray, size: int, scale: float, coordinates: str) -> np.ndarray:
    """Where in the input the output positions ``target`` [out] lie, in the same dtype."""
    out = len(target)
    if coordinates == "align_corners":
        return target * (size - 1) / (out - 1) if out > 1 else np.zeros_like(target)
    if coordinates == "asymmetric":
        return target / scale
    if coordinates == "pytorch_half_pixel" and out == 1:
        return np.zeros_like(target)
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


def matrices_of(node: gs.Node) -> tuple[np.ndarray, np.ndarray] | str:
    """Weights of a Resize that interpolates the two sides of a float32 map and nothing else.

    Args:
        node: A Resize.

    Returns:
        Two float32 matrices [out, in], of rows and of columns; or why there are none.
    """
    how = interpolation_of(node.attrs)
    if how.mode not in ("linear", "cubic"):
        return "copies"
    sides = _sides_of(node, how)
    if isinstance(sides, str):
        return sides
    rows, columns = (interpolation_matrix(*side, how).astype(np.float32) for side in sides)
    return rows, columns


def nearest_positions(node: gs.Node) -> tuple[np.ndarray, np.ndarray] | str:
    """What a Resize copies that enlarges or shrinks the two sides of a float32 map and nothing else.

    Args:
        node: A Resize.

    Returns:
        Two int64 arrays [out] of positions in the input, of rows and of columns; or why there are none.
    """
    how = interpolation_of(node.attrs)
    if how.mode != "nearest":
        return "interpolates"
    sides = _sides_of(node, how)
    if isinstance(sides, str):
        return sides
    rows, columns = (_nearest(*side, how) for side in sides)
    return rows, columns


def _sides_of(node: gs.Node, how: Interpolation) -> list[tuple[int, int, float]] | str:
    """Of rows and of columns: extent before, extent after, scale; or why the node resizes something else."""
    source, output = node.inputs[0], node.outputs[0]
    if how.coordinates == "tf_crop_and_resize":
        return "has a region of interest"
    if node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "keeps the ratio of its sides"
    if rank_of(source) != 4 or rank_of(output) != 4 or source.dtype != np.float32:
        return "its input is not a float32 map"
    axes = [axis % 4 for axis in node.attrs.get("axes") or range(4)]
    if axes not in ([2, 3], [0, 1, 2, 3]):
        return "it resizes other axes than the sides"
    sides = [(dim_of(source, axis), dim_of(output, axis)) for axis in (2, 3)]
    if any(not before or not after for before, after in sides):
        return "its sides are unknown"
    scales = _fixed_scales(node, axes)
    if scales is None:
        return "its scales are not fixed, or change batch or channels"
    if any(
        scale and int(np.float32(side[0]) * np.float32(scale)) != side[1]
        for side, scale in zip(sides, scales, strict=True)
    ):
        return "runtimes do not agree on its new sides"
    return [(before, after, scale or after / before) for (before, after), scale in zip(sides, scales, strict=True)]  # type: ignore[operator, misc]


def _fixed_scales(node: gs.Node, axes: list[int]) -> list[float] | None:
    """Scales of both sides, 0 where sizes tell them; None when not fixed, or batch or channels change."""
    values = constant_of(node.inputs[SIZES if has_input(node, SIZES) else SCALES]) if len(node.inputs) > 2 else None
    if values is None or values.size != len(axes):
        return None
    if has_input(node, SIZES):
        kept = zip(values[:-2], node.inputs[0].shape, strict=False)
        return [0.0, 0.0] if all(dim == size for size, dim in kept) else None
    return [float(scale) for scale in values[-2:]] if (values[:-2] == 1).all() else None
