"""``debug`` names the fault that was put in, with our models and with onnxruntime's, and its switches are exact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from test_cli import assert_one_line_error, run_cli

import onnx_hyvit
from onnx_hyvit import ModelError, QuantConfig
from onnx_hyvit.diagnosis.losses import OutputLoss, divergence
from onnx_hyvit.diagnosis.ownership import read_float_model
from onnx_hyvit.diagnosis.pairs import GraphIndex, find_pairs, find_weights
from onnx_hyvit.diagnosis.restore import FloatWeights
from onnx_hyvit.diagnosis.run import _switchable
from onnx_hyvit.diagnosis.switches import SwitchSession
from onnx_hyvit.display_debug import debugged
from onnx_hyvit.runtime import make_session

CORPUS = Path(__file__).parent.parent / "corpus"
SAMPLES = 4


@pytest.fixture(scope="module")
def feeds(tiny_data: Path) -> dict[str, np.ndarray]:
    with np.load(tiny_data) as data:
        return {name: values[:8] for name, values in data.items()}


@pytest.fixture(scope="module")
def int8(tiny_model: Path, feeds: dict[str, np.ndarray]) -> onnx.ModelProto:
    config = QuantConfig(recipe="gains", samples=8, verify=False, residual="int8", target="ort-x86-avx2")
    return onnx_hyvit.quantize(tiny_model, calibration=feeds, config=config).model


@pytest.fixture(scope="module")
def static(tiny_model: Path, feeds: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """What onnxruntime's own tool makes of the same model."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter([{name: value[i : i + 1] for name, value in feeds.items()} for i in range(4)])

        def get_next(self):
            return next(self.rows, None)

    path = tmp_path_factory.mktemp("static") / "int8.onnx"
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(str(tiny_model), str(path), Reader(), quant_format=QuantFormat.QDQ, per_channel=True, **types)
    return onnx.load(path)


def worsened(proto: onnx.ModelProto, tensor: str, factor: float = 20.0) -> onnx.ModelProto:
    """A copy with the scale of one tensor's pair(s) too large."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    pair = next(pair for pair in find_pairs(GraphIndex(copy.graph)) if pair.tensor == tensor)
    names = {node.input[1] for node in copy.graph.node if set(node.output) & {*pair.results}}
    for initializer in copy.graph.initializer:
        if initializer.name in names:
            value = numpy_helper.to_array(initializer) * np.float32(factor)
            initializer.CopyFrom(numpy_helper.from_array(value, initializer.name))
    return copy


def harmful_tensor(proto: onnx.ModelProto) -> str:
    """A convolution's output in the middle of the model."""
    index = GraphIndex(proto.graph)
    pairs = [
        pair for pair in find_pairs(index) if pair.maker is not None and index.graph.node[pair.maker].op_type == "Conv"
    ]
    return pairs[len(pairs) // 2].tensor


@pytest.mark.parametrize("made_by", ["int8", "static"])
def test_the_tensor_with_a_wrong_scale_is_named_first(
    made_by: str, request: pytest.FixtureRequest, tiny_model: Path, feeds: dict[str, np.ndarray]
) -> None:
    proto = request.getfixturevalue(made_by)
    tensor = harmful_tensor(proto)
    report = onnx_hyvit.debug(tiny_model, worsened(proto, tensor), feeds, samples=SAMPLES)
    first = report["tensors"][0]
    assert first["name"] == tensor
    assert first["causes"][0]["kind"] == "wide_range"
    assert first["entering_db"] < report["tensors"][1]["entering_db"] - 3
    assert report["blocks"][0]["name"] == first["block"]
    measured = [line for line in report["advice"] if line["gain"]]
    assert tensor in measured[0]["text"] or measured[0]["block"] == first["block"]
    gains = [line["gain"] for line in measured]
    assert gains == sorted(gains, reverse=True)


def test_a_sound_model_is_not_accused(int8: onnx.ModelProto, tiny_model: Path, feeds: dict[str, np.ndarray]) -> None:
    report = onnx_hyvit.debug(tiny_model, int8, feeds, samples=SAMPLES)
    kinds = {cause["kind"] for tensor in report["tensors"] for cause in tensor["causes"]}
    assert "wide_range" not in kinds
    assert report["weights"]["float_found"] == report["weights"]["quantized"] > 20
    assert report["float_twin"]["loss"] < 0.02 * report["everything"]["loss"]
    assert set(report["kinds"]) == {"weights", "activations", "residuals"}
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("made_by", ["int8", "static"])
def test_all_switches_on_is_the_int8_model_and_off_the_float_one(
    made_by: str, request: pytest.FixtureRequest, tiny_model: Path, feeds: dict[str, np.ndarray]
) -> None:
    proto = request.getfixturevalue(made_by)
    model = _switchable(proto, read_float_model(tiny_model), "int8")
    session = SwitchSession(model)
    row = {name: value[:1] for name, value in feeds.items()}
    (quantized,) = make_session(proto, optimize=False).run(row).values()
    (exact,) = make_session(tiny_model).run(row).values()
    (on,), (off,) = (list(session.run(row, parts).values()) for parts in (session.parts, ()))
    np.testing.assert_allclose(on, quantized, rtol=1e-5, atol=1e-5)
    assert np.square(off - exact).sum() < 1e-3 * np.square(quantized - exact).sum()


@pytest.mark.parametrize("name", ["mobile_former.dynamo-18.onnx", "mobilenetv2.torchscript-13.onnx"])
def test_what_was_folded_into_codes_is_not_lost_with_them(name: str) -> None:
    """Products folded into the scale of a DequantizeLinear (the first), and Clips into its codes (the second)."""
    entries = json.loads((CORPUS / "index.json").read_text())["models"]
    entry = next(entry["input"] for entry in entries if entry["file"] == name)
    feeds = {entry["name"]: np.random.default_rng(0).normal(size=(2, *entry["shape"][1:])).astype(np.float32)}
    proto = onnx_hyvit.quantize(
        CORPUS / name, calibration=feeds, config=QuantConfig(recipe="gains", verify=False)
    ).model
    model = _switchable(proto, read_float_model(CORPUS / name), "int8")
    assert model.limits
    session = SwitchSession(model)
    row = {key: value[:1] for key, value in feeds.items()}
    (exact,) = make_session(CORPUS / name).run(row).values()
    on, off = (next(iter(session.run(row, parts).values())) for parts in (session.parts, ()))
    assert 0 < np.square(off - exact).sum() < 0.05 * np.square(on - exact).sum()


def test_float_parameters_are_found_behind_corrected_ones(
    tiny_model: Path, feeds: dict[str, np.ndarray], rules_target: str
) -> None:
    """GPTQ, ridge, refitted scales and bias correction move parameters far at 4 bits; their names lead back.

    One factor for a whole layer, fitted again for its codes, cannot be told from gains of its channels.
    """
    config = QuantConfig(bits="w4a8", target=rules_target, verify=False)
    proto = onnx_hyvit.quantize(tiny_model, calibration=feeds, config=config).model
    model = _switchable(proto, read_float_model(tiny_model), "int8")
    assert all(original is not None for _, _, original in model.weights)
    assert any(weight.is_bias for weight, _, _ in model.weights)
    session = SwitchSession(model)
    row = {key: value[:1] for key, value in feeds.items()}
    (exact,) = make_session(tiny_model).run(row).values()
    on, off = (next(iter(session.run(row, parts).values())) for parts in (session.parts, ()))
    assert np.square(off - exact).sum() < 0.1 * np.square(on - exact).sum(), "but for the fit of factors"


def test_the_advice_can_be_followed(tiny_model: Path, feeds: dict[str, np.ndarray]) -> None:
    """The nodes named for ``float_nodes`` are accepted, and the loss falls about as foretold."""
    config = QuantConfig(samples=8, verify=False, bits="w6a6", recipe="mse", objective="size")
    before = onnx_hyvit.quantize(tiny_model, calibration=feeds, config=config).model
    few = {name: values[:SAMPLES] for name, values in feeds.items()}
    report = onnx_hyvit.debug(tiny_model, before, few)
    advice = next(line for line in report["advice"] if line["option"] == "float_nodes")
    config = config.replace(float_nodes=tuple(advice["float_nodes"]))
    after = onnx_hyvit.quantize(tiny_model, calibration=feeds, config=config).model
    losses = {name: OutputLoss() for name in ("before", "after")}
    sessions = {"before": make_session(before), "after": make_session(after)}
    reference = make_session(tiny_model)
    for place in range(SAMPLES):
        row = {name: value[place : place + 1] for name, value in few.items()}
        for name, session in sessions.items():
            losses[name].update(reference.run(row), session.run(row))
    assert losses["after"].loss < (1 - advice["gain"] / 2) * losses["before"].loss


def test_outputs_that_are_no_class_scores(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[1,16,8,8] x) => (float[1,16,8,8] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1)  b = Relu(a)  y = Conv<pads=[1,1,1,1]>(b, w2) }"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name in ("w1", "w2"):
        array = rng.normal(0, 0.1, (16, 16, 3, 3)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    data = {"x": rng.normal(size=(4, 16, 8, 8)).astype(np.float32)}
    quantized = onnx_hyvit.quantize(model, calibration=data, config=QuantConfig(recipe="gains", bits="w4a4")).model
    report = onnx_hyvit.debug(model, quantized, data)
    assert report["measure"] == "relative_error"
    assert report["everything"]["top1_agreement"] is None
    assert 0 < report["everything"]["loss"] < 0.2
    assert report["float_twin"]["loss"] < 1e-4


class TestRestore:
    """The float original of a rounded weight is found by its values."""

    RNG = np.random.default_rng(1)
    WEIGHTS = RNG.normal(size=(3, 24, 32)).astype(np.float32)

    @pytest.fixture()
    def known(self) -> FloatWeights:
        return FloatWeights([{str(i): weight for i, weight in enumerate(self.WEIGHTS)}])

    def test_plain(self, known: FloatWeights) -> None:
        rounded = np.round(self.WEIGHTS[1] * 2) / 2
        np.testing.assert_array_equal(known.find(rounded.astype(np.float32)), self.WEIGHTS[1])

    @pytest.mark.parametrize("axis", [0, 1])
    def test_with_a_factor_for_each_channel(self, known: FloatWeights, axis: int) -> None:
        shape = [1, 1]
        shape[axis] = -1
        factors = np.exp(self.RNG.normal(size=self.WEIGHTS.shape[1 + axis])).reshape(shape)
        scaled = (self.WEIGHTS[2] * factors).astype(np.float32)
        found = known.find((np.round(scaled * 16) / 16).astype(np.float32))
        assert found is not None
        np.testing.assert_allclose(found, scaled, rtol=0.03)

    def test_with_channels_added(self, known: FloatWeights) -> None:
        wide = np.concatenate([self.WEIGHTS[1], self.WEIGHTS[1][:8]])
        for expected in (wide, np.pad(wide, ((0, 0), (0, 4)))):
            np.testing.assert_array_equal(known.find((np.round(expected * 4) / 4).astype(np.float32)), expected)
        assert known.find(np.pad(self.WEIGHTS[1], ((0, 0), (0, 16)))) is None, "no kernel needs so many"

    def test_none_is_near(self, known: FloatWeights) -> None:
        assert known.find(self.RNG.normal(size=(24, 32)).astype(np.float32)) is None
        assert known.find(np.zeros((24, 32), np.float32)) is None
        assert known.find(np.ones((5, 5), np.float32)) is None


def test_divergence_of_known_distributions() -> None:
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.5, 0.25]])
    expected = 0.5 * np.log(2) + 0.25 * np.log(0.5)
    assert divergence(p, q) == pytest.approx(expected)
    assert divergence(np.log(p) + 3, np.log(q) - 1) == pytest.approx(expected)
    loss = OutputLoss()
    loss.update({"y": np.log(p)}, {"y": np.log(q)})
    assert loss.to_dict()["top1_agreement"] == 0


def test_weights_are_decoded_along_their_axis() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[1,2] x) => (float[1,3] y)
        <int8[2,3] w = {1, -2, 3, 4, 5, 127}, float[3] s = {1, 0.5, 2}, int8[3] z = {0, 0, 0}>
        { d = DequantizeLinear<axis=1>(w, s, z)  y = MatMul(x, d) }"""
    (weight,) = find_weights(GraphIndex(onnx.parser.parse_model(text).graph))
    np.testing.assert_array_equal(weight.values, [[1, -1, 6], [4, 2.5, 254]])
    assert weight.bits == 8


class TestCommand:
    """The command line door."""

    @pytest.fixture()
    def file(self, int8: onnx.ModelProto, tmp_path: Path) -> Path:
        onnx.save(worsened(int8, harmful_tensor(int8)), tmp_path / "int8.onnx")
        return tmp_path / "int8.onnx"

    def test_json_and_text(
        self, file: Path, tiny_model: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        done = run_cli("debug", tiny_model, file, "--data", tiny_data, "--samples", 1, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        report = json.loads(done.stdout)
        again = onnx_hyvit.debug(tiny_model, file, tiny_data, samples=1)
        assert report == json.loads(json.dumps(again)), "another process, the same report"
        debugged(report)
        text = " ".join(capsys.readouterr().out.split())
        assert text.index("What to do") < text.index("Blocks") < text.index("Tensors")
        assert "codes are used" in text

    def test_quiet(self, file: Path, tiny_model: Path, tiny_data: Path) -> None:
        quiet = run_cli("debug", tiny_model, file, "--data", tiny_data, "--samples", 1, "-q")
        assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")

    def test_bad_input(self, file: Path, tiny_model: Path, tiny_data: Path) -> None:
        done = run_cli("debug", tiny_model, tiny_model, "--data", tiny_data)
        assert_one_line_error(done, "QuantizeLinear", str(tiny_model.name))
        assert_one_line_error(run_cli("debug", file, file, "--data", tiny_data), "already quantized")
        assert_one_line_error(run_cli("debug", tiny_model, "none.onnx", "--data", tiny_data), "none.onnx")


def test_two_models_that_do_not_fit(int8: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[1,3] x) => (float[1,3] y) { y = Relu(x) }'
    with pytest.raises(ModelError, match="compare a model with the one it was made from"):
        onnx_hyvit.debug(onnx.parser.parse_model(text), int8, feeds)
