"""A chain of Reshapes and Transposes as one permutation of factored axes, and its cheapest spelling.

Every Reshape only regroups factors of the axes, every Transpose only reorders them. So a chain is: the factors in the
order of the input, the same factors in the order of the output. ``Movement`` follows a chain step by step and splits
axes into factors as the steps ask for it; ``spell`` writes the permutation anew.

What ONNX Runtime's Transpose costs (measured, 1 thread, uint8 and float alike): a permutation that moves single
elements takes about 8 ns for each of them; one that keeps the last axis moves whole blocks, 10 to 20 ns each; one that
swaps two neighbouring groups of axes (NCHW to NHWC and back) has a blocked kernel, below 0.5 ns for each element. So
a permutation that changes the last axis is spelled as such a swap and a movement of blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ...graph.symbolic.dims import Dim, Monomial, divide, multiply

ELEMENT_NS = 8.0
BLOCK_NS = 15.0
SWAP_NS = 0.4
COPY_NS = 0.1


@dataclass(eq=False)
class Factor:
    """A factor of an axis: a number above 1, or a free dimension; two factors are equal only when identical."""

    size: Dim


@dataclass
class Step:
    """``Transpose`` with a permutation, or ``Reshape`` to dimensions of which at most one is not a number."""

    op: str
    perm: tuple[int, ...] = ()
    dims: tuple[Dim, ...] = ()


@dataclass
class Movement:
    """Factors in the input's order (``source``) and, axis by axis, in the present order (``axes``)."""

    source: list[Factor]
    axes: list[list[Factor]]
    steps: list[Step] = field(default_factory=list)

    @classmethod
    def of(cls, shape: Sequence[Dim]) -> Movement:
        """No movement yet, of a tensor with ``shape`` (all dimensions known)."""
        axes = [[] if dim == 1 else [Factor(dim)] for dim in shape]
        return cls([factor for axis in axes for factor in axis], axes)

    @property
    def order(self) -> list[Factor]:
        """The factors in the present order."""
        return [factor for axis in self.axes for factor in axis]

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The present shape."""
        return tuple(size_of(axis) for axis in self.axes)

    def transpose(self, perm: Sequence[int]) -> None:
        """Reorder the axes."""
        self.steps.append(Step("Transpose", perm=tuple(perm)))
        self.axes = [self.axes[index] for index in perm]

    def reshape(self, shape: Sequence[Dim]) -> bool:
        """Regroup the factors to ``shape``; False, and unusable, when that needs more than splitting factors."""
        pending = self.order
        axes: list[list[Factor]] = []
        for dim in shape:
            axis: list[Factor] = []
            rest: Dim | None = dim
            while rest != 1:
                if rest is None or not pending:
                    return False
                taken = self._take(pending, rest)
                if taken is None:
                    return False
                axis.append(taken)
                rest = _quotient(rest, taken.size)
            axes.append(axis)
        if pending:
            return False
        self.axes = axes
        self.steps.append(Step("Reshape", dims=tuple(shape)))
        return True

    def _take(self, pending: list[Factor], wanted: Dim) -> Factor | None:
        """Remove from the front of ``pending`` a factor that divides ``wanted``, split off when need be."""
        first = pending[0]
        if _quotient(wanted, first.size) is not None:
            return pending.pop(0)
        inner = _quotient(first.size, wanted)
        if inner is None:
            return None
        pair = [Factor(wanted), Factor(inner)]
        for factors in (self.source, pending, *self.axes):
            if first in factors:
                position = factors.index(first)
                factors[position : position + 1] = pair
        return pending.pop(0)

    def runs(self, order: Sequence[Factor]) -> list[list[Factor]]:
        """``order`` cut into runs that are contiguous in the present order too; the fewest axes that express it."""
        following = dict(zip(map(id, self.order), map(id, self.order[1:]), strict=False))
        runs: list[list[Factor]] = []
        for factor in order:
            if runs and following.get(id(runs[-1][-1])) == id(factor):
                runs[-1].append(factor)
            else:
                runs.append([factor])
        return runs

    def reorder(self, order: Sequence[Factor], final: Sequence[list[Factor]] = ()) -> None:
        """Bring the factors into ``order`` with one Transpose.

        A Reshape comes before it when an axis must split, or after another Transpose, with which it would be merged
        into one slow permutation. It makes the axes ``final`` where these are contiguous, so that none is needed later.
        """
        if [id(factor) for factor in order] == [id(factor) for factor in self.order]:
            return
        place = {id(factor): index for index, factor in enumerate(order)}
        split = any(place[id(b)] != place[id(a)] + 1 for axis in self.axes for a, b in pairwise(axis))
        if split or (self.steps and self.steps[-1].op == "Transpose"):
            present = {id(factor): index for index, factor in enumerate(self.order)}
            whole = bool(final) and all(
                present[id(b)] == present[id(a)] + 1 for axis in final for a, b in pairwise(axis)
            )
            groups = final if whole else self.runs(order)
            regrouped = sorted(groups, key=lambda group: present[id(group[0])] if group else -1)
            if tuple(map(size_of, regrouped)) != self.dims:
                self.axes = regrouped
                self.steps.append(Step("Reshape", dims=self.dims))
        rank = range(len(self.axes))
        perm = sorted(rank, key=lambda index: place[id(self.axes[index][0])] if self.axes[index] else -1)
        if self.steps and self.steps[-1].op == "Transpose":
            self.axes = [self.axes[index] for index in perm]
            self.steps[-1] = Step("Transpose", perm=tuple(self.steps[-1].perm[index] for index in perm))
        else:
            self.transpose(perm)


def size_of(factors: Sequence[Factor]) -> Dim:
    """Product of the sizes of ``factors``."""
    total: Dim = 1
    for factor in factors:
        product = multiply(total, factor.size)
        assert isinstance(product, (int, Monomial))
        total = product
    return total


def _quotient(a: Dim, b: Dim) -> Dim | None:
    result = a if b == 1 else divide(a, b, whole=True) if _divides(a, b) else None
    return result if isinstance(result, (int, Monomial)) else None


def _divides(a: Dim, b: Dim) -> bool:
    if isinstance(a, int) and isinstance(b, int):
        return b > 0 and a % b == 0
    return not isinstance(a, int)


def spell(movement: Movement, shape: Sequence[Dim]) -> Movement:
    """The movement of ``movement`` written anew, with the fewest and cheapest steps.

    Args:
        movement: Where each factor goes.
        shape: Shape of the input, to start from.

    Returns:
        A movement of the same input with the same present order and dimensions; its ``steps`` are the spelling.
    """
    candidates = [_spelled(movement, shape, orders) for orders in _routes(movement)]
    return min(candidates, key=lambda candidate: (cost(candidate, shape), len(candidate.steps)))


def _routes(movement: Movement) -> list[list[list[Factor]]]:
    """Orders to pass through: directly; the last axis first and then blocks; blocks first and then the last axis."""
    final = movement.order
    start = Movement(list(movement.source), [[factor] for factor in movement.source])
    runs = start.runs(final)
    last = runs[-1] if runs else []
    inner = [factor for factor in movement.source if factor not in last]
    routes = [[final], [[*inner, *last], final]]
    tail = next((run for run in runs if movement.source and run[-1] is movement.source[-1]), [])
    routes.append([[*(factor for factor in final if factor not in tail), *tail], final])
    return routes


def _spelled(movement: Movement, shape: Sequence[Dim], orders: list[list[Factor]]) -> Movement:
    result = Movement(list(movement.source), _grouped(movement.source, shape))
    for order in orders[:-1]:
        result.reorder(order)
    result.reorder(orders[-1], movement.axes)
    if result.dims != movement.dims:
        result.steps.append(Step("Reshape", dims=movement.dims))
    result.axes = movement.axes
    return result


def _grouped(factors: Sequence[Factor], shape: Sequence[Dim]) -> list[list[Factor]]:
    """``factors``, in order, as the axes of ``shape``."""
    pending = list(factors)
    axes: list[list[Factor]] = []
    for dim in shape:
        axis: list[Factor] = []
        while size_of(axis) != dim:
            axis.append(pending.pop(0))
        axes.append(axis)
    return axes


def cost(movement: Movement, shape: Sequence[Dim]) -> float:
    """Time in nanoseconds of the Transposes of ``movement`` on ``shape``, free dimensions counted as 1."""
    dims, total = [_number(dim) for dim in shape], 0.0
    for step in movement.steps:
        if step.op == "Reshape":
            dims = [_number(dim) for dim in step.dims]
        else:
            total += transpose_cost(dims, step.perm)
            dims = [dims[index] for index in step.perm]
    return total


def transpose_cost(dims: Sequence[int], perm: Sequence[int]) -> float:
    """Time in nanoseconds of one Transpose, from what kind of kernel it gets (see the module)."""
    elements = 1
    for dim in dims:
        elements *= dim
    merged: list[list[int]] = []
    for index in perm:
        if dims[index] == 1:
            continue
        before = merged[-1][-1] if merged else index
        if before < index and all(dims[between] == 1 for between in range(before + 1, index)):
            merged[-1].append(index)
        else:
            merged.append([index])
    if len(merged) <= 1:
        return elements * COPY_NS
    last = merged[-1]
    if max(last) == max(index for run in merged for index in run):
        block = 1
        for index in last:
            block *= dims[index]
        return elements * COPY_NS + elements / block * BLOCK_NS
    ordered = sorted(range(len(merged)), key=lambda position: merged[position][0])
    moved = [position for position, place in enumerate(ordered) if position != place]
    swap = len(moved) == 2 and moved[1] == moved[0] + 1
    return elements * (SWAP_NS if swap else ELEMENT_NS)


def _number(dim: Dim) -> int:
    if dim is None:
        return 1
    return dim if isinstance(dim, int) else max(1, int(dim.coefficient))
