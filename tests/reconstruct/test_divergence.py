"""Divergence by sample against the formulas written out, and when a rise of it counts."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from qdq_graphs import parse

from onnx_hyvit.backward import Head, LossSpec
from onnx_hyvit.graph import model_to_proto
from onnx_hyvit.reconstruct.divergence import Divergence, is_worse

DATA = np.random.default_rng(0).standard_normal((10, 6)).astype(np.float32)


def scaled(factor: float) -> onnx.ModelProto:
    """y = factor x"""
    text = "g (float[N,6] x) => (float[N,6] y) { y = Mul(x, k) }"
    return model_to_proto(parse(text, k=np.array([factor], np.float32)))


def each(kind: str, batches: list[np.ndarray]) -> np.ndarray:
    judge = Divergence(
        scaled(1.0),
        LossSpec((Head("y", "y", kind, 1, (1, 6), "test"),)),
        [{"x": batch} for batch in batches],
        threads=1,
    )
    found = judge.each(judge.session(scaled(1.5)))
    assert judge.of(judge.session(scaled(1.5))) == pytest.approx(found.mean())
    assert not judge.each(judge.session(scaled(1.0))).any()
    return found


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(1, keepdims=True))


@pytest.mark.parametrize("batches", [[DATA], [DATA[:7], DATA[7:]]])
def test_kl_of_every_sample(batches: list[np.ndarray]) -> None:
    p, q = log_softmax(DATA.astype(float)), log_softmax(1.5 * DATA.astype(float))
    assert each("softmax", batches) == pytest.approx((np.exp(p) * (p - q)).sum(1), rel=1e-4)


def test_batches_are_read_again_and_not_held() -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    most = []

    class Stream:
        def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
            for row in DATA:
                batch = row[None].copy()
                alive.append(weakref.ref(batch))
                yield {"x": batch}
                most.append(sum(reference() is not None for reference in alive))

    spec = LossSpec((Head("y", "y", "softmax", 1, (1, 6), "test"),))
    streaming = Divergence(scaled(1.0), spec, Stream(), threads=1)
    streamed = streaming.each(streaming.session(scaled(1.5)))
    assert len(most) == 20 and max(most) <= 2, "one batch at a time"
    holding = Divergence(scaled(1.0), spec, list(Stream()), threads=1)
    np.testing.assert_array_equal(streamed, holding.each(holding.session(scaled(1.5))))
    assert streaming.rows == holding.rows == (1,) * 10


def test_squared_error_is_relative_to_the_batch() -> None:
    expected = 0.25 * np.square(DATA.astype(float)).mean(1) / np.square(DATA.astype(float)).mean()
    assert each("regression", [DATA]) == pytest.approx(expected, rel=1e-5)


def test_outputs_that_mix_samples_count_as_one() -> None:
    text = "g (float[N,6] x) => (float[1,6] y) { s = ReduceMean(x, axes) y = Mul(s, k) }"
    one, two = (model_to_proto(parse(text, k=np.array([k], np.float32), axes=np.array([0]))) for k in (1.0, 1.5))
    judge = Divergence(one, LossSpec((Head("y", "y", "regression", 1, (1, 6), "test"),)), [{"x": DATA}], threads=1)
    found = judge.each(judge.session(two))
    assert found.shape == (10,) and found == pytest.approx(np.full(10, 0.25), rel=1e-5)


def test_a_rise_counts_only_beyond_chance() -> None:
    rng = np.random.default_rng(1)
    before = np.square(rng.standard_normal(64))
    noisy = before.copy()
    noisy[0] *= 900  # one sample at a decision
    assert noisy.mean() > 2 * before.mean() and not is_worse(before, noisy)
    assert is_worse(before, 1.5 * before)
    assert not is_worse(before, 0.5 * before) and not is_worse(before, before)
    assert is_worse(np.array([0.1]), np.array([0.2])) and not is_worse(np.array([0.2]), np.array([0.1]))
