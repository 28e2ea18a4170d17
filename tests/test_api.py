"""The Python API: the same function behind both doors, and a report that says what was done."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from qdq_graphs import parse, weight

import onnx_hyvit
from onnx_hyvit import CalibrationError, ConfigError, ModelError, OutputError, QuantConfig
from onnx_hyvit import calibration as calib
from onnx_hyvit.graph import model_to_proto
from onnx_hyvit.request import input_shapes
from onnx_hyvit.runtime import make_session


@pytest.fixture(scope="module")
def feeds(tiny_data: Path) -> dict[str, np.ndarray]:
    with np.load(tiny_data) as data:
        return dict(data)


def outputs_of(model: object, feeds: dict[str, np.ndarray], count: int = 4) -> np.ndarray:
    """The first output of the first ``count`` samples, run one by one (the tiny model's batch is fixed)."""
    session = make_session(model)
    rows = [{name: values[index : index + 1] for name, values in feeds.items()} for index in range(count)]
    return np.concatenate([next(iter(session.run(row).values())) for row in rows])


@pytest.fixture(scope="module")
def result(tiny_model: Path, feeds: dict[str, np.ndarray]) -> onnx_hyvit.QuantResult:
    return onnx_hyvit.quantize(tiny_model, calibration=feeds, config=QuantConfig(samples=8))


def test_nothing_is_written_without_an_output(result: onnx_hyvit.QuantResult) -> None:
    assert result.path is None
    assert isinstance(result.model, onnx.ModelProto)
    json.dumps(result.report)


def test_int8_is_close_to_float(result, tiny_model: Path, feeds: dict[str, np.ndarray]) -> None:
    expected = outputs_of(tiny_model, feeds)
    found = outputs_of(result.model, feeds)
    noise = np.square(expected - found).sum() / np.square(expected).sum()
    assert noise < 0.15, "the random weights of the tiny model amplify noise, but not that much"
    assert noise > 0, "nothing was quantized"


def test_every_heavy_node_is_int8_or_has_a_reason(result) -> None:
    audit, plan = result.report["audit"], result.report["plan"]
    for node in audit["float"]:
        assert node in plan["float_nodes"], node
    chosen = {name for step in result.report["precision"]["steps"] for name in step["nodes"]}
    chosen |= {name for region in result.report["speed"]["float_regions"] for name in region["nodes"]}
    taken_back = chosen & set(audit["float"])
    narrow = audit["counts"]["float_weighted"] - len(taken_back)
    assert narrow <= 2, "all but the two narrowest convolutions, and what was taken back for accuracy"
    spent = sum(max(0.0, step["cost_us"]) for step in result.report["precision"]["steps"])
    assert spent <= 0.05 * result.report["precision"]["predicted_int8_us"]
    assert audit["dequantized_weights"] == []
    assert audit["bad_kernels"] == []
    assert audit["counts"]["int8"] >= 15


def test_by_rules_alone_more_is_int8(tiny_model: Path, feeds: dict[str, np.ndarray], rules_target: str) -> None:
    config = QuantConfig(samples=8, target=rules_target)
    report = onnx_hyvit.quantize(tiny_model, calibration=feeds, config=config).report
    assert report["audit"]["counts"]["int8"] >= 20
    assert set(report["audit"]["float"]) <= set(report["plan"]["float_nodes"])


def test_interface_and_metadata_are_kept(tiny_model: Path, feeds: dict[str, np.ndarray]) -> None:
    model = onnx.load(tiny_model)
    entry = model.metadata_props.add()
    entry.key, entry.value = "author", "someone"
    model.graph.doc_string = "a graph"
    before = copy.deepcopy(model)
    quantized = onnx_hyvit.quantize(model, calibration=feeds, config=QuantConfig(samples=2)).model
    assert model == before, "the caller's model was changed"
    assert {entry.key: entry.value for entry in quantized.metadata_props}["author"] == "someone"
    assert quantized.graph.doc_string == "a graph"
    for kind in ("input", "output"):
        names = [[value.name for value in getattr(proto.graph, kind)] for proto in (model, quantized)]
        assert names[0] == names[1]


def test_path_bytes_and_proto_give_the_same_model(tiny_model: Path, feeds: dict[str, np.ndarray]) -> None:
    config = QuantConfig(samples=2, verify=False)
    models = [
        onnx_hyvit.quantize(model, calibration=feeds, config=config).model.SerializeToString(deterministic=True)
        for model in (tiny_model, tiny_model.read_bytes(), onnx.load(tiny_model))
    ]
    assert models[0] == models[1] == models[2]


@pytest.mark.parametrize(("recipe", "limit"), [("minmax", 0.2), ("average", 0.6), ("mse", 0.2), ("percentile", 0.2)])
def test_every_recipe_gives_a_working_model(recipe: str, limit: float, tiny_model: Path, feeds) -> None:
    found = onnx_hyvit.quantize(tiny_model, calibration=feeds, config=QuantConfig(samples=8, recipe=recipe))
    expected = outputs_of(tiny_model, feeds)
    values = outputs_of(found.model, feeds)
    assert np.square(expected - values).sum() < limit * np.square(expected).sum()


def test_fewer_bits_run_on_the_same_kernels_and_cost_accuracy(result, tiny_model: Path, feeds) -> None:
    narrow = onnx_hyvit.quantize(tiny_model, calibration=feeds, config=QuantConfig(samples=8, bits="w4a6"))
    assert narrow.report["audit"]["counts"]["int8"] >= result.report["audit"]["counts"]["int8"]
    expected = outputs_of(tiny_model, feeds)
    errors = [float(np.square(expected - outputs_of(model, feeds)).sum()) for model in (result.model, narrow.model)]
    assert errors[0] < errors[1]


def test_float_nodes_stay_float(result, tiny_model: Path, feeds) -> None:
    name = result.report["audit"]["int8"][3]
    config = QuantConfig(samples=2, float_nodes=(name,))
    again = onnx_hyvit.quantize(tiny_model, calibration=feeds, config=config)
    assert name in again.report["plan"]["float_nodes"]
    assert name not in again.report["audit"]["int8"]


def test_bad_calls_raise_our_errors(tiny_model: Path, feeds, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        onnx_hyvit.quantize(tmp_path / "none.onnx", calibration=feeds)
    with pytest.raises(CalibrationError):
        onnx_hyvit.quantize(tiny_model, calibration=[])
    with pytest.raises(OutputError, match="does not exist"):
        onnx_hyvit.quantize(tiny_model, tmp_path / "a" / "b.onnx", calibration=feeds)
    with pytest.raises(ConfigError, match="soup"):
        onnx_hyvit.quantize(tiny_model, calibration=feeds, config=QuantConfig(recipe="soup"))


def test_shared_names_stand_for_shared_values(result, tiny_model: Path, feeds) -> None:
    """What makes ``compare`` honest: no tensor that kept its name differs more than rounding explains."""
    report = onnx_hyvit.compare(onnx.load(tiny_model), result.model, feeds, samples=4, runs=2)
    assert len(report["tensors"]) > 30
    assert report["tensors"][0]["sqnr_db"] > 3


def test_verify_speed_reports_what_it_did_and_writes_a_model_that_runs(tiny_model, tiny_data, tmp_path, monkeypatch):
    from onnx_hyvit import speed_check

    monkeypatch.setattr(speed_check, "RUNS", 6)
    config = QuantConfig(recipe="minmax", samples=4, verify=False, verify_speed=True, threads=1)
    for slower in (False, True):
        ratios = iter([0.5] + [2.0] * 99) if slower else iter([2.0])
        monkeypatch.setattr(speed_check, "_ratio", lambda *_, ratios=ratios: speed_check.Ratio(*[next(ratios)] * 3))
        result = onnx_hyvit.quantize(tiny_model, tmp_path / "a.onnx", calibration=tiny_data, config=config)
        check = result.report["speed"]["check"]
        assert check["verdict"] == ("blocks" if slower else "faster")
        assert all(entry["kept"] for entry in check["blocks"])
        kinds = {node.op_type for node in result.model.graph.node}
        assert ("QuantizeLinear" in kinds) is not slower, "every block was faster in float"


def test_free_sizes_are_those_of_the_data_and_may_differ_between_samples():
    """Height and width are free, the data are neither square nor all of one width, and a guess would not fit."""
    text = """g (float[N,4,H,W] x) => (float[N,8,1,1] y) {
        c = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(c) d = Conv(r, w2) s = Sigmoid(d) m = Mul(d, s)
        e = Conv(m, w3) y = GlobalAveragePool(e) }"""
    weights = {"w1": weight(16, 4, 3, 3), "w2": weight(16, 16, 1, 1, seed=1), "w3": weight(8, 16, 1, 1, seed=2)}
    proto = model_to_proto(parse(text, **weights))
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 4, 12, width)).astype(np.float32)} for width in (40, 24, 40, 56) * 4]
    config = QuantConfig(samples=None, cache=False, threads=1)
    result = onnx_hyvit.quantize(proto, calibration=feeds, config=config)
    (info,) = calib.inputs_of(proto)
    assert input_shapes(calib.open_source(feeds, [info])) == {"x": (1, 4, 12, 40)}
    for feed in feeds[:4]:
        exact, found = (make_session(model).run(feed)["y"] for model in (proto, result.model))
        assert np.abs(exact - found).max() < 0.05 * np.abs(exact).max()
