from __future__ import annotations

import numpy as np
import pytest
from qdq_graphs import ORT, parse, quantize, weight

from onnx_hyvit.errors import TargetError
from onnx_hyvit.targets import check_target, load_target, target_names

GOOD = """
name = "mine"
description = "mine"
[activation]
dtype = "uint8"
scheme = "asymmetric"
[weight]
dtype = "int8"
scheme = "symmetric"
granularity = "per_channel"
[int8]
Conv = { min_channels = 4 }
"""


def model():
    text = "g (float[1,16,8,8] x) => (float[1,16,8,8] y) { c = Conv(x, w, b) s = Sigmoid(c) y = Mul(c, s) }"
    return parse(text, w=weight(16, 16, 1, 1), b=np.ones(16, np.float32))


@pytest.mark.parametrize("name", target_names())
def test_a_model_made_for_a_shipped_target_keeps_its_rules(name):
    target = load_target(name)
    _, proto, _ = quantize(model(), target)
    assert check_target(proto, target) == []


def test_shipped_targets():
    assert {
        "ort-x86",
        "ort-x86-avx2",
        "ort-arm",
        "ort-web",
        "generic",
        "xnnpack",
        "qnn",
        "openvino",
        "tensorrt",
    } <= set(target_names())
    assert load_target("ort-x86-avx2").weight_spec().bits == 7
    assert load_target("ort-arm").activation_spec().signed
    assert load_target("tensorrt").activation_spec().symmetric


def test_a_breach_names_the_node():
    _, proto, _ = quantize(model())
    breaches = check_target(proto, load_target("ort-arm"))
    assert any(found.node == "x_QuantizeLinear" and "uint8" in found.problem for found in breaches)
    assert any("7 bits" in found.problem for found in check_target(proto, load_target("ort-x86-avx2")))
    assert any("opset" in found.problem for found in check_target(proto, load_target("ort-x86").__class__(**{
        **vars(ORT), "opsets": (21, 23)})))  # fmt: skip


def test_a_file_of_one_s_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert load_target(path).int8["Conv"].min_channels == 4
    path.write_text('extends = "ort-x86"\nname = "mine"\n[glue]\nSigmoid = false\n')
    assert "Sigmoid" not in load_target(path).glue and "Mul" in load_target(path).glue


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (GOOD + "[colour]\nred = 1\n", "unknown key 'colour'"),
        (GOOD.replace("min_channels", "channels"), "unknown key 'channels'"),
        (GOOD.replace('"uint8"', '"int4"'), "dtype 'int4' is unknown"),
        (GOOD.replace('name = "mine"', ""), "'name' is missing"),
        (GOOD + '[float]\nConv = "slow"\n', "Conv is listed under both int8 and float"),
        (GOOD + '[options]\nresidual = "maybe"\n', "residual 'maybe'"),
        ("name = ", "not a TOML"),
        ('extends = "nowhere"', "'nowhere' is unknown"),
    ],
)
def test_a_malformed_file_is_one_clear_line(tmp_path, text, match):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(TargetError, match=match) as caught:
        load_target(path)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_those_that_exist():
    with pytest.raises(TargetError, match="ort-x86"):
        load_target("tpu")
