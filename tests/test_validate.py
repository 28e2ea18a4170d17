from __future__ import annotations

import json
import sys

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from qdq_graphs import HEADER, parse, quantize, weight

from onnx_hyvit.errors import ValidationError
from onnx_hyvit.graph import model_to_proto
from onnx_hyvit.runtime import make_session
from onnx_hyvit.validate import compare_fused, find_patterns, find_saturation, fused, validate

VALIDATE = sys.modules[validate.__module__]
SILU = "g (float[1,16,8,8] x) => (float[1,16,8,8] y) { c = Conv(x, w, b) s = Sigmoid(c) y = Mul(c, s) }"


def float_model():
    return parse(SILU, w=weight(16, 16, 1, 1), b=np.linspace(-1, 1, 16, dtype=np.float32))


@pytest.fixture
def quantized():
    model = float_model()
    _, proto, feeds = quantize(model)
    return model_to_proto(model), proto, feeds


def replace(proto: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))


def kinds(proto: onnx.ModelProto) -> list[str]:
    return [finding.kind for finding in find_patterns(proto)]


def softmax_on(shape: list[int], axis: int) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        HEADER
        + f"""g (float{shape} x) => (float{shape} y) {{
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) p = Softmax<axis={axis}>(d)
            r = QuantizeLinear(p, t, o) y = DequantizeLinear(r, t, o) }}"""
    )
    values = {"s": np.float32(0.02), "z": np.uint8(128), "t": np.float32(1 / 255), "o": np.uint8(0)}
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())
    for node in proto.graph.node:
        node.name = f"node_{node.output[0]}"
    return proto


@pytest.fixture
def broken_softmax(monkeypatch):
    """Optimised sessions whose softmax gives 1 - p, as a runtime with a wrong kernel would."""

    def session(model, *, optimize, **options):
        if optimize != "none":
            model = onnx.ModelProto.FromString(model.SerializeToString())
            for index, node in enumerate(model.graph.node):
                if node.op_type == "Softmax":
                    model.graph.initializer.append(numpy_helper.from_array(np.float32(1), "one"))
                    wrong = onnx.helper.make_node("Sub", ["one", f"{node.output[0]}_right"], list(node.output), "wrong")
                    node.output[0] += "_right"
                    model.graph.node.insert(index + 1, wrong)
                    break
        return make_session(model, optimize=optimize, **options)

    monkeypatch.setattr(fused, "make_session", session)


def test_a_good_model_has_no_findings(quantized):
    reference, proto, feeds = quantized
    assert [finding for finding in validate(proto, reference, feeds) if finding.kind != "saturation"] == []


class TestSaturation:
    """Sums of 16 bits, as on x86 without VNNI; the default session of such a processor is made by hand here."""

    @pytest.fixture
    def saturating(self, monkeypatch):
        def session(model, *, exact_sums, **options):
            if not exact_sums:
                model = onnx.ModelProto.FromString(model.SerializeToString())
                codes = next(tensor for tensor in model.graph.initializer if tensor.name == "w_quantized")
                halved = numpy_helper.to_array(codes) // 2
                codes.CopyFrom(numpy_helper.from_array(halved, codes.name))
            return make_session(model, **options)

        monkeypatch.setattr(VALIDATE, "make_session", session)

    def test_it_is_reported_with_what_to_do(self, quantized, saturating, monkeypatch):
        monkeypatch.setattr(VALIDATE, "sums_saturate", lambda: True)
        _, proto, feeds = quantized
        (finding,) = find_saturation(proto, feeds)
        assert finding.kind == "saturation" and not finding.fatal
        assert "ort-x86-avx2" in finding.message and "session.x64quantprecision" in finding.message

    def test_other_processors_do_not_even_look(self, quantized, saturating, monkeypatch):
        monkeypatch.setattr(VALIDATE, "sums_saturate", lambda: False)
        _, proto, feeds = quantized
        assert find_saturation(proto, feeds) == []


def test_a_wrong_softmax_is_named(broken_softmax):
    proto = softmax_on([1, 4, 4, 1], 3)
    feeds = {"x": np.ones((1, 4, 4, 1), np.float32)}
    report = compare_fused(proto, feeds)
    assert not report.matches
    assert report.node == "node_p" and report.kernel == "QLinearSoftmax" and report.max_diff > 0.5
    assert "node_p" in str(report.culprit) and json.loads(json.dumps(report.to_dict()))["matches"] is False
    with pytest.raises(ValidationError, match=r"node .node_p. \(Softmax\) runs as"):
        validate(proto, feeds=feeds)


def test_softmax_on_a_longer_axis_agrees():
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 4, 4, 8)).astype(np.float32)}
    report = compare_fused(softmax_on([1, 4, 4, 8], 3), feeds)
    assert report.matches and report.culprit is None and report.max_diff <= 1.01 / 255


def test_the_first_wrong_kernel_is_named_not_those_behind_it(quantized, broken_softmax):
    _, proto, feeds = quantized
    assert compare_fused(proto, feeds).matches
    wrong = softmax_on([1, 4, 4, 1], 3)
    wrong.graph.output[0].name = "tail"
    wrong.graph.node.append(onnx.helper.make_node("Sigmoid", ["y"], ["g"], "node_g"))
    wrong.graph.node.append(onnx.helper.make_node("QuantizeLinear", ["g", "t", "o"], ["gq"], "node_gq"))
    wrong.graph.node.append(onnx.helper.make_node("DequantizeLinear", ["gq", "t", "o"], ["tail"], "node_tail"))
    assert compare_fused(wrong, {"x": np.ones((1, 4, 4, 1), np.float32)}).node == "node_p"


def test_a_scale_per_channel_in_front_of_a_layer_is_fatal(quantized):
    _, proto, _ = quantized
    for name in ("x_scale", "x_zero_point"):
        old = numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == name))
        replace(proto, name, np.full(16, old))
    found = [finding for finding in find_patterns(proto) if finding.kind == "per-channel-activation"]
    assert found and found[0].fatal and found[0].node == "x_DequantizeLinear"
    with pytest.raises(ValidationError, match="per-channel-activation"):
        validate(proto)


def test_a_scale_per_channel_behind_a_layer_is_fatal(quantized):
    _, proto, _ = quantized
    for name in ("c_scale", "c_zero_point"):
        old = numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == name))
        replace(proto, name, np.full(16, old))
    assert any(f.node == "c_QuantizeLinear" and f.fatal for f in find_patterns(proto))


def test_a_bias_with_another_scale_is_fatal(quantized):
    _, proto, _ = quantized
    scale = numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == "b_scale"))
    replace(proto, "b_scale", scale * np.float32(1.5))
    assert kinds(proto) == ["bias-scale"]


def test_a_scale_of_zero_is_fatal(quantized):
    _, proto, _ = quantized
    replace(proto, "s_scale", np.float32(0))
    assert set(kinds(proto)) == {"bad-scale"}


def test_a_pair_that_nothing_reads_is_fatal(quantized):
    _, proto, _ = quantized
    inputs = ["x", "x_scale", "x_zero_point"]
    proto.graph.node.append(onnx.helper.make_node("QuantizeLinear", inputs, ["dead"], "dead"))
    assert kinds(proto) == ["dead-pair"]


def test_a_float_bias_and_a_missing_output_pair_are_reported():
    proto = onnx.parser.parse_model(
        HEADER
        + """g (float[1,16,8,8] x) => (float[1,16,8,8] y) {
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
            wd = DequantizeLinear(w, s, wz) y = Conv(d, wd, b) }"""
    )
    values = {"s": np.float32(0.02), "z": np.uint8(128), "w": np.ones((16, 16, 1, 1), np.int8), "wz": np.int8(0),
              "b": np.ones(16, np.float32)}  # fmt: skip
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())
    assert kinds(proto) == ["no-output-pair", "float-bias"]
    assert not any(finding.fatal for finding in find_patterns(proto))


def test_a_signed_clip_is_reported():
    proto = onnx.parser.parse_model(
        HEADER
        + """g (float[4] x) => (float[4] y) {
            q = QuantizeLinear(x, s, z) c = Clip(q, lo, hi) y = DequantizeLinear(c, s, z) }"""
    )
    values = {"s": np.float32(1), "z": np.int8(0), "lo": np.int8(-8), "hi": np.int8(7)}
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())
    assert kinds(proto) == ["signed-clip"]


def test_an_invalid_graph_is_refused(quantized):
    _, proto, _ = quantized
    proto.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ValidationError, match=r"onnx\.checker"):
        validate(proto)


def test_a_lost_output_is_named(quantized):
    reference, proto, _ = quantized
    reference.graph.output[0].name = "z"
    with pytest.raises(ValidationError, match="output 'z'"):
        validate(proto, reference)


def test_nan_in_the_outputs_is_refused():
    model = parse("g (float[4] x) => (float[4] y) { y = Sqrt(x) }")
    with pytest.raises(ValidationError, match=r"'y'.*NaN"):
        validate(model_to_proto(model), feeds={"x": np.full(4, -1, np.float32)})


@pytest.mark.parametrize(("factor", "reported"), [(-1.0, False), (3.0, True)])
def test_a_drift_is_reported_where_it_leads_away_from_the_float_model(quantized, monkeypatch, factor, reported):
    """Optimised sessions whose error is that of the unfused graph times ``factor``; all kernels pass for right."""
    reference, proto, feeds = quantized
    expected, plain = make_session(reference).run(feeds)["y"], make_session(proto, optimize="none").run(feeds)["y"]

    def compare(*arguments, **options):
        return fused.FusedReport(True, 0.2, 0.2), {"y": expected + np.float32(factor) * (plain - expected)}

    monkeypatch.setattr(VALIDATE, "compare_level", compare)
    findings = [finding for finding in validate(proto, reference, feeds) if finding.kind == "drift"]
    assert len(findings) == (3 if reported else 0)
    assert all("200% further from the float model" in str(finding) for finding in findings)
    alone = [finding for finding in validate(proto, None, feeds) if finding.kind == "drift"]
    assert len(alone) == 3 and "further" not in str(alone[0])


def test_each_level_is_loaded_and_run_once(quantized, monkeypatch):
    """Sessions of large models cost seconds: the unfused graph once, each level once whole and once cut."""
    reference, proto, feeds = quantized
    made = []

    def session(model, **options):
        made.append(options.get("optimize", True))
        return make_session(model, **options)

    monkeypatch.setattr(fused, "make_session", session)
    monkeypatch.setattr(VALIDATE, "make_session", session)
    monkeypatch.setattr(VALIDATE, "sums_saturate", lambda: False)
    validate(proto, reference, feeds)
    assert sorted(made) == ["all", "all", "basic", "basic", "extended", "extended", "none"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.float32])
def test_the_largest_difference_neither_wraps_around_nor_hides_nan(dtype):
    low, high = (np.array([0, 3], dtype), np.array([np.iinfo(dtype).max if dtype != np.float32 else 9, 3], dtype))
    assert fused._largest(low, high) == fused._largest(high, low) == float(high[0])
    assert fused._largest(low[:0], high[:0]) == 0.0
    assert fused._largest(np.array([np.nan, 1], np.float32), 0.0) == np.inf
