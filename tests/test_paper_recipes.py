"""Recipes repq-vit, fq-vit and hyq, from the command line to the report, in both modes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from test_cli import assert_one_line_error, run_cli
from test_full_mode import agreement, fashion

from onnx_hyvit import ConfigError, QuantConfig, quantize
from onnx_hyvit.demo import INPUT, MODEL
from onnx_hyvit.numerics import LogCodes
from onnx_hyvit.recipes import Recipe, Reconstruction, find_recipe
from onnx_hyvit.targets import load_target

FUNCTION = {"repq-vit": "LogQuantize", "fq-vit": "LogIntSoftmax", "hyq": "LogIntSoftmax"}
CODES = {
    "repq-vit": "log-sqrt2 codes of 8 bits, emulated",
    "fq-vit": "log-int-softmax of 4 bits, emulated",
    "hyq": "log-int-softmax of 4 bits, emulated",
}


def tiny(path: Path, data: Path, **settings: object) -> tuple[onnx.ModelProto, dict]:
    with np.load(data) as arrays:
        feeds = {name: arrays[name][:6] for name in arrays}
    result = quantize(path, calibration=feeds, config=QuantConfig(threads=2, **settings))
    return result.model, result.report


def counts(proto: onnx.ModelProto) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in proto.graph.node:
        found[node.op_type] = found.get(node.op_type, 0) + 1
    return found


@pytest.mark.parametrize("recipe", FUNCTION)
def test_full_mode_on_the_shipped_model(recipe: str) -> None:
    calibration, folder = fashion("calib", 8)
    config = QuantConfig(recipe=recipe, mode="full", target="ort-x86-avx2", threads=2)
    result = quantize(folder / MODEL, calibration={INPUT: calibration}, config=config)
    emulated = result.report["plan"]["emulated"]
    assert len(emulated) == 9 and set(emulated.values()) == {CODES[recipe]}
    assert counts(result.model)[FUNCTION[recipe]] == 9
    assert result.report["audit"]["counts"]["float"] == 9  # softmax x V, whose kernel knows no logarithmic codes
    assert agreement(folder / MODEL, result.model, fashion("test", 300)[0]) >= 0.88


@pytest.mark.parametrize("recipe", FUNCTION)
def test_partial_mode_emulates_nothing(recipe: str, tiny_model: Path, tiny_data: Path) -> None:
    proto, report = tiny(tiny_model, tiny_data, recipe=recipe)
    assert report["plan"]["emulated"] == {} and report["plan"]["paired_nodes"] == []
    assert not proto.functions and FUNCTION[recipe] not in counts(proto)


def test_narrow_bits_reach_the_logarithmic_codes(tiny_model: Path, tiny_data: Path) -> None:
    proto, report = tiny(tiny_model, tiny_data, recipe="repq-vit", mode="full", bits="w4a4")
    assert set(report["plan"]["emulated"].values()) == {"log-sqrt2 codes of 4 bits, emulated"}
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    calls = [node for node in proto.graph.node if node.op_type == "LogQuantize"]
    assert calls and all(values[node.input[2]] == 15 and 0 < values[node.input[1]] <= 1 for node in calls)


def test_norms_of_fq_vit_have_shifted_scales(tiny_model: Path, tiny_data: Path) -> None:
    proto, _ = tiny(tiny_model, tiny_data, recipe="fq-vit", mode="full")
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    vectors = [
        values[n.input[1]] for n in proto.graph.node if n.op_type == "QuantizeLinear" and values[n.input[1]].ndim
    ]
    assert vectors
    for scale in vectors:
        powers = np.log2(scale / scale.min())
        assert np.array_equal(powers, np.rint(powers)) and powers.max() <= 3
    assert any(len(set(scale)) > 1 for scale in vectors)


def test_hyq_scales_channels_in_front_of_convolutions(tiny_model: Path, tiny_data: Path) -> None:
    _, report = tiny(tiny_model, tiny_data, recipe="hyq")
    chosen = report["granularity"]["per_channel"]
    assert chosen and {entry["fold"] for entry in chosen} == {"mul"}
    assert report["granularity"]["added_nodes"] == 2 * len(chosen)


def test_repq_reparametrises_without_a_node(tiny_model: Path, tiny_data: Path) -> None:
    _, report = tiny(tiny_model, tiny_data, recipe="repq-vit")
    chosen = report["granularity"]["per_channel"]
    assert chosen and {entry["fold"] for entry in chosen} == {"affine"}
    assert report["granularity"]["added_nodes"] == 0


def test_same_input_gives_the_same_bytes(tiny_model: Path, tiny_data: Path) -> None:
    first, second = (tiny(tiny_model, tiny_data, recipe="repq-vit", mode="full", verify=False)[0] for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_reconstruction_of_emulated_codes_is_refused() -> None:
    with pytest.raises(ConfigError, match="'mine': reconstruction knows uniform codes"):
        Recipe("mine", "", softmax=LogCodes(), reconstruction=Reconstruction())
    assert find_recipe("q-hyvit").softmax is None


def test_command_line(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "int8.onnx"
    arguments = ("quantize", tiny_model, "-o", output, "--calib", tiny_data, "--samples", 4, "--recipe", "repq-vit")
    done = run_cli(*arguments, "--mode", "full", "--no-verify")
    assert done.returncode == 0, done.stderr
    assert "mode full" in done.stdout and "no kernel accelerates them" in done.stdout
    output.unlink()
    assert_one_line_error(run_cli(*arguments, "--mode", "half"), "mode 'half' is unknown", "partial, full")
    assert_one_line_error(run_cli(*arguments, "--mode", "full", "--max-drop", 0.1), "max_drop", "mode full")
    bare = tmp_path / "bare.toml"
    nothing = "".join(f"{op} = false\n" for op in load_target("tensorrt").full)
    bare.write_text('extends = "tensorrt"\nname = "bare"\n[full]\n' + nothing)
    assert_one_line_error(run_cli(*arguments, "--mode", "full", "--target", bare), "bare", "no rules for mode full")
    assert not output.exists()
