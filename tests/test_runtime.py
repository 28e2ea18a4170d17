import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper, parser

from onnx_hyvit.errors import CalibrationError, ConfigError, ModelError
from onnx_hyvit.numerics import Histogram, MinMax
from onnx_hyvit.runtime import (
    RuntimeFailure,
    benchmark,
    collect,
    make_session,
    optimized_model,
    profile_nodes,
    saturation,
)
from onnx_hyvit.runtime.unshare import unshare_weights


def model(opset=18):
    """A convolution, operators that can make NaN and Inf, and an integer tensor."""
    proto = parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": {opset}]>
        small (float[N,3,8,8] x) => (float[N,4,6,6] y, int64[4] shape) {{
            s = Sqrt(x)
            c = Conv(s, w)
            r = Relu(c)
            p = Mul(r, r)
            h = Sigmoid(p)
            m = GlobalAveragePool(h)
            y = Div(p, m)
            shape = Shape(y)
        }}"""
    )
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return proto


class Batches:
    """Calibration data in memory, which counts how often it is read."""

    def __init__(self, values, batch=1):
        self.values, self.batch, self.reads = values, batch, 0

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        self.reads += 1
        for start in range(0, len(self.values), self.batch):
            part = self.values[start : start + self.batch]
            yield list(range(start, start + len(part))), {"x": part}


@pytest.fixture
def values():
    return np.random.default_rng(1).random((7, 3, 8, 8)).astype(np.float32) + 0.1


def tensors_by_session(proto, names, values):
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    known = {value.name for value in proto.graph.output}
    for name in names:
        if name not in known and name != "x":
            probe.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return make_session(probe, optimize=False).run({"x": values}) | {"x": values}


@pytest.mark.parametrize("opset", [11, 17, 18])
@pytest.mark.parametrize("axis", [None, 1, -3])
@pytest.mark.parametrize("kind", [MinMax, Histogram])
def test_collected_ranges_equal_those_of_the_tensors(values, opset, axis, kind):
    proto, names = model(opset), ["x", "c", "s", "r", "y"]
    found = collect(proto, names, Batches(values, 3), lambda name: kind(axis=axis))
    wanted = tensors_by_session(proto, names, values)
    assert list(found) == names
    for name in names:
        others = None if axis is None else (0, 2, 3)
        low, high = found[name].range()
        np.testing.assert_allclose(low, wanted[name].min(axis=others), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(high, wanted[name].max(axis=others), rtol=1e-5, atol=1e-6)


def test_splitting_for_memory_changes_nothing_but_the_number_of_runs(values):
    names = ["x", "c", "r", "y"]
    source = Batches(values, 2)
    whole = collect(model(), names, source, lambda name: Histogram(bins=256), optimize=False)
    split = collect(model(), names, source, lambda name: Histogram(bins=256), optimize=False, max_memory=1)
    for name in names:
        np.testing.assert_array_equal(whole[name].counts, split[name].counts)
    assert whole["x"].size == split["x"].size == values.size
    assert source.reads == 2


def test_shapes_that_inference_does_not_know_are_probed(values):
    proto = parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18]>
        g (float[N,3,8,8] x) => (float[a,b] y) { k = NonZero(x)  f = Cast<to=1>(k)  y = Mul(f, f) }"""
    )
    found = collect(proto, ["f", "y"], Batches(values), lambda name: Histogram(), max_memory=4096)
    assert found["f"].range() == (0, 7)
    assert found["y"].range() == (0, 49)


def test_observers_may_be_given_and_progress_is_told(values):
    observers = {"c": MinMax(), "y": Histogram()}
    calls = []
    found = collect(model(), ["y", "c"], Batches(values, 3), observers, lambda *call: calls.append(call))
    assert found == {"y": observers["y"], "c": observers["c"]}
    assert [call[:2] for call in calls] == [(3, 7), (6, 7), (7, 7)]


@pytest.mark.parametrize("kind", [MinMax, Histogram])
@pytest.mark.parametrize("tensor", ["s", "c", "y"])
def test_a_nan_made_inside_the_model_names_the_sample(values, kind, tensor):
    values[4, 0, 0, 0] = -1
    with pytest.raises(CalibrationError, match=r"NaN.*with samples? 4") as caught:
        collect(model(), [tensor], Batches(values), lambda name: kind())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [MinMax, Histogram])
def test_an_overflow_inside_the_model_names_tensor_and_samples(values, kind):
    values[5] = 3e38
    with pytest.raises(CalibrationError, match=r"tensor 'p': NaN or Inf.*samples 4 to 6"):
        collect(model(), ["p"], Batches(values, 4), lambda name: kind())


def test_a_model_with_external_data_is_given_by_its_path(tmp_path, values):
    path = tmp_path / "m.onnx"
    onnx.save_model(model(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    found = collect(path, ["c"], Batches(values), lambda name: MinMax())
    assert found["c"].range() == pytest.approx(
        collect(model(), ["c"], Batches(values), lambda name: MinMax())["c"].range()
    )
    assert make_session(path).output_names == ["y", "shape"]


def test_the_callers_model_is_not_changed(values):
    proto = model()
    before = proto.SerializeToString(deterministic=True)
    collect(proto, ["c", "y"], Batches(values), lambda name: Histogram())
    optimized_model(proto)
    assert proto.SerializeToString(deterministic=True) == before


def test_float16_tensors_are_observed(values):
    proto = parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18]>
        g (float[N,3,8,8] x) => (float16[N,3,8,8] y) { h = Cast<to=10>(x)  y = Add(h, h) }"""
    )
    for kind in (MinMax, Histogram):
        found = collect(proto, ["y"], Batches(values), lambda name, kind=kind: kind())
        assert found["y"].range() == pytest.approx((2 * values.min(), 2 * values.max()), rel=1e-3)


def test_what_cannot_be_observed(values):
    for name, message in (("nope", "'nope' is not in the main graph"), ("shape", "'shape' is INT64")):
        with pytest.raises(RuntimeFailure, match=message):
            collect(model(), [name], Batches(values), lambda name: MinMax())
    with pytest.raises(CalibrationError, match="calibration data are empty"):
        collect(model(), ["c"], Batches(values[:0]), lambda name: MinMax())
    with pytest.raises(ConfigError, match="more than once"):
        collect(model(), ["c", "c"], Batches(values), lambda name: MinMax())


def test_a_session_says_what_it_takes_and_makes(values):
    session = make_session(model())
    assert session.inputs == (("x", np.dtype("float32"), ("N", 3, 8, 8)),)
    assert session.outputs[1].dtype == np.int64
    found = session.run({"x": values}, ["shape"])
    assert found["shape"].tolist() == [7, 4, 6, 6]
    shared, copied = session.run_shared({"x": values}), session.run({"x": values})
    np.testing.assert_array_equal(shared["y"], copied["y"])


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "input 'x' is missing; the model takes 'x'"),
        ({"x": 0, "z": 0}, "there is no input 'z'; the model takes 'x'"),
        ({"x": np.zeros((3, 8, 8), np.float32)}, "Invalid rank"),
        ({"x": np.zeros((1, 3, 8, 8))}, "Unexpected input data type"),
        ({"x": np.zeros((1, 3, 1, 1), np.float32)}, "cannot run"),
    ],
)
def test_a_failing_run_is_one_line_and_nothing_reaches_the_terminal(capfd, feeds, message):
    with pytest.raises(RuntimeFailure, match=message) as caught:
        make_session(model(), name="small").run(feeds)
    assert isinstance(caught.value, ModelError)
    assert str(caught.value).startswith("small: ")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_model_that_cannot_be_loaded(tmp_path, capfd):
    broken = model()
    broken.graph.node[0].op_type = "Convolution"
    with pytest.raises(RuntimeFailure, match="No Op registered for Convolution"):
        make_session(broken)
    with pytest.raises(RuntimeFailure, match="no such file"):
        make_session(tmp_path / "missing.onnx")
    with pytest.raises(RuntimeFailure, match="cannot be loaded"):
        make_session(b"garbage")
    with pytest.raises(ConfigError, match="optimize must be one of none, basic"):
        make_session(model(), optimize="full")
    with pytest.raises(ConfigError, match="threads"):
        make_session(model(), threads=0)
    assert capfd.readouterr() == ("", "")


def test_the_optimized_model_is_what_runs(values):
    proto = optimized_model(model())
    operators = [node.op_type for node in proto.graph.node]
    assert "FusedConv" in operators or "Relu" not in operators
    wanted, found = (make_session(item).run({"x": values})["y"] for item in (model(), proto))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    assert "Relu" in [node.op_type for node in optimized_model(model(), level="none").graph.node]


def test_timings_take_turns(values):
    calls = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def run(self, feeds):
            calls.append(self.name)

    found = benchmark({"a": Fake("a"), "b": Fake("b")}, {}, runs=4, warmup=1)
    assert set(found) == {"a", "b"}
    assert found["a"].runs == 4
    assert 0 <= found["a"].p10_ms <= found["a"].median_ms <= found["a"].p90_ms
    assert [set(calls[i : i + 2]) for i in range(0, 10, 2)] == [{"a", "b"}] * 5
    with pytest.raises(ConfigError, match="runs must be"):
        benchmark({}, {}, runs=0)


def test_a_weight_that_two_layers_read_is_no_obstacle_to_exact_sums():
    text = """<ir_version: 9, opset_import: ["" : 20]> g (float[1,16] x) => (float[1,16] y) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) w = DequantizeLinear(v, s)
        a = MatMul(d, w) aq = QuantizeLinear(a, t, z) ad = DequantizeLinear(aq, t, z)
        b = MatMul(ad, w) bq = QuantizeLinear(b, t, z) y = DequantizeLinear(bq, t, z) }"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    values = {"s": np.float32(0.02), "z": np.uint8(128), "t": np.float32(0.5), "v": rng.integers(-127, 127, (16, 16))}
    values["v"] = values["v"].astype(np.int8)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in values.items())
    feeds = {"x": rng.standard_normal((1, 16)).astype(np.float32)}
    exact, found = (make_session(proto, optimize=level).run(feeds)["y"] for level in ("none", "all"))
    np.testing.assert_allclose(found, exact, atol=0.51)
    own = unshare_weights(proto)
    assert [node.op_type for node in own.graph.node].count("DequantizeLinear") == 6
    np.testing.assert_array_equal(make_session(own, optimize="none").run(feeds)["y"], exact)


def test_profile_names_the_kernels_that_run(tiny_model, tiny_input):
    name, shape = tiny_input
    feeds = {name: np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)}
    nodes = profile_nodes(tiny_model, feeds, runs=3, warmup=1)
    assert {"Conv", "MatMul", "Softmax"} <= {node.op for node in nodes}
    assert all(node.us >= 0 and node.outputs for node in nodes)
    convolution = next(node for node in nodes if node.op == "Conv")
    assert convolution.dtype == "float" and len(convolution.inputs[0]) == 4
    with pytest.raises(ConfigError, match="quantile above 0"):
        profile_nodes(tiny_model, feeds, quantile=0.0)


def test_sums_of_a_session_are_exact_on_every_processor():
    codes = {"x": np.full((1, saturation._SIZE), 255, np.uint8)}
    sums = make_session(saturation._product()).run(codes)["sums"]
    assert (sums == 255 * 127 * saturation._SIZE).all()
    default = make_session(saturation._product(), exact_sums=False).run(codes)["sums"]
    assert saturation.sums_saturate() == bool((default != sums).any())
