"""Channels are padded where costs say that it pays, stay unread in int8, and are taken back where they are no use."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from qdq_graphs import parse, values_of, weight

import onnx_hyvit
from onnx_hyvit.channel_padding import choose_padding, unpadded_proto, with_padding, without_useless
from onnx_hyvit.config import QuantConfig
from onnx_hyvit.costs import Kernel, Profile, find_profile
from onnx_hyvit.graph import Model, load_model, model_to_proto
from onnx_hyvit.insert_qdq import insert_qdq
from onnx_hyvit.mixed_precision import Fitted
from onnx_hyvit.planning import decide, plan_by_rules
from onnx_hyvit.prepared import Prepared, prepare
from onnx_hyvit.recipes import find_recipe
from onnx_hyvit.request import adapted_target, open_calibration
from onnx_hyvit.scales import Work, find_scales

GRAPH = """g (float[N,16,24,24] x) => (float[N,10] y) {
    a = Conv<kernel_shape=[1,1]>(x, v, bv) b = Relu(a)
    c = Conv<kernel_shape=[3,3], pads=[1,1,1,1], group=40>(b, k, bk) d = Relu(c)
    p = GlobalAveragePool(d) q = Conv(p, s1, b1) r = Relu(q) s = Conv(r, s2, b2) t = Sigmoid(s) m = Mul(d, t)
    e = Conv<kernel_shape=[1,1]>(m, w, bw) z = Add(x, e)
    f = Conv<kernel_shape=[1,1]>(z, u, bu) o = Relu(f) i = GlobalAveragePool(o) j = Flatten(i) y = Gemm(j, h, bh) }"""
CHANNELS, PADDED, INPUTS = 40, 48, 16
CONVOLUTIONS = {"a", "c", "q", "s", "e"}
DATA = np.random.default_rng(0).standard_normal((16, INPUTS, 24, 24)).astype(np.float32)
SETTINGS = {"target": "ort-x86", "objective": "speed", "cache": False, "threads": 1, "samples": None}


def model() -> Model:
    """An inverted residual with squeeze and excitation, 40 channels inside, and a head."""
    shapes = {"v": (40, 16, 1, 1), "k": (40, 1, 3, 3), "s1": (8, 40, 1, 1), "s2": (40, 8, 1, 1), "w": (16, 40, 1, 1)}
    made = {name: 2 * weight(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}
    made |= {"u": 2 * weight(256, 16, 1, 1, seed=8), "h": 4 * weight(256, 10, seed=9)}
    sizes = {"bv": 40, "bk": 40, "b1": 8, "b2": 40, "bw": 16, "bu": 256, "bh": 10}
    biases = {name: 0.1 * weight(size, 1, seed=20 + seed)[:, 0] for seed, (name, size) in enumerate(sizes.items())}
    return parse(GRAPH, **made, **biases)


def costs(**us: float) -> Profile:
    """The shipped costs, but for kernels that take ``us`` whatever their size."""
    profile = find_profile("ort-x86")
    assert profile is not None
    return dataclasses.replace(
        profile, kernels=profile.kernels | {name.replace("__", "."): Kernel(each) for name, each in us.items()}
    )


SLOW_FLOAT = {"float__Conv__depthwise": 500.0, "float__Conv__depthwise_ragged": 500.0}


@pytest.fixture
def slow_float(tmp_path) -> str:
    """Costs with which the depthwise convolution is no use in float."""
    path = tmp_path / "costs.profile.json"
    path.write_text(json.dumps(costs(**SLOW_FLOAT).to_dict()))
    return str(path)


def chosen(profile: Profile, objective: str = "speed", of: Model | None = None):
    prepared = prepare(of or model(), QuantConfig())
    config = QuantConfig(target="ort-x86", objective=objective)
    plan = plan_by_rules(prepared.model, prepared.shapes, adapted_target(config), config)
    before = model_to_proto(prepared.model).SerializeToString(deterministic=True)
    found = choose_padding(prepared.model, prepared.shapes, plan, profile, config)
    assert model_to_proto(prepared.model).SerializeToString(deterministic=True) == before, "it is not changed"
    return found


@pytest.mark.parametrize("objective", ["speed", "balanced"])
def test_slow_kernels_are_padded_when_they_stay_int8(objective: str) -> None:
    padding = chosen(costs(**SLOW_FLOAT), objective)
    assert [(set(region.convolutions), region.before, region.after) for region in padding.regions] == [
        (CONVOLUTIONS, CHANNELS, PADDED)
    ]
    assert padding.regions[0].saved_us > 5 and padding.to_dict()["convolutions"] == 5


def test_nothing_is_padded_for_a_convolution_that_is_faster_in_float() -> None:
    padding = chosen(costs(float__Conv__depthwise=0.1, float__Reorder=0.1, float__QuantizeLinear=0.1))
    assert padding.found == 1 and not padding.regions


def test_nothing_is_padded_where_whole_blocks_are_not_faster() -> None:
    profile = costs(**SLOW_FLOAT)
    kernels = {name: kernel for name, kernel in profile.kernels.items() if not name.endswith("_ragged")}
    assert not chosen(dataclasses.replace(profile, kernels=kernels)).regions


def test_pointwise_convolutions_are_padded_to_four() -> None:
    text = """g (float[1,16,56,56] x) => (float[1,8,56,56] y) {
        a = Conv(x, v) b = Relu(a) c = Conv(b, m) d = Relu(c) e = Conv(d, w) y = Relu(e) }"""
    given = {"v": weight(46, 16, 1, 1), "m": weight(18, 46, 1, 1), "w": weight(8, 18, 1, 1)}
    padding = chosen(costs(), of=parse(text, **given))
    assert [(region.before, region.after) for region in padding.regions] == [(46, 48), (18, 20)]


@pytest.mark.parametrize(
    "settings", [{"objective": "size"}, {"target": "qnn"}, {"rewrite_layout": False}, {"mode": "full"}]
)
def test_nothing_is_weighed_without_costs_or_wish(settings: dict) -> None:
    config = QuantConfig(**{**SETTINGS, **settings})
    prepared = prepare(model(), config)
    assert with_padding(prepared, adapted_target(config), config, ()) == (prepared, None)


def quantized(profile: str, **settings):
    config = QuantConfig(**{**SETTINGS, "profile": profile, **settings})
    return onnx_hyvit.quantize(model_to_proto(model()), calibration={"x": DATA}, config=config)


def outputs(proto: onnx.ModelProto) -> np.ndarray:
    return values_of(proto, ["y"], {"x": DATA})["y"]


def unread(proto: onnx.ModelProto) -> list[np.ndarray]:
    """Weights, or their codes, of the added channels in the layers that read the region."""
    stored = [numpy_helper.to_array(tensor) for tensor in proto.graph.initializer]
    return [values[:, CHANNELS:] for values in stored if values.shape[1:2] == (PADDED,) and len(values) > 1]


@pytest.mark.parametrize("recipe", ["minmax", "gains", "hyq", "q-hyvit"])
def test_a_padded_model_is_as_close_to_float_and_reads_no_added_channel(slow_float: str, recipe: str) -> None:
    """The gate is sigmoid(0) = 0.5 in a channel of zeros: what reads it must not begin to use it as a bias."""
    made, plain = (quantized(slow_float, recipe=recipe, rewrite_layout=layout) for layout in (True, False))
    assert made.report["channel_padding"]["convolutions"] == 5 and plain.report["channel_padding"] is None
    assert made.report["passes"]["pad_channels"] == 5
    exact = outputs(model_to_proto(model()))
    errors = [float(np.square(outputs(result.model) - exact).mean()) for result in (made, plain)]
    assert 0 < errors[0] < 1.5 * errors[1]
    weights = unread(made.model)
    assert len(weights) == 2 and not any(each.any() for each in weights)
    assert any(each.dtype == np.int8 for each in weights)
    assert made.report["audit"]["counts"]["bad_kernels"] == 0 and not made.report["findings"]
    assert made.report["audit"]["counts"]["int8"] == plain.report["audit"]["counts"]["int8"]


def test_the_same_input_gives_the_same_bytes(slow_float: str) -> None:
    first, second = (
        quantized(slow_float, recipe="gains").model.SerializeToString(deterministic=True) for _ in range(2)
    )
    assert first == second


@pytest.fixture
def padded(slow_float: str):
    """A padded model, what was padded, and how to decide about it."""
    config = QuantConfig(**{**SETTINGS, "profile": slow_float})
    loaded = load_model(model_to_proto(model()))
    target = adapted_target(config)
    prepared, padding = with_padding(prepare(loaded, config), target, config, ())
    source = open_calibration(prepared.model, {"x": DATA}, config)
    work = Work(prepared.model, prepared.shapes, prepared.structure, source, find_recipe("q-hyvit"), config)

    def fitted(floats: tuple[str, ...]) -> tuple[Prepared, Fitted]:
        """The model, and its numbers with more nodes in float; ``planned`` has none."""
        decision = decide(prepared.model, prepared.shapes, target, config, (), None, dict.fromkeys(floats, "accuracy"))
        return prepared, Fitted(decision, find_scales(work, decision.plan))

    return padding, plan_by_rules(prepared.model, prepared.shapes, target, config), fitted


def test_padding_of_a_convolution_that_went_back_to_float_is_taken_back(padded) -> None:
    padding, planned, fitted = padded
    prepared, numbers = fitted(("c",))
    before = outputs(
        model_to_proto(
            insert_qdq(prepared.model, numbers.decision.plan, numbers.scales.qparams, numbers.scales.parameters)
        )
    )
    found = without_useless(prepared, padding, planned, numbers)
    assert found is not None
    prepared, left, scales = found
    assert not left.regions
    after = model_to_proto(insert_qdq(prepared.model, numbers.decision.plan, scales.qparams, scales.parameters))
    assert not [tensor.name for tensor in after.graph.initializer if PADDED in tensor.dims]
    np.testing.assert_allclose(outputs(after), before, atol=1e-5)
    assert {shape[1] for shape in prepared.shapes.values() if len(shape) == 4 and shape[2:] == (24, 24)} == {
        16,
        40,
        256,
    }


def test_padding_of_a_convolution_that_stays_int8_stays(padded) -> None:
    padding, planned, fitted = padded
    prepared, numbers = fitted(("a",))
    assert without_useless(prepared, padding, planned, numbers) is None


def test_padding_that_pays_in_float_stays(padded) -> None:
    """It was float by the plan already, when padding was weighed."""
    padding, _, fitted = padded
    prepared, numbers = fitted(("c",))
    assert without_useless(prepared, padding, numbers.decision.plan, numbers) is None


def test_a_float_model_has_no_padding(padded) -> None:
    """It is what ``--verify-speed`` writes where int8 is slower."""
    padding, _, fitted = padded
    prepared, _ = fitted(())
    before = model_to_proto(prepared.model).SerializeToString(deterministic=True)
    plain = unpadded_proto(prepared, padding)
    assert not [tensor.name for tensor in plain.graph.initializer if PADDED in tensor.dims]
    np.testing.assert_allclose(outputs(plain), outputs(model_to_proto(model())), atol=1e-4)
    assert model_to_proto(prepared.model).SerializeToString(deterministic=True) == before


def test_a_limit_that_takes_all_to_float_takes_the_padding_back(slow_float: str) -> None:
    made = quantized(slow_float, recipe="q-hyvit", max_drop=1e-12)
    assert not made.report["plan"]["int8_nodes"]
    assert not [tensor.name for tensor in made.model.graph.initializer if PADDED in tensor.dims]
