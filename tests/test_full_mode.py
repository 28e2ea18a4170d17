"""Mode full: attention products, softmax, norms and activation functions are quantized as far as the target allows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from qdq_graphs import ORT, feeds_of, minmax, ops, parse, plan_of, weight

from onnx_hyvit import ConfigError, QuantConfig, TargetError, quantize
from onnx_hyvit.calibration import load_preprocess
from onnx_hyvit.demo import IMAGES, INPUT, MODEL, PREPROCESS, find_models, to_arrays
from onnx_hyvit.graph import Model, model_to_proto
from onnx_hyvit.insert_qdq import insert_qdq
from onnx_hyvit.kernel_audit import audit
from onnx_hyvit.placement import FullMode
from onnx_hyvit.runtime import make_session
from onnx_hyvit.targets import load_target
from onnx_hyvit.validate import validate

ATTENTION = """g (float[1,6,16] x) => (float[1,6,16] y) {
    n = LayerNormalization<axis=-1>(x, gamma, beta)
    q = MatMul(n, wq)  k = MatMul(n, wk)  v = MatMul(n, wv)
    kt = Transpose<perm=[0,2,1]>(k)  logits = MatMul(q, kt)  p = Softmax<axis=-1>(logits)
    mixed = MatMul(p, v)  a = Gelu(mixed)  y = MatMul(a, wo)
}"""


def attention(text: str = ATTENTION, **more: np.ndarray) -> Model:
    weights = {f"w{name}": weight(16, 16, seed=index) for index, name in enumerate("qkvo")}
    return parse(text, gamma=np.linspace(0.5, 2, 16, dtype=np.float32), beta=weight(16), **weights, **more)


def quantized(model: Model, target=ORT, **options) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    plan, feeds = plan_of(model, target, full=FullMode(), **options), feeds_of(model)
    return model_to_proto(insert_qdq(model, plan, minmax(model, plan, feeds)), check=True), feeds


def test_softmax_norm_and_activation_are_paired_and_products_are_int8() -> None:
    plan = plan_of(attention(), full=FullMode())
    assert set(plan.paired) == {"n", "p", "a"}
    assert all("between Q/DQ pairs" in plan.float_nodes[name] for name in plan.paired)
    assert {"logits", "mixed"} <= set(plan.int8_nodes)
    assert set(plan.activations) >= {"x", "n", "q", "k", "v", "logits", "p", "mixed", "a"}


def test_partial_mode_leaves_them_float() -> None:
    plan = plan_of(attention())
    assert plan.paired == () and not plan.fixed
    assert {"n", "p", "a", "logits", "mixed"} <= set(plan.float_nodes)


def test_softmax_outputs_have_one_code_per_255th() -> None:
    model = attention()
    plan = plan_of(model, full=FullMode())
    assert plan.fixed == {"p": (0.0, 1.0)}
    config = QuantConfig(recipe="minmax", mode="full", samples=4, verify=False)
    data = {"x": np.random.default_rng(0).standard_normal((4, 6, 16)).astype(np.float32)}
    proto = quantize(model_to_proto(model), calibration=data, config=config).model
    softmax = next(node for node in proto.graph.node if node.op_type == "Softmax")
    shield = next(node for node in proto.graph.node if softmax.output[0] in node.input)
    pair = next(node for node in proto.graph.node if shield.output[0] in node.input)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    assert (shield.op_type, pair.op_type) == ("Sum", "QuantizeLinear")
    assert values[pair.input[1]] == np.float32(1 / 255) and values[pair.input[2]] == 0


def test_what_paired_nodes_read_and_write_is_quantized() -> None:
    proto, feeds = quantized(attention())
    made = {name: node for node in proto.graph.node for name in node.output}
    readers = {name: node for node in proto.graph.node for name in node.input}
    for node in proto.graph.node:
        if node.op_type in ("LayerNormalization", "Gelu", "Softmax"):
            assert made[node.input[0]].op_type == "DequantizeLinear", node.name
            behind = readers[node.output[0]]
            behind = readers[behind.output[0]] if behind.op_type == "Sum" else behind
            assert behind.op_type == "QuantizeLinear", node.name
    assert validate(proto, None, feeds, threads=1) is not None  # every optimisation level agrees, else it raises


def test_no_slow_kernel_comes_of_it() -> None:
    proto, _ = quantized(attention())
    found = audit(proto)
    assert not found.bad_kernels and found.operators.get("Softmax") == 1
    assert sum(kernel.op == "QLinearMatMul" for kernel in found.int8) >= 2


def test_operands_of_products_have_the_bits_asked_for() -> None:
    plan = plan_of(attention(), full=FullMode(), activation_bits=4)
    assert [plan.activations[name].bits for name in ("q", "k", "p", "v", "n")] == [4] * 5
    assert [plan.activations[name].bits for name in ("x", "logits", "mixed")] == [8] * 3


def test_generic_target_keeps_softmax_float_with_its_reason() -> None:
    target = load_target("generic")
    plan = plan_of(attention(), target, full=FullMode())
    assert plan.float_nodes["p"] == target.float["Softmax"] and "p" not in plan.paired
    assert "n" in plan.paired and "logits" in plan.int8_nodes


def test_a_target_with_kernels_runs_them() -> None:
    plan = plan_of(attention(), load_target("qnn"), full=FullMode())
    assert {"n", "p", "a"} <= set(plan.int8_nodes) and not plan.paired


def test_a_target_without_rules_refuses_in_one_line() -> None:
    bare = dataclasses.replace(ORT, full={})
    with pytest.raises(TargetError, match=r"no rules for mode full; use mode partial") as caught:
        plan_of(attention(), bare, full=FullMode())
    assert "\n" not in str(caught.value)


def test_outputs_of_the_model_stay_as_they_are() -> None:
    text = "g (float[1,6,16] x) => (float[1,6,16] y) { c = MatMul(x, wq) y = Softmax<axis=-1>(c) }"
    plan = plan_of(parse(text, wq=weight(16, 16)), full=FullMode())
    assert plan.float_nodes["y"] == "it writes an output of the model" and "y" not in plan.activations


def test_a_norm_of_another_type_stays_float() -> None:
    text = """g (float[1,6,16] x) => (float[1,6,16] y) {
        d = Cast<to=11>(x)  s = Softmax<axis=-1>(d)  f = Cast<to=1>(s)  y = MatMul(f, wq) }"""
    plan = plan_of(parse(text, wq=weight(16, 16)), full=FullMode())
    assert plan.float_nodes["s"] == "it does not work on float32" and "y" in plan.int8_nodes


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"mode": "half"}, "mode 'half' is unknown; expected one of partial, full"),
        ({"mode": "full", "max_drop": 0.1}, "max_drop takes nodes back to float"),
        ({"mode": "full", "verify_speed": True}, "verify_speed takes nodes back to float"),
    ],
)
def test_settings_that_contradict_are_refused(changes: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        QuantConfig(**changes)


def fashion(part: str, count: int) -> tuple[np.ndarray, Path]:
    """Inputs of the shipped model, and its folder."""
    folder = find_models()
    with np.load(folder / IMAGES, allow_pickle=False) as images:
        return to_arrays(images[f"{part}_images"][:count], load_preprocess(folder / PREPROCESS)), folder


def agreement(path: Path, proto: onnx.ModelProto, images: np.ndarray) -> float:
    """Share of ``images`` to which both models give the same class."""
    answers = [
        next(iter(make_session(model, threads=2).run({INPUT: images}).values())).argmax(1) for model in (path, proto)
    ]
    return float((answers[0] == answers[1]).mean())


def test_shipped_model_keeps_its_answers() -> None:
    calibration, folder = fashion("calib", 16)
    config = QuantConfig(recipe="mse", mode="full", target="ort-x86-avx2", threads=2)
    result = quantize(folder / MODEL, calibration={INPUT: calibration}, config=config)
    plan = result.report["plan"]
    softmaxes = [name for name in plan["paired_nodes"] if "softmax" in name.lower()]
    assert len(softmaxes) == 9 and len(plan["paired_nodes"]) == 30
    assert not result.report["audit"]["counts"]["bad_kernels"] and not result.report["audit"]["counts"]["float"]
    assert "QuantizeLinear" in ops(result.model)
    assert agreement(folder / MODEL, result.model, fashion("test", 300)[0]) >= 0.95
