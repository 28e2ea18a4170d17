"""Random graphs and settings: ``quantize`` gives a valid model or one of our errors, and the same bytes twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import onnx_hyvit
from onnx_hyvit import HyvitError, QuantConfig
from onnx_hyvit.recipes import RECIPES
from onnx_hyvit.targets import target_names

SIDE = 8
POINTWISE = ("Relu", "Sigmoid", "Tanh", "HardSwish", "Erf", "Softmax", "Neg", "Abs", "Identity", "Exp")
SLOW = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@dataclass
class Builder:
    """A graph that grows node by node; every tensor is [N, C, 8, 8]."""

    draw: st.DrawFn
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.channels = {"x": 3}

    def fresh(self, channels: int) -> str:
        name = f"t{len(self.channels)}"
        self.channels[name] = channels
        return name

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        size = self.draw(st.sampled_from([1.0, 0.0, 1e-6, 1e3]))
        values = self.rng.normal(0, size, shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def add(self) -> None:
        source = self.draw(st.sampled_from(sorted(self.channels)))
        width = self.channels[source]
        kind = self.draw(st.sampled_from(["conv", "conv", "depthwise", "linear", "pointwise", "join", "norm", "scale"]))
        getattr(self, f"_{kind}")(source, width)

    def _conv(self, source: str, width: int) -> None:
        out, taps = self.draw(st.sampled_from([4, 16, 24])), self.draw(st.sampled_from([1, 3]))
        inputs = [source, self.weight(out, width, taps, taps)]
        inputs += [self.weight(out)] * self.draw(st.integers(0, 1))
        self.nodes.append(helper.make_node("Conv", inputs, [self.fresh(out)], pads=[taps // 2] * 4))

    def _depthwise(self, source: str, width: int) -> None:
        inputs = [source, self.weight(width, 1, 3, 3)]
        self.nodes.append(helper.make_node("Conv", inputs, [self.fresh(width)], group=width, pads=[1] * 4))

    def _linear(self, source: str, width: int) -> None:
        self.nodes.append(helper.make_node("MatMul", [source, self.weight(SIDE, SIDE)], [self.fresh(width)]))

    def _pointwise(self, source: str, width: int) -> None:
        op = self.draw(st.sampled_from(POINTWISE))
        self.nodes.append(helper.make_node(op, [source], [self.fresh(width)]))

    def _join(self, source: str, width: int) -> None:
        other = self.draw(st.sampled_from(sorted(name for name, count in self.channels.items() if count == width)))
        op = self.draw(st.sampled_from(["Add", "Mul", "Concat"]))
        extra = {"axis": 1} if op == "Concat" else {}
        self.nodes.append(
            helper.make_node(op, [source, other], [self.fresh(width * (2 if op == "Concat" else 1))], **extra)
        )

    def _norm(self, source: str, width: int) -> None:
        inputs = [source, self.weight(SIDE), self.weight(SIDE)]
        self.nodes.append(helper.make_node("LayerNormalization", inputs, [self.fresh(width)], axis=-1))

    def _scale(self, source: str, width: int) -> None:
        op = self.draw(st.sampled_from(["Mul", "Add"]))
        self.nodes.append(helper.make_node(op, [source, self.weight(1, width, 1, 1)], [self.fresh(width)]))


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    build = Builder(draw, np.random.default_rng(draw(st.integers(0, 2**16))))
    for _ in range(draw(st.integers(1, 10))):
        build.add()
    names = list(build.channels)
    outputs = dict.fromkeys([names[-1], *draw(st.lists(st.sampled_from(names[1:]), max_size=2))])
    batch = draw(st.sampled_from([1, 2, "N"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])]
    results = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, build.channels[name], SIDE, SIDE])
        for name in outputs
    ]
    graph = helper.make_graph(build.nodes, "g", inputs, results, build.weights)
    opset = draw(st.sampled_from([17, 18, 20, 21]))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


CONFIGS = st.builds(
    QuantConfig,
    recipe=st.sampled_from(sorted(RECIPES)),
    bits=st.sampled_from(["w8a8", "w6a6", "w2a2", "w4a8"]),
    target=st.sampled_from(target_names()),
    samples=st.sampled_from([1, 3, None]),
    batch_size=st.sampled_from([1, 2, 64]),
    threads=st.just(1),
    opset=st.sampled_from([17, 20, 22]),
    residual=st.sampled_from(["auto", "float", "int8"]),
    activation_type=st.sampled_from([None, "uint8", "int8"]),
    activation_symmetric=st.sampled_from([None, True, False]),
    per_channel=st.booleans(),
    rewrite_layout=st.booleans(),
    verify=st.booleans(),
)


def test_quantize_gives_a_valid_model_or_our_error() -> None:
    ends: Counter[str] = Counter()

    @SLOW
    @given(models(), CONFIGS, st.integers(0, 100))
    def check(proto: onnx.ModelProto, config: QuantConfig, seed: int) -> None:
        onnx.checker.check_model(proto, full_check=True)
        ends[quantize_twice(proto, config, seed)] += 1

    check()
    assert ends["quantized"] >= 4, ends


def quantize_twice(proto: onnx.ModelProto, config: QuantConfig, seed: int) -> str:
    """How it ends: "quantized" or "error"; anything else fails."""
    data = {"x": np.random.default_rng(seed).normal(size=(4, 3, SIDE, SIDE)).astype(np.float32)}
    try:
        result = onnx_hyvit.quantize(proto, calibration=data, config=config)
    except HyvitError as error:
        assert str(error) and "\n" not in str(error)
        for word in ("internal", "report it", "invalid model"):
            assert word not in str(error), error
        return "error"
    onnx.checker.check_model(result.model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(result.model.SerializeToString(), options, ["CPUExecutionProvider"])
    rows = 2 if proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2 else 1
    values = session.run(None, {"x": data["x"][:rows]})
    assert all(np.isfinite(value).all() for value in values)
    again = onnx_hyvit.quantize(proto, calibration=data, config=config)
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)
    return "quantized"
