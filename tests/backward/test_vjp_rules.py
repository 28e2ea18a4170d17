"""Every VJP rule against central differences of the forward operator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from definitions import DEFINITIONS
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from vjp_cases import CASES, Case

from onnx_hyvit.backward import build_backward, linear_loss, supported_ops

Feeds = dict[str, np.ndarray]


def _model(case: Case, dtype: int) -> onnx.ModelProto:
    names = ["" if value is None else f"x{index}" for index, value in enumerate(case.inputs)]
    constants = []
    for index, value in enumerate(case.inputs):
        if value is not None and not isinstance(value, tuple):
            keep = value.dtype != np.float32 or (case.op == "Resize" and index in (1, 2))
            array = value if keep else value.astype(helper.tensor_dtype_to_np_dtype(dtype))
            constants.append(numpy_helper.from_array(np.asarray(array), f"x{index}"))
    outputs = [f"y{index}" for index in range(case.outputs)]
    attrs = {**case.attrs, "to": dtype} if case.op == "Cast" else case.attrs
    graph = helper.make_graph(
        [helper.make_node(case.op, names, outputs, name="node", domain=case.domain, **attrs)],
        "case",
        [
            helper.make_tensor_value_info(f"x{index}", dtype, shape)
            for index, shape in enumerate(case.inputs)
            if isinstance(shape, tuple)
        ],
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
        constants,
    )
    imports = [helper.make_opsetid("", case.opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def _oracle(case: Case, run_model) -> tuple[Callable[[Feeds], list[np.ndarray]], float]:
    """Forward function, and the step of the central differences that suits it.

    Linear operators that the reference evaluator does not cover run in float32, where a large step is exact.
    """
    if case.op in DEFINITIONS:
        rest = [value.astype(np.float64) for value in case.inputs if isinstance(value, np.ndarray)]
        return lambda feeds: [DEFINITIONS[case.op](case.attrs, *feeds.values(), *rest)], 1e-5
    if case.linear:
        model = _model(case, TensorProto.FLOAT)
        return lambda feeds: list(run_model(model, {k: v.astype(np.float32) for k, v in feeds.items()}).values()), 0.5
    evaluator = ReferenceEvaluator(_model(case, TensorProto.DOUBLE))
    return lambda feeds: evaluator.run(None, feeds), 1e-5


def _draw(case: Case, rng: np.random.Generator) -> Feeds:
    """Values far apart and off the kinks, so that maxima and masks do not change within a step."""
    feeds = {}
    for index, shape in enumerate(case.inputs):
        if isinstance(shape, tuple):
            size = int(np.prod(shape))
            grid = np.linspace(case.low, case.high, 2 * size + 3)[1 : 2 * size + 1 : 2] + rng.uniform(0, 0.01)
            feeds[f"x{index}"] = rng.permutation(grid).reshape(shape).astype(np.float32)
    return feeds


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule_agrees_with_central_differences(case: Case, run_model) -> None:
    rng = np.random.default_rng(7)
    model = _model(case, TensorProto.FLOAT)
    feeds = _draw(case, rng)
    forward = run_model(model, feeds)
    evaluate, epsilon = _oracle(case, run_model)
    wide = {name: value.astype(np.float64) for name, value in feeds.items()}
    for ours, reference in zip(forward.values(), evaluate(wide), strict=True):
        np.testing.assert_allclose(ours, reference, rtol=2e-4, atol=2e-4, err_msg="the two forwards differ")

    shapes = {name: value.shape for name, value in {**feeds, **forward}.items()}
    backward = build_backward(model, list(feeds), linear_loss({n: shapes[n] for n in forward}), shapes)
    assert not backward.unsupported
    seeds = {f"noise/{name}": rng.normal(size=value.shape).astype(np.float32) for name, value in forward.items()}
    found = run_model(backward.proto, {**feeds, **seeds})

    def loss(values: Feeds) -> float:
        return sum(
            float((seed.astype(np.float64) * y).sum()) for seed, y in zip(seeds.values(), evaluate(values), strict=True)
        )

    for name, value in wide.items():
        gradient = found[backward.gradients[name]]
        assert gradient.shape == value.shape
        for flat in rng.permutation(value.size)[:24]:
            step = np.zeros(value.size)
            step[flat] = epsilon
            step = step.reshape(value.shape)
            rise = loss({**wide, name: value + step}) - loss({**wide, name: value - step})
            expected = pytest.approx(rise / (2 * epsilon), rel=1e-3, abs=2e-4)
            assert gradient.reshape(-1)[flat] == expected, f"{name}[{flat}]"


def test_every_rule_has_a_case() -> None:
    aliases = {"CastLike", "SimplifiedLayerNormalization", "Swish", "Upsample"}  # same function as an operator tested
    assert supported_ops() - {case.op for case in CASES} == aliases
