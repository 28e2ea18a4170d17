"""Settings are validated when they are built, and files of settings say which key is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnx_hyvit import ConfigError, QuantConfig
from onnx_hyvit.config import load_config


def test_bits_are_parsed() -> None:
    config = QuantConfig(bits="w4a8")
    assert (config.weight_bits, config.activation_bits) == (4, 8)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"bits": "8"}, "bits"),
        ({"bits": "w1a8"}, "bits"),
        ({"bits": "w8a9"}, "bits"),
        ({"samples": 0}, "samples"),
        ({"samples": True}, "samples"),
        ({"seed": -1}, "seed"),
        ({"threads": 1.5}, "threads"),
        ({"opset": 12}, "opset"),
        ({"residual": "maybe"}, "residual"),
        ({"activation_type": "int4"}, "activation_type"),
    ],
)
def test_bad_settings_are_refused_by_name(changes: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        QuantConfig(**changes)


def test_file_of_settings_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('recipe = "mse"\nsamples = 16\nfloat_nodes = ["a", "b"]\n')
    config = load_config(path, {"samples": 4})
    assert (config.recipe, config.samples, config.float_nodes) == ("mse", 4, ("a", "b"))


@pytest.mark.parametrize(
    ("text", "word"),
    [("samples = ", "TOML"), ('colour = "red"', "colour"), ("samples = 0", "samples"), ("bits = 8", "bits")],
)
def test_bad_files_name_the_file_and_the_key(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=word) as caught:
        load_config(path)
    assert "settings.toml" in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.toml")
