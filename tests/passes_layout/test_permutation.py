"""Chains of reshapes and transposes against numpy, which is the oracle."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_hyvit.graph.symbolic.dims import Monomial
from onnx_hyvit.passes.layout.permutation import Movement, cost, spell, transpose_cost

BATCH = Monomial(Fraction(1), ("N",))


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[int], list[tuple[str, list[int]]]]:
    """A shape, and Transposes and Reshapes that split axes in two or join neighbours."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4))
    dims, steps = list(shape), []
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["Transpose", "split", "join"]))
        if kind == "Transpose":
            perm = draw(st.permutations(range(len(dims))))
            dims = [dims[index] for index in perm]
            steps.append(("Transpose", list(perm)))
        elif kind == "split":
            axis = draw(st.integers(0, len(dims) - 1))
            outer = draw(st.sampled_from([f for f in range(1, dims[axis] + 1) if dims[axis] % f == 0]))
            dims = [*dims[:axis], outer, dims[axis] // outer, *dims[axis + 1 :]]
            steps.append(("Reshape", dims))
        elif len(dims) > 1:
            axis = draw(st.integers(0, len(dims) - 2))
            dims = [*dims[:axis], dims[axis] * dims[axis + 1], *dims[axis + 2 :]]
            steps.append(("Reshape", dims))
    return shape, steps


@settings(max_examples=400, deadline=None)
@given(chains())
def test_spelling_is_the_same_permutation(
    chain: tuple[list[int], list[tuple[str, list[int]]]],
) -> None:
    shape, steps = chain
    value = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    movement, expected = Movement.of(shape), value
    for op, numbers in steps:
        if op == "Transpose":
            movement.transpose(numbers)
            expected = expected.transpose(numbers)
        else:
            if not movement.reshape(numbers):
                return  # a split across two earlier factors: refused, which is allowed
            expected = expected.reshape(numbers)
    spelling = spell(movement, shape)
    for step in spelling.steps:
        value = value.transpose(step.perm) if step.op == "Transpose" else value.reshape([int(dim) for dim in step.dims])
    assert value.shape == expected.shape and (value == expected).all()
    assert all(
        a.op != "Transpose" or b.op != "Transpose" for a, b in zip(spelling.steps, spelling.steps[1:], strict=False)
    )


def mobilevit_unfold(batch: object) -> Movement:
    patches = 4 if batch == 1 else Monomial(Fraction(4), ("N",))
    rows = 144 * 16 if batch == 1 else Monomial(Fraction(144 * 16), ("N",))
    movement = Movement.of([batch, 144, 32, 32])
    assert movement.reshape([rows, 2, 16, 2])
    movement.transpose([0, 2, 1, 3])
    assert movement.reshape([batch, 144, 256, 4])
    movement.transpose([0, 3, 2, 1])
    assert movement.reshape([patches, 256, 144])
    return movement


@pytest.mark.parametrize("batch", [1, BATCH], ids=["fixed", "free"])
def test_unfold_swaps_channels_then_moves_blocks(batch: object) -> None:
    movement = mobilevit_unfold(batch)
    steps = spell(movement, [batch, 144, 32, 32]).steps
    assert [step.op for step in steps] == ["Transpose", "Reshape", "Transpose", "Reshape"]
    assert steps[0].perm == (0, 2, 3, 1)
    assert all(sum(not isinstance(dim, int) for dim in step.dims) <= 1 for step in steps)
    assert cost(spell(movement, [batch, 144, 32, 32]), [batch, 144, 32, 32]) < 0.2 * cost(
        movement, [batch, 144, 32, 32]
    )


def test_window_partition_and_back_is_nothing() -> None:
    movement = Movement.of([2, 8, 8, 16])
    movement.reshape([2, 2, 4, 2, 4, 16])
    movement.transpose([0, 1, 3, 2, 4, 5])
    movement.reshape([8, 16, 16])
    movement.reshape([2, 2, 2, 4, 4, 16])
    movement.transpose([0, 1, 3, 2, 4, 5])
    movement.reshape([2, 8, 8, 16])
    assert spell(movement, [2, 8, 8, 16]).steps == []


@pytest.mark.parametrize(("start", "target"), [([6, 4], [4, 6]), ([2, 3], [7]), ([BATCH, 3], [3, BATCH])])
def test_reshape_that_straddles_factors_is_refused(start: list[object], target: list[object]) -> None:
    movement = Movement.of(start)
    assert not movement.reshape(target)


def test_order_of_costs() -> None:
    dims = [1, 144, 32, 32]
    nothing = transpose_cost([1, 32, 1, 32], [0, 2, 1, 3])
    swap = transpose_cost(dims, [0, 2, 3, 1])
    blocks = transpose_cost([16, 2, 16, 2, 144], [1, 3, 0, 2, 4])
    single = transpose_cost([144, 16, 2, 16, 2], [2, 4, 1, 3, 0])
    assert nothing < blocks < swap < single
