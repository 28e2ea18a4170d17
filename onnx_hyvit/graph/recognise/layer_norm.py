"""Decomposed layer normalization in every spelling that exporters write, as one pattern with alternatives.

    y = (x - mean(x)) / sqrt(var(x) + eps) * gamma + beta

The pieces vary on their own: the variance is a mean of squares (Pow, Mul or a second Sub) or ``mean(x^2) - mean(x)^2``,
the division is Div, Mul by Reciprocal, by ``1 / .`` or by ``Pow(., -0.5)``, and the affine part is absent, outside, or
multiplied into the inverse deviation first (Keras, flax).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from ..edit import constant_of, dim_of, ints_of, is_graph_output, rank_of
from ..pattern import Const, Match, NearMiss, OneOf, Op, Pattern, Var, match_at


@dataclass(frozen=True)
class LayerNormMatch:
    """A decomposed layer normalization: graph objects for the rewrite.

    Args:
        match: The matched nodes.
        source: Tensor x.
        output: Tensor y.
        axes: Normalized axes, all negative.
        eps: Epsilon.
        gamma: Array [normalized shape] or None.
        beta: Array [normalized shape] or None.
    """

    match: Match
    source: gs.Tensor
    output: gs.Tensor
    axes: tuple[int, ...]
    eps: float
    gamma: np.ndarray | None
    beta: np.ndarray | None


def _keeps_dims(attrs: object) -> bool:
    return bool(attrs.get("keepdims", 1))  # type: ignore[attr-defined]


def _mean(x: Pattern, name: str | None = None) -> Op:
    return Op("ReduceMean", x, name=name, attrs=_keeps_dims, more_inputs=True)


def _square(x: Pattern) -> OneOf:
    return OneOf(Op("Pow", x, Const(value=2.0)), Op("Mul", x, x))


class _Parts:
    """Sub-patterns over one ``x``; built afresh for each root form, since a pattern object stands for one node."""

    def __init__(self) -> None:
        self.x = Var("x", lambda tensor: constant_of(tensor) is None)
        self.mean = _mean(self.x, "mean")
        self.centred = Op("Sub", self.x, self.mean)
        self.inverse = self._inverse()

    def _variance(self) -> OneOf:
        again = Op("Sub", self.x, OneOf(self.mean, _mean(self.x)))
        fast = Op("Sub", _mean(_square(self.x), "var"), _square(OneOf(self.mean, _mean(self.x))))
        return OneOf(
            _mean(_square(self.centred), "var"),
            _mean(_square(again), "var"),
            fast,
            Op("Max|Clip", fast, Const(value=0.0)),
            Op("Clip", fast, Const(value=0.0), more_inputs=True),
            Op("Relu", fast),
        )

    def _inverse(self) -> tuple[OneOf, OneOf]:
        """``(deviation, 1 / deviation)``."""
        eps = Const("eps", check=lambda array: array.size == 1)
        total = Op("Add", self._variance(), eps)
        deviation = OneOf(Op("Sqrt", total), Op("Pow", total, Const(value=0.5)))
        inverse = OneOf(
            Op("Reciprocal", deviation),
            Op("Div", Const(value=1.0), deviation),
            Op("Pow", total, Const(value=-0.5)),
        )
        return deviation, inverse


def _normalized() -> tuple[Op, Op]:
    """Root patterns without the affine part: by Div, by Mul."""
    by_div, by_mul = _Parts(), _Parts()
    return Op("Div", by_div.centred, by_div.inverse[0]), Op("Mul", by_mul.centred, by_mul.inverse[1])


def _folded_scale() -> tuple[Op, ...]:
    """``(x - mean) * (inverse * gamma) [+ beta]`` and ``x * (inverse * gamma) + (beta - mean * (inverse * gamma))``."""
    roots = []
    for with_beta in (False, True):
        parts = _Parts()
        core = Op("Mul", parts.centred, Op("Mul", parts.inverse[1], Const("gamma")))
        roots.append(Op("Add", core, Const("beta")) if with_beta else core)
    for scaled in (True, False):
        parts = _Parts()
        factor: Pattern = Op("Mul", parts.inverse[1], Const("gamma")) if scaled else parts.inverse[1]
        offset = Op("Mul", parts.mean, factor)
        roots.append(Op("Add", Op("Mul", parts.x, factor), Op("Sub", Const("beta"), offset)))
        parts = _Parts()
        factor = Op("Mul", parts.inverse[1], Const("gamma")) if scaled else parts.inverse[1]
        offset = Op("Mul", parts.mean, factor)
        roots.append(Op("Sub", Op("Mul", parts.x, factor), offset))
        parts = _Parts()
        factor = Op("Mul", parts.inverse[1], Const("gamma")) if scaled else parts.inverse[1]
        negative = Op("Mul", Op("Neg", parts.mean), factor)
        roots.append(Op("Add", Op("Mul", parts.x, factor), Op("Add", negative, Const("beta"))))
    return tuple(roots)


def _patterns() -> tuple[Op, ...]:
    roots: list[Op] = []
    for index in (0, 1):
        roots.append(Op("Add", Op("Mul", _normalized()[index], Const("gamma")), Const("beta")))
        roots.append(Op("Add", _normalized()[index], Const("beta")))
        roots.append(Op("Mul", _normalized()[index], Const("gamma")))
        roots.append(_normalized()[index])
    return (*_folded_scale(), *roots)


PATTERNS = _patterns()
ROOTS = frozenset(op for pattern in PATTERNS for op in pattern.op.split("|"))


def iter_layer_norms(graph: gs.Graph, near_misses: list[NearMiss] | None = None) -> Iterator[LayerNormMatch]:
    """Decomposed layer normalizations over any axes, the largest form first, in reverse graph order.

    Args:
        graph: Graph to search; a caller may rewrite a match before it asks for the next.
        near_misses: Filled with the deepest failure of nodes that look like the end of a normalization.

    Yields:
        One ``LayerNormMatch`` for each normalization; only the mean may be read from outside.
    """
    taken: set[int] = set()
    for node in reversed(list(graph.nodes)):
        if node.op not in ROOTS or id(node) in taken or not node.outputs:
            continue
        found = _match(graph, node)
        if isinstance(found, LayerNormMatch):
            taken.update(id(member) for member in found.match.nodes)
            yield found
        elif near_misses is not None and found is not None and found.depth >= 4:
            near_misses.append(found)


def _match(graph: gs.Graph, node: gs.Node) -> LayerNormMatch | NearMiss | None:
    miss: NearMiss | None = None
    for pattern in PATTERNS:
        if node.op not in pattern.op.split("|"):
            continue
        details: list[LayerNormMatch] = []

        def check(match: Match, details: list[LayerNormMatch] = details) -> str | None:
            leak = _leak(graph, match)
            if leak is not None:
                return leak
            found = _details(match)
            if isinstance(found, str):
                return found
            details[:] = [found]
            return None

        found = match_at(graph, pattern, node, check, closed=False)
        if isinstance(found, Match):
            return details[0]
        if miss is None or found.depth > miss.depth:
            miss = found
    return miss


def _leak(graph: gs.Graph, match: Match) -> str | None:
    """Only the mean may be read outside: it is cheap, and stays for its other readers."""
    inside = {id(node) for node in match.nodes}
    for node in match.nodes[1:]:
        if node.op == "ReduceMean" and node is match.named_nodes.get("mean"):
            continue
        for tensor in node.outputs:
            if is_graph_output(graph, tensor):
                return f"inner tensor {tensor.name!r} is a graph output"
            if any(id(user) not in inside and user.op != "Identity" for user in tensor.outputs):
                return f"inner tensor {tensor.name!r} is read elsewhere too"
    return None


def _details(match: Match) -> LayerNormMatch | str:
    source = match.tensor("x")
    axes = {_axes(node, source) for node in match.nodes if node.op == "ReduceMean"}
    if len(axes) != 1 or None in axes:
        return "the means run over different or unknown axes"
    (negative,) = axes
    assert negative is not None
    arrays: list[np.ndarray | None] = []
    for name in ("gamma", "beta"):
        if name not in match.tensors:
            arrays.append(None)
            continue
        shaped = _per_element(match.value(name), source, negative)
        if shaped is None:
            return f"{name} varies along axes that are not normalized, or its shape is unknown"
        arrays.append(shaped)
    eps = float(match.value("eps").reshape(-1)[0])
    return LayerNormMatch(match, source, match.output, negative, eps, arrays[0], arrays[1])


def _axes(node: gs.Node, source: gs.Tensor) -> tuple[int, ...] | None:
    axes, rank = ints_of(node, "axes", 1), rank_of(source)
    if axes is None or not axes:
        return None
    if all(axis < 0 for axis in axes):
        return tuple(sorted(axes))
    return None if rank is None else tuple(sorted(axis - rank if axis >= 0 else axis for axis in axes))


def _per_element(values: np.ndarray, source: gs.Tensor, axes: tuple[int, ...]) -> np.ndarray | None:
    """``values`` as an array over the normalized axes, or None when it varies along others."""
    dims = [dim_of(source, axis) for axis in axes]
    if any(dim is None for dim in dims):
        if len(axes) == 1 and axes[0] == -1 and values.ndim and values.size == values.shape[-1] > 1:
            return values.reshape(-1)
        return None
    if any(values.shape[axis] != 1 for axis in range(-values.ndim, 0) if axis not in axes):
        return None
    if values.ndim > (rank_of(source) or values.ndim):
        return None
    full = values.reshape([values.shape[axis] if -axis <= values.ndim else 1 for axis in axes])
    try:
        return np.broadcast_to(full, dims).copy()  # type: ignore[arg-type]
    except ValueError:
        return None
