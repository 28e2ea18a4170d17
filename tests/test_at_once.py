"""Batches at the same time: in order, no more than asked for, and with the results of one after the other."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from reconstruct_cases import DATA, graph, prepared_for

from onnx_hyvit.recipes import Reconstruction
from onnx_hyvit.reconstruct import reconstruct
from onnx_hyvit.runtime import Share, run_at_once, share_threads


@pytest.mark.parametrize(
    ("threads", "batches", "share"),
    [(1, 8, Share(1, 1)), (2, 8, Share(2, 1)), (16, 4, Share(4, 1)), (4, 1, Share(1, 4)), (3, 0, Share(1, 3))],
)
def test_batches_come_before_threads_inside_of_one(threads: int, batches: int, share: Share) -> None:
    assert share_threads(threads, batches) == share


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_results_come_in_order(at_once: int) -> None:
    late = threading.Event()

    def square(number: int) -> int:
        if at_once > 1 and number == 0:
            assert late.wait(60)  # the first is the last to end
        late.set()
        return number * number

    assert list(run_at_once(square, range(7), at_once)) == [0, 1, 4, 9, 16, 25, 36]


def test_as_many_run_at_the_same_time_as_asked_for() -> None:
    together = threading.Barrier(3, timeout=60)
    assert len(list(run_at_once(lambda _: together.wait(), range(6), 3))) == 6


def test_items_are_not_taken_long_before_they_are_needed() -> None:
    taken = []

    def items():
        for number in range(20):
            taken.append(number)
            yield number

    ahead = [len(taken) - done for done, _ in enumerate(run_at_once(abs, items(), 2))]
    assert max(ahead) <= 5


def test_what_a_call_raises_arrives() -> None:
    with pytest.raises(ZeroDivisionError):
        list(run_at_once(lambda number: 1 // number, [2, 1, 0, 1], 2))


def test_a_reconstruction_does_not_depend_on_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    real = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (seen.add(thread.name), real(thread))[1])
    found = []
    for threads in (1, 3):
        prepared, plan, qparams, source, _ = prepared_for("w4a8", graph(), DATA)
        seen.clear()
        found.append(
            reconstruct(
                prepared.model, plan, qparams, prepared.shapes, source, Reconstruction(rerank=3), threads=threads
            )
        )
        assert bool(seen) == (threads > 1)
    one, three = found
    assert one.qparams.keys() == three.qparams.keys() and one.parameters.keys() == three.parameters.keys()
    for name, qparams in one.qparams.items():
        np.testing.assert_array_equal(qparams.scale, three.qparams[name].scale)
        np.testing.assert_array_equal(qparams.zero_point, three.qparams[name].zero_point)
    for name, values in one.parameters.items():
        np.testing.assert_array_equal(values, three.parameters[name])
    assert one.divergence_after == three.divergence_after
