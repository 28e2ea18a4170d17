from __future__ import annotations

import numpy as np
import pytest

from onnx_hyvit.errors import ConfigError
from onnx_hyvit.reconstruct.objective import ErrorSum, Objective

RNG = np.random.default_rng(0)
EXACT = RNG.standard_normal((4, 3, 5)).astype(np.float32)
FOUND = EXACT + 0.1 * RNG.standard_normal(EXACT.shape).astype(np.float32)


def summed(objective: Objective) -> float:
    total = ErrorSum(objective)
    for half in (slice(0, 2), slice(2, 4)):
        total.update({"y": EXACT[half]}, {"y": FOUND[half]}, ["y"])
    return total.value()


def test_squared_error_is_relative_to_the_size_of_all_batches():
    assert summed(Objective("mse")) == pytest.approx(((FOUND - EXACT) ** 2).sum() / (EXACT**2).sum(), rel=1e-5)


def test_fisher_weights_count_per_element_of_a_sample():
    weight = RNG.random((1, 3, 5)).astype(np.float32)
    expected = (weight * (FOUND - EXACT) ** 2).sum() / (weight * EXACT**2).sum()
    assert summed(Objective("fisher", {"y": weight})) == pytest.approx(expected, rel=1e-5)
    assert summed(Objective("fisher", {})) == pytest.approx(summed(Objective("mse")), rel=1e-6)


def test_cosine_is_that_of_each_sample():
    cosines = [a.ravel() @ b.ravel() / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(EXACT, FOUND, strict=True)]
    assert summed(Objective("cosine")) == pytest.approx(1 - np.mean(cosines), rel=1e-4)
    doubled = ErrorSum(Objective("cosine"))
    doubled.update({"y": EXACT}, {"y": 2 * EXACT}, ["y"])
    assert doubled.value() == pytest.approx(0, abs=1e-6)


def test_an_unknown_metric_is_refused():
    with pytest.raises(ConfigError, match="mse, fisher, cosine"):
        Objective("l1")  # type: ignore[arg-type]
