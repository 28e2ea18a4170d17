"""The default target is that of the processor at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnx_hyvit import QuantConfig, processor, quantize, quantize_many
from onnx_hyvit.processor import target_here
from onnx_hyvit.runtime import sums_saturate


@pytest.mark.parametrize(
    ("machine", "saturates", "expected"),
    [
        ("x86_64", False, "ort-x86"),
        ("AMD64", True, "ort-x86-avx2"),
        ("aarch64", False, "ort-arm"),
        ("arm64", True, "ort-arm"),
    ],
)
def test_processor_decides(monkeypatch: pytest.MonkeyPatch, machine: str, saturates: bool, expected: str) -> None:
    monkeypatch.setattr(processor.platform, "machine", lambda: machine)
    monkeypatch.setattr(processor, "sums_saturate", lambda: saturates)
    assert target_here() == expected


def test_auto_becomes_the_target_and_a_name_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "target_here", lambda: "ort-arm")
    assert processor.find_target("auto") == "ort-arm"
    assert processor.find_target("qnn") == "qnn"
    assert processor.find_target(Path("mine.toml")) == Path("mine.toml")


def test_report_names_the_target_that_was_found(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tiny_data: Path
) -> None:
    monkeypatch.setattr(processor, "target_here", lambda: "ort-x86-avx2")
    settings = QuantConfig(recipe="minmax", samples=2)
    found = quantize(tiny_model, calibration=tiny_data, config=settings)
    named = quantize(tiny_model, calibration=tiny_data, config=settings.replace(target="ort-x86-avx2"))
    assert found.report["config"]["target"] == "ort-x86-avx2"
    assert (found.report["chosen_target"], named.report["chosen_target"]) == (True, False)
    assert found.model.SerializeToString(deterministic=True) == named.model.SerializeToString(deterministic=True)


def test_reports_of_several_models_tell_it_too(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(processor, "target_here", lambda: "ort-x86-avx2")
    settings = QuantConfig(recipe="minmax", samples=2, verify=False)
    for target, chosen in (("auto", True), ("ort-x86-avx2", False)):
        (done,) = quantize_many(
            [tiny_model], tmp_path / target, calibration=tiny_data, config=settings.replace(target=target)
        )
        assert (done.report["config"]["target"], done.report["chosen_target"]) == ("ort-x86-avx2", chosen)


def test_default_session_is_exact_with_the_default_target(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tiny_data: Path
) -> None:
    monkeypatch.setattr(processor, "target_here", target_here)
    result = quantize(tiny_model, calibration=tiny_data, config=QuantConfig(recipe="minmax", samples=2))
    assert not [text for text in result.report["findings"] if "saturate" in text]
    assert result.report["config"]["target"] == "ort-x86-avx2" or not sums_saturate()
