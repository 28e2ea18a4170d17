from __future__ import annotations

import numpy as np
import pytest

from onnx_hyvit.numerics import QuantSpec, fake_quantize, qparams_from_range
from onnx_hyvit.reconstruct.search_ranges import range_of, scheme_of, search_range

VALUES = np.random.default_rng(0).standard_normal(20000).astype(np.float32)


def squared_error(qparams) -> float:
    return float(np.square(fake_quantize(VALUES, qparams) - VALUES).mean())


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_the_error_falls_to_that_of_a_dense_grid(bits):
    spec = QuantSpec(bits=bits)
    start = qparams_from_range(-5.0, 5.0, spec)
    found, choice = search_range("x", start, squared_error(start), squared_error)
    dense = min(squared_error(qparams_from_range(-r, r, spec)) for r in np.linspace(0.5, 12, 200))
    assert choice.error_after == pytest.approx(squared_error(found)) and choice.error_after < choice.error_before
    assert choice.error_after < 1.35 * dense


def test_a_range_that_is_best_already_stays():
    spec = QuantSpec(bits=8)
    start = qparams_from_range(-1.0, 1.0, spec)
    found, choice = search_range("x", start, 1.0, lambda candidate: 1.0)
    assert found is start and choice.before == choice.after == range_of(start)


def test_ends_at_zero_are_not_moved_below_it():
    spec = QuantSpec(bits=8)
    start = qparams_from_range(0.0, 9.0, spec)
    seen = []
    search_range("x", start, 1.0, lambda candidate: seen.append(range_of(candidate)[0]) or 2.0)
    assert seen and all(low == 0.0 for low in seen)


def test_symmetric_codes_stay_symmetric():
    spec = QuantSpec(bits=8, signed=True, symmetric=True)
    start = qparams_from_range(-9.0, 9.0, spec)
    found, choice = search_range("x", start, squared_error(start), squared_error)
    assert int(found.zero_point) == 0 and choice.scheme == "symmetric" and choice.error_after < choice.error_before


def test_the_symmetric_scheme_is_taken_when_it_does_better():
    spec = QuantSpec(bits=8)
    start = qparams_from_range(-1.0, 3.0, spec)
    wanted = {128: 0.5}
    found, choice = search_range(
        "x", start, 1.0, lambda candidate: wanted.get(int(candidate.zero_point), 1.0), try_symmetric=True
    )
    assert int(found.zero_point) == 128 and scheme_of(found) == choice.scheme == "symmetric"
    assert found.spec == spec
