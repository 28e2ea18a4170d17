"""The fit finds the coefficients of made-up kernels, whatever a few disturbed calls say."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_hyvit.costs import Kernel, Work, fit_kernel, kernel_of_event, work_of

TRUE = Kernel(fixed_us=3.0, ns_per_mac=0.02, ns_per_written=0.5, ns_per_gathered=0.3)


def measured(count: int = 40, seed: int = 0) -> tuple[list[Work], np.ndarray]:
    random = np.random.default_rng(seed)
    work = [Work(*(int(10 ** random.uniform(2, 6)) for _ in range(5))) for _ in range(count)]
    return work, np.array([TRUE.us(item) for item in work])


def test_fit_finds_the_coefficients() -> None:
    work, times = measured()
    found = fit_kernel(work, times)
    assert found.fixed_us == pytest.approx(3.0, rel=1e-3)
    assert found.ns_per_mac == pytest.approx(0.02, rel=1e-3)
    assert found.ns_per_written == pytest.approx(0.5, rel=1e-3)
    assert found.ns_per_gathered == pytest.approx(0.3, rel=1e-3)
    assert found.ns_per_weight == pytest.approx(0.0, abs=1e-6)
    assert found.median_error < 1e-6 and found.calls == 40


def test_a_few_disturbed_calls_change_little() -> None:
    work, times = measured()
    times[::10] *= 5
    found = fit_kernel(work, times)
    clean = [found.us(item) / TRUE.us(item) for item in work]
    assert np.abs(np.median(clean) - 1) < 0.05


def test_no_coefficient_is_negative() -> None:
    work = [Work(macs=size, read=size) for size in (100, 1000, 10000)]
    found = fit_kernel(work, [30.0, 20.0, 10.0])
    assert min(found.fixed_us, found.ns_per_mac, found.ns_per_read) >= 0


def test_only_convolutions_with_taps_gather() -> None:
    pixels = 8 * 8
    maps = ((1, 16, 8, 8),), ((1, 16, 8, 8),)
    assert work_of("Conv", *maps, (16, 16, 1, 1)).gathered == 0
    assert work_of("Conv", *maps, (16, 16, 3, 3)).gathered == pixels * 9 * 16
    assert work_of("Conv", *maps, (16, 1, 5, 5)).gathered == pixels * 25, "one pointer for each tap"


@pytest.mark.parametrize(
    ("before", "after", "family"),
    [
        ((1, 64, 64, 64), (1, 64, 64, 64), None),  # either way
        ((1, 32, 64, 64), (1, 64, 64, 32), "int8.Transpose_aliased"),
        ((1, 16, 64, 64), (1, 64, 64, 16), "int8.Transpose"),  # few rows
        ((1, 32, 56, 56), (1, 56, 56, 32), "int8.Transpose"),  # rows that are no whole pages apart
        ((1, 64, 64, 32), (1, 32, 64, 64), "int8.Transpose"),  # back
    ],
)
def test_rows_that_throw_each_other_out_of_the_cache_are_a_family(
    before: tuple[int, ...], after: tuple[int, ...], family: str | None
) -> None:
    found = kernel_of_event("Transpose", "uint8", (before,), (after,))
    assert (found and found[0]) == family
