from __future__ import annotations

import numpy as np
import pytest
from exactness import apply, count_of, ops, parse

from onnx_hyvit.passes import lower_einsum

RNG = np.random.default_rng(7)
PASS = lower_einsum.PASS

# equation, shape of x, shape of the other operand, shape of the output
WEIGHTS = [
    ("bnd,dh->bnh", "N, 5, 8", (8, 6), "N, 5, 6"),
    ("bnd,hd->bnh", "N, 5, 8", (6, 8), "N, 5, 6"),
    ("bnd,dhk->bnhk", "N, 5, 8", (8, 2, 3), "N, 5, 2, 3"),
    ("bnd,dhk->bhnk", "N, 5, 8", (8, 2, 3), "N, 2, 5, 3"),
    ("bnhk,hkd->bnd", "N, 5, 2, 4", (2, 4, 6), "N, 5, 6"),
    ("bhnk,hkd->bnd", "N, 2, 5, 4", (2, 4, 6), "N, 5, 6"),
    ("bdn,dh->bnh", "N, 8, 5", (8, 6), "N, 5, 6"),
    ("bnd,d->bn", "N, 5, 8", (8,), "N, 5"),
]
COMPUTED = [
    ("bhnd,bhmd->bhnm", "N, 2, 5, 4", "N, 2, 6, 4", "N, 2, 5, 6"),
    ("bnhd,bmhd->bhnm", "N, 5, 2, 4", "N, 6, 2, 4", "N, 2, 5, 6"),
    ("bhnm,bmhd->bnhd", "N, 2, 5, 6", "N, 6, 2, 4", "N, 5, 2, 4"),
    ("nd,dm->nm", "3, 4", "4, 5", "3, 5"),
]


@pytest.mark.parametrize("case", WEIGHTS, ids=lambda case: case[0])
@pytest.mark.parametrize("swapped", [False, True])
def test_fixed_weights(case: tuple[str, str, tuple[int, ...], str], swapped: bool) -> None:
    equation, x, shape, y = case
    if swapped:
        left, out = equation.split("->")
        equation = ",".join(left.split(",")[::-1]) + "->" + out
    operands = "w, x" if swapped else "x, w"
    text = f'agraph (float[{x}] x) => (float[{y}] y) {{ y = Einsum<equation = "{equation}">({operands}) }}'
    model = apply(parse(text, weights={"w": RNG.standard_normal(shape).astype(np.float32)}), PASS, batches=(1, 3))
    assert ops(model)["Einsum"] == 0 and ops(model)["MatMul"] == 1


@pytest.mark.parametrize("case", COMPUTED, ids=lambda case: case[0])
def test_computed_operands(case: tuple[str, str, str, str]) -> None:
    equation, a, b, y = case
    text = f'agraph (float[{a}] a, float[{b}] b) => (float[{y}] y) {{ y = Einsum<equation = "{equation}">(a, b) }}'
    model = apply(parse(text), PASS, batches=(1, 3) if a.startswith("N") else (3,))
    assert ops(model)["Einsum"] == 0 and ops(model)["MatMul"] == 1


@pytest.mark.parametrize(
    ("equation", "a", "b", "y"),
    [
        ("bnd,bnd->bn", "2, 5, 4", "2, 5, 4", "2, 5"),
        ("bnd,bmd->b", "2, 5, 4", "2, 6, 4", "2"),
        ("...d,...d->...", "2, 4", "2, 4", "2"),
        ("ii,ij->ij", "4, 4", "4, 3", "4, 3"),
        ("bn,bm->bnm", "2, 3", "2, 4", "2, 3, 4"),
    ],
)
def test_what_is_no_matrix_product(equation: str, a: str, b: str, y: str) -> None:
    text = f'agraph (float[{a}] a, float[{b}] b) => (float[{y}] y) {{ y = Einsum<equation = "{equation}">(a, b) }}'
    assert count_of(parse(text), PASS) == 0
