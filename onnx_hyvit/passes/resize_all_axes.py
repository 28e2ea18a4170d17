"""Write a Resize of two axes as one of all four.

Before
    y = Resize<axes = [2, 3]>(x [B, C, h, w], , , [H, W])        or scales [sh, sw]
After
    y = Resize(x, , , [B, C, H, W])                              where B and C are fixed
    y = Resize(x, , [1, 1, H / h, W / w])                        where they are not, and these scales say the same
    y = Resize(x, , , Concat(Shape<end = 2>(x), [H, W]))         otherwise
Conditions
    1. rank 4, the axes are the two sides, sizes or scales are fixed, and no ratio is kept;
    2. for scales from sizes: h and w are known, and h * (H / h), as float32, gives H; where values are interpolated,
       the next number will do.
The third form costs two small nodes, but asks nothing: a nearest pixel may lie half way between two, where the last bit
of a scale decides.
ONNX Runtime (1.32) moves transposes of int8 convolutions through a Resize as if it had a number for every axis, and
then cannot load the model. torch's exporter writes ``axes``, and so does ``simplify_shape_arithmetic``.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ..graph.edit import add_node, constant_of, dim_of, has_input, new_constant, new_variable, rank_of
from ..graph.interpolation import SCALES, SIZES
from ..graph.io import Model
from ..graph.pattern import NearMiss
from .infrastructure import GraphPass

ANY_SCALE = ("align_corners", "asymmetric", "half_pixel", "pytorch_half_pixel")  # same positions by scales and by sizes


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Rewrite every Resize of the two sides of a map."""
    count = 0
    for node in [node for node in model.graph.nodes if node.op == "Resize" and node.attrs.get("axes")]:
        found = _numbers(node)
        if isinstance(found, str):
            near_misses.append(NearMiss(found, node.name))
            continue
        place, values = found
        empty = gs.Variable.empty()
        numbers = _four(model.graph, node, "sizes" if place == SIZES else "scales", values)
        node.inputs = [node.inputs[0], empty, numbers] if place == SCALES else [node.inputs[0], empty, empty, numbers]
        del node.attrs["axes"]
        count += 1
    return count


def _four(graph: gs.Graph, node: gs.Node, kind: str, values: np.ndarray) -> gs.Tensor:
    """``values`` as a constant; of two sizes, behind those of batch and channels as they are when the model runs."""
    numbers = new_constant(graph, f"{node.name}_{kind}", values)
    if values.size == 4:
        return numbers
    leading = new_variable(graph, f"{node.name}_leading", np.int64, [2])
    add_node(graph, "Shape", [node.inputs[0]], [leading], stem=f"{node.name}_leading", attrs={"end": 2})
    sizes = new_variable(graph, f"{node.name}_all_sizes", np.int64, [4])
    add_node(graph, "Concat", [leading, numbers], [sizes], stem=f"{node.name}_all_sizes", attrs={"axis": 0})
    return sizes


def _numbers(node: gs.Node) -> tuple[int, np.ndarray] | str:
    """The input that takes four numbers, and these or two sizes; or why there are none."""
    source = node.inputs[0]
    if rank_of(source) != 4 or [axis % 4 for axis in node.attrs["axes"]] != [2, 3]:
        return "it resizes other axes than the two sides of a map"
    if node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "it keeps the ratio of its sides"
    place = SIZES if has_input(node, SIZES) else SCALES
    values = constant_of(node.inputs[place]) if has_input(node, place) else None
    if values is None or values.size != 2:
        return "its sizes or scales are not fixed"
    if place == SCALES:
        return SCALES, np.array([1, 1, *values], np.float32)
    leading = [dim_of(source, axis) for axis in (0, 1)]
    if None not in leading:
        return SIZES, np.array([*leading, *values], np.int64)
    scales = _scales(node, values)
    return (SIZES, values) if scales is None else (SCALES, np.array([1, 1, *scales], np.float32))


def _scales(node: gs.Node, sizes: np.ndarray) -> list[np.float32] | None:
    """The scales that mean the same as ``sizes`` of the two sides, if there are any."""
    if node.attrs.get("coordinate_transformation_mode", "half_pixel") not in ANY_SCALE:
        return None
    nearest = node.attrs.get("mode", "nearest") == "nearest"
    sides = zip((2, 3), sizes, strict=True)
    scales = [_scale(dim_of(node.inputs[0], axis), int(size), nearest) for axis, size in sides]
    found = [scale for scale in scales if scale is not None]
    return found if len(found) == len(scales) else None


def _scale(before: int | None, after: int, exact: bool = False) -> np.float32 | None:
    """The float32 at ``after / before`` whose product with ``before``, rounded down, is ``after``, if there is one.

    The runtime multiplies in float32, shape inference of ONNX in float64. One step more moves what is interpolated by
    nothing, but the nearest pixel may be another one.
    """
    if not before:
        return None
    near = np.float32(after) / np.float32(before)
    for scale in (near,) if exact else (near, np.nextafter(near, np.float32(np.inf))):
        if int(np.float32(before) * scale) == after == int(before * float(scale)):
            return np.float32(scale)
    return None


PASS = GraphPass("resize_all_axes", apply)
