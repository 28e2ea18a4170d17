"""Losses, sampled and exact Fisher weights, and forward probes, against the dense J^T F J."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from onnx_hyvit.backward import (
    build_backward,
    choose_loss,
    fisher_weights,
    forward_probe_weights,
    linear_loss,
    regularize,
)
from onnx_hyvit.errors import CalibrationError, ConfigError

CLASSES = 6
BODY = """
   a = Conv<pads=[1,1,1,1]>(x, w1)
   n = InstanceNormalization(a, s, t)
   h = Sigmoid(n)
   m = Mul(n, h)
   p = GlobalAveragePool(m)
   f = Flatten(p)
"""


def _model(tail: str = "y = Gemm(f, w2)", output: str = f"float[B,{CLASSES}] y", batch: str = "B") -> onnx.ModelProto:
    text = f'<ir_version: 10, opset_import: ["" : 20]> g (float[{batch},3,5,5] x) => ({output}) {{ {BODY} {tail} }}'
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("w1", (4, 3, 3, 3)), ("w2", (4, CLASSES)), ("s", (4,)), ("t", (4,))):
        value = rng.normal(size=shape).astype(np.float32) * (3 if name == "w2" else 1)
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    return proto


def _shapes(proto, observe_model, batch: int = 1) -> dict[str, tuple[int, ...]]:
    feeds = {"x": np.random.default_rng(9).normal(size=(batch, 3, 5, 5)).astype(np.float32)}
    return {name: value.shape for name, value in observe_model(proto, feeds).items()}


def _samples(count: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 3, 5, 5)).astype(np.float32)


def _exact(proto, target, samples, run_model, observe_model, factor) -> np.ndarray:
    """diag(J^T F J) averaged over samples, from the rows of J; ``factor(y)`` is F, ``[classes, classes]``."""
    shapes = _shapes(proto, observe_model)
    output = proto.graph.output[0].name
    model = build_backward(proto, [target], linear_loss({output: shapes[output]}), shapes)
    total = 0.0
    for sample in samples:
        y = run_model(proto, {"x": sample[None]})[output].reshape(-1).astype(np.float64)
        rows = []
        for unit in np.eye(y.size, dtype=np.float32):
            feeds = {"x": sample[None], f"noise/{output}": unit.reshape(shapes[output])}
            rows.append(run_model(model.proto, feeds)[f"grad/{target}"].reshape(-1))
        jacobian = np.asarray(rows, np.float64)
        total = total + np.einsum("ci,cd,di->i", jacobian, factor(y), jacobian)
    return (total / len(samples)).reshape(shapes[target])


def _softmax_fisher(y: np.ndarray) -> np.ndarray:
    p = np.exp(y - y.max())
    p /= p.sum()
    return np.diag(p) - np.outer(p, p)


def test_enumerated_classes_are_exact(run_model, observe_model) -> None:
    proto, samples = _model(), _samples(3)
    shapes = _shapes(proto, observe_model)
    found = fisher_weights(proto, ["a", "m", "x"], [{"x": samples}], shapes, draws=CLASSES)
    assert found.exact
    for target in ("a", "m", "x"):
        expected = _exact(proto, target, samples, run_model, observe_model, _softmax_fisher)
        np.testing.assert_allclose(found.diagonal[target], expected, rtol=1e-3, atol=1e-3 * expected.max())


def test_sampled_labels_converge_to_the_fisher_diagonal(run_model, observe_model) -> None:
    proto, samples = _model(), _samples(8)
    loss = choose_loss(proto, shapes := _shapes(proto, observe_model))
    found = fisher_weights(proto, ["a"], [{"x": samples}], shapes, draws=2, loss=loss)
    assert not found.exact
    expected = _exact(proto, "a", samples, run_model, observe_model, _softmax_fisher)
    found = [
        fisher_weights(proto, ["a"], [{"x": samples}], shapes, draws=2, seed=seed).diagonal["a"]
        for seed in range(16)  # 32 draws in all
    ]
    assert np.corrcoef(np.mean(found, axis=0).reshape(-1), expected.reshape(-1))[0, 1] > 0.9
    assert np.mean(found) == pytest.approx(expected.mean(), rel=0.1)


def test_embedding_weights_are_those_of_the_cosine(run_model, observe_model) -> None:
    proto, samples = _model("embedding = Gemm(f, w2)", f"float[B,{CLASSES}] embedding"), _samples(4)
    shapes = _shapes(proto, observe_model)

    def factor(y: np.ndarray) -> np.ndarray:
        norm = np.linalg.norm(y)
        projection = np.eye(y.size) - np.outer(y, y) / norm**2
        return projection / norm**2

    expected = _exact(proto, "m", samples, run_model, observe_model, factor)
    found = fisher_weights(proto, ["m"], [{"x": samples}], shapes, draws=64)
    assert found.loss.heads[0].kind == "embedding"
    assert np.corrcoef(found.diagonal["m"].reshape(-1), expected.reshape(-1))[0, 1] > 0.9
    assert found.diagonal["m"].mean() == pytest.approx(expected.mean(), rel=0.15)


def test_a_batch_of_samples_equals_samples_one_by_one(observe_model) -> None:
    proto, samples = _model(), _samples(4)
    one = fisher_weights(proto, ["a"], [{"x": samples}], _shapes(proto, observe_model), draws=CLASSES)
    two = fisher_weights(
        proto, ["a"], [{"x": samples[:2]}, {"x": samples[2:]}], _shapes(proto, observe_model, 2), draws=CLASSES
    )
    assert one.diagonal["a"].shape == two.diagonal["a"].shape == (1, 4, 5, 5)
    np.testing.assert_allclose(one.diagonal["a"], two.diagonal["a"], rtol=1e-4, atol=1e-7)


def test_same_seed_same_weights(observe_model) -> None:
    proto = _model()
    shapes = _shapes(proto, observe_model)
    runs = [
        fisher_weights(proto, ["a"], [{"x": _samples(2)}], shapes, draws=2, seed=seed).diagonal["a"]
        for seed in (5, 5, 6)
    ]
    assert runs[0].tobytes() == runs[1].tobytes()
    assert runs[0].tobytes() != runs[2].tobytes()


def test_targets_in_parts_equal_targets_at_once(observe_model) -> None:
    proto = _model()
    shapes = _shapes(proto, observe_model)
    targets = ["a", "n", "m"]
    whole = fisher_weights(proto, targets, [{"x": _samples(2)}], shapes, draws=4)
    parts = fisher_weights(proto, targets, [{"x": _samples(2)}], shapes, draws=4, max_memory=1)
    assert list(whole.diagonal) == list(parts.diagonal) == targets
    for target in targets:
        np.testing.assert_allclose(whole.diagonal[target], parts.diagonal[target], rtol=1e-5)


def test_an_operator_without_a_rule_falls_back_to_probes(run_model, observe_model, caplog) -> None:
    proto, samples = _model("z = Asinh(f) y = Gemm(z, w2)"), _samples(4)
    shapes = _shapes(proto, observe_model)
    with caplog.at_level(logging.WARNING):
        found = fisher_weights(proto, ["m", "z"], [{"x": samples}], shapes, draws=CLASSES, probes=16)
    assert "Asinh" in found.probed["m"]
    assert "z" not in found.probed
    assert any("Asinh" in record.message and "forward probes" in record.message for record in caplog.records)
    # the Jacobian through Asinh, from the gradient at z and the slope 1 / sqrt(1 + f^2)
    expected = 0.0
    model = build_backward(proto, ["z"], linear_loss({"y": (1, CLASSES)}), shapes)
    for sample in samples:
        values = observe_model(proto, {"x": sample[None]})
        rows = [
            run_model(model.proto, {"x": sample[None], "noise/y": unit[None]})["grad/z"][0]
            for unit in np.eye(CLASSES, dtype=np.float32)
        ]
        jacobian = np.asarray(rows) / np.sqrt(1 + values["f"] ** 2) / 25  # the mean over 25 positions
        expected = expected + np.einsum("ci,cd,di->i", jacobian, _softmax_fisher(values["y"][0]), jacobian)
    np.testing.assert_allclose(found.diagonal["m"][0, :, 2, 3], expected / len(samples), rtol=0.6)
    assert np.corrcoef(found.diagonal["m"][0, :, 0, 0], expected)[0, 1] > 0.9


def test_disconnected_targets_weigh_nothing(observe_model) -> None:
    proto = _model("r = Round(m) q = ReduceSum(r) y0 = Gemm(f, w2) zero = Sub(q, q) y = Add(y0, zero)")
    shapes = _shapes(proto, observe_model)
    found = fisher_weights(proto, ["r", "m"], [{"x": _samples(1)}], shapes, draws=2)
    np.testing.assert_array_equal(found.elementwise("m").mean(), pytest.approx(1.0))
    assert found.diagonal["r"].max() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("tail", "output", "kind", "tensor"),
    [
        ("y = Gemm(f, w2)", f"float[B,{CLASSES}] y", "softmax", "y"),
        ("l = Gemm(f, w2) y = Softmax(l)", f"float[B,{CLASSES}] y", "softmax", "l"),
        ("l = Gemm(f, w2) z = LogSoftmax(l) y = Identity(z)", f"float[B,{CLASSES}] y", "softmax", "l"),
        ("y = ArgMax<axis=1>(m)", "int64[B,1,5,5] y", "softmax", "m"),
        ("y = Sigmoid(m)", "float[B,4,5,5] y", "bernoulli", "m"),
        ("l = Gemm(f, w2) y = LpNormalization(l)", f"float[B,{CLASSES}] y", "embedding", "y"),
        ("l = Gemm(f, w2) d = ReduceL2<keepdims=1>(l) y = Div(l, d)", f"float[B,{CLASSES}] y", "embedding", "y"),
        ("features = Gemm(f, w2)", f"float[B,{CLASSES}] features", "embedding", "features"),
        ("pred_boxes = Gemm(f, w2)", f"float[B,{CLASSES}] pred_boxes", "regression", "pred_boxes"),
        ("transpose_0 = Gemm(f, w2)", f"float[B,{CLASSES}] transpose_0", "softmax", "transpose_0"),
        ("y = Tanh(m)", "float[B,4,5,5] y", "regression", "y"),
        ("logits = Tanh(m)", "float[B,4,5,5] logits", "softmax", "logits"),
    ],
)
def test_the_loss_is_chosen_from_the_end_of_the_graph(tail, output, kind, tensor, observe_model, run_model) -> None:
    proto = _model(tail, output)
    shapes = _shapes(proto, observe_model)
    loss = choose_loss(proto, shapes)
    assert [(head.kind, head.tensor) for head in loss.heads] == [(kind, tensor)]
    assert loss.heads[0].reason in loss.describe()
    found = fisher_weights(proto, ["n"], [{"x": _samples(1)}], shapes, draws=2, loss=loss)
    assert np.isfinite(found.diagonal["n"]).all()
    assert found.diagonal["n"].max() > 0


def test_a_segmentation_head_uses_the_class_axis(observe_model) -> None:
    proto = _model("logits = Tanh(m)", "float[B,4,5,5] logits")
    assert choose_loss(proto, _shapes(proto, observe_model)).heads[0].axis == 1


def test_losses_are_those_asked_for(observe_model) -> None:
    proto = _model("y = Gemm(f, w2) e = Tanh(m)", f"float[B,{CLASSES}] y, float[B,4,5,5] e")
    shapes = _shapes(proto, observe_model)

    def kinds(**asked: str) -> list[tuple[str, str]]:
        return [(head.kind, head.reason) for head in choose_loss(proto, shapes, asked).heads]

    guessed = [(head.kind, head.reason) for head in choose_loss(proto, shapes).heads]
    assert kinds(y="regression") == [("regression", "asked for"), guessed[1]]
    assert kinds(e="segmentation") == [guessed[0], ("softmax", "asked for")]
    assert kinds(**{"": "regression", "y": "auto"}) == [guessed[0], ("regression", "asked for")]
    with pytest.raises(ConfigError, match="no output 'boxes'; expected one of y, e"):
        choose_loss(proto, shapes, {"boxes": "regression"})


def test_losses_of_several_outputs_add_up(observe_model) -> None:
    proto = _model("y = Gemm(f, w2) e = Tanh(m)", f"float[B,{CLASSES}] y, float[B,4,5,5] e")
    shapes = _shapes(proto, observe_model)
    both = choose_loss(proto, shapes)
    assert [head.kind for head in both.heads] == ["softmax", "regression"]
    assert both.classes is None
    each = [fisher_weights(proto, ["m"], [{"x": _samples(4)}], shapes, draws=32, loss=type(both)((head,)))
            for head in both.heads]  # fmt: skip
    total = fisher_weights(proto, ["m"], [{"x": _samples(4)}], shapes, draws=32, loss=both).diagonal["m"].mean()
    assert total == pytest.approx(sum(found.diagonal["m"].mean() for found in each), rel=0.2)


def test_regularised_weights_have_mean_one_and_a_floor() -> None:
    diagonal = np.asarray([0.0, 0.0, 4.0, 0.0])
    np.testing.assert_allclose(regularize(diagonal, 0.2), [0.2, 0.2, 3.4, 0.2], rtol=1e-6)
    np.testing.assert_array_equal(regularize(np.zeros(3), 0.2), np.ones(3))
    with pytest.raises(ConfigError):
        regularize(diagonal, 1.5)


def test_channelwise_weights_average_everything_else(observe_model) -> None:
    proto = _model()
    found = fisher_weights(proto, ["a"], [{"x": _samples(2)}], _shapes(proto, observe_model), draws=CLASSES)
    means = found.diagonal["a"].mean(axis=(0, 2, 3))
    np.testing.assert_allclose(found.channelwise("a", 1, 0.1), 0.9 * means / means.mean() + 0.1, rtol=1e-5)


def test_no_samples_and_unknown_losses_are_refused(observe_model) -> None:
    proto = _model()
    shapes = _shapes(proto, observe_model, 4)
    with pytest.raises(CalibrationError, match="a run takes 4"):
        fisher_weights(proto, ["a"], [{"x": _samples(3)}], shapes)
    with pytest.raises(ConfigError, match="'nonsense'"):
        choose_loss(proto, shapes, {"": "nonsense"})


def test_probes_take_the_batch_from_the_input_that_has_it(observe_model) -> None:
    text = """<ir_version: 10, opset_import: ["": 20]> g (float s, float[B,3,4,4] x) => (float[B,3] y) {
        z = Mul(x, s) p = GlobalAveragePool(z) y = Flatten(p) }"""
    proto = onnx.parser.parse_model(text)
    feeds = {"s": np.array(2.0, np.float32), "x": _samples(2)[:, :1].repeat(3, 1)[:, :, :4, :4]}
    shapes = {name: value.shape for name, value in observe_model(proto, feeds).items()}
    loss = choose_loss(proto, shapes, {"": "regression"})
    found = forward_probe_weights(proto, ["z"], [feeds], shapes, loss)
    assert found["z"].shape == (1, 3, 4, 4) and (found["z"] > 0).all()


def test_probes_at_the_model_input_agree_with_gradients(observe_model) -> None:
    proto, samples = _model(), _samples(2)
    shapes = _shapes(proto, observe_model)
    loss = choose_loss(proto, shapes)
    exact = fisher_weights(proto, ["x", "n"], [{"x": samples}], shapes, draws=CLASSES, loss=loss)
    batches = [{"x": sample[None]} for sample in samples]
    probed = forward_probe_weights(proto, ["x", "n"], batches, shapes, loss, probes=64)
    for target in ("x", "n"):
        assert probed[target].shape == exact.diagonal[target].shape
        found, expected = probed[target].mean(axis=(0, 2, 3)), exact.diagonal[target].mean(axis=(0, 2, 3))
        np.testing.assert_allclose(found, expected, rtol=0.4)
