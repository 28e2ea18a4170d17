"""VJP of Resize and Upsample: interpolation is linear and separable, one matrix per axis, so the adjoint is too."""

from __future__ import annotations

from collections.abc import Sequence

from ..graph.interpolation import Interpolation, interpolation_matrix, interpolation_of
from .registry import ForwardNode, Gradients, NoRule, vjp
from .shape_ops import constant_input, first
from .tape import Tape


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
    how = interpolation_of(node.attrs)
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
