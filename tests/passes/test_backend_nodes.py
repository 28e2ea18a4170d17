"""ONNX's own node tests go through all passes unchanged in value: one model for each operator, version and attribute.

Every case runs twice: as it is, and with all inputs but the first made constants, which gives the passes more to do.
The quick test takes every fortieth case; the whole sweep is slow.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnx_hyvit.errors import ModelError
from onnx_hyvit.graph import load_model, model_to_proto
from onnx_hyvit.passes import CANONICAL, LOWERING, run_passes
from onnx_hyvit.passes.layout import LAYOUT

STRIDE = 40
RANDOM = ("bernoulli", "random", "multinomial", "dropout")  # other numbers in every run
# gelu_to_sigmoid, off by at most 0.02, is the one rewrite that is not exact
APPROXIMATE = ("gelu",)
# onnx's version converter makes invalid models of these two, which are refused later, by name
CONVERTER = ("test_mvn", "test_scan_sum")


@functools.cache
def cases() -> tuple[Any, ...]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")
    return tuple(case for case in found if not any(word in case.name for word in (*RANDOM, *CONVERTER)))


def run(proto: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def run_sound(proto: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any] | None:
    """The outputs; None where ONNX refuses the model or ONNX Runtime lacks the kernel."""
    try:
        onnx.checker.check_model(proto, full_check=True)
        return run(proto, feeds)
    except Exception:
        return None


def with_constants(proto: onnx.ModelProto, feeds: dict[str, Any]) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The model with every input but the first turned into an initializer."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    for name in list(feeds)[1:]:
        if isinstance(feeds[name], np.ndarray):
            fixed.graph.initializer.append(onnx.numpy_helper.from_array(feeds[name], name))
    constants = {tensor.name for tensor in fixed.graph.initializer}
    kept = [value for value in fixed.graph.input if value.name not in constants]
    del fixed.graph.input[:]
    fixed.graph.input.extend(kept)
    return fixed, {name: value for name, value in feeds.items() if name not in constants}


def same(expected: Any, found: Any, tolerance: float) -> bool:
    if isinstance(expected, list):
        return len(expected) == len(found) and all(map(same, expected, found, [tolerance] * len(found)))
    if expected is None or found is None:
        return expected is found
    before, after = np.asarray(expected), np.asarray(found)
    if before.shape != after.shape or before.dtype != after.dtype:
        return False
    if before.dtype.kind != "f":
        return bool(np.array_equal(before, after))
    reach = np.abs(before, dtype=np.float64)[np.isfinite(before)].max(initial=1e-6)
    limit = max(tolerance, 4 * float(np.finfo(before.dtype).eps))
    return bool(np.allclose(before.astype("d"), after.astype("d"), rtol=limit, atol=limit * reach, equal_nan=True))


def differences(selected: Sequence[Any]) -> tuple[list[str], int]:
    """Names of the cases that a rewrite changed or broke, and the number of models that were compared."""
    wrong, compared = [], 0
    for case in selected:
        inputs = [value.name for value in case.model.graph.input]
        sound = (case.model, dict(zip(inputs, case.data_sets[0][0], strict=False)))
        for variant, (proto, feeds) in (("inputs", sound), ("constants", with_constants(*sound))):
            expected = run_sound(proto, feeds)
            if expected is None:
                continue
            try:
                model = load_model(proto)
            except ModelError:  # refused, by name
                continue
            run_passes(model, (*CANONICAL, *LAYOUT, *LOWERING))
            tolerance = 2e-2 if any(word in case.name for word in APPROXIMATE) else 1e-4
            compared += 1
            try:
                found = run(model_to_proto(model, check=True), feeds)
                if not all(map(same, expected, found, [tolerance] * len(expected))):
                    wrong.append(f"{case.name} ({variant}): other values")
            except Exception as error:
                wrong.append(f"{case.name} ({variant}): {str(error)[:200]}")
    return wrong, compared


def test_a_sample_of_the_node_tests_keeps_its_values() -> None:
    wrong, compared = differences(cases()[::STRIDE])
    assert not wrong, "\n".join(wrong)
    assert compared > 50


@pytest.mark.slow
def test_all_node_tests_keep_their_values() -> None:
    wrong, compared = differences(cases())
    assert not wrong, "\n".join(wrong)
    assert compared > 2000
