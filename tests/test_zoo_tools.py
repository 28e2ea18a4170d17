"""The training and export tools, on tiny data; skipped where torch and timm are not installed."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import export_hf  # noqa: E402
import export_timm  # noqa: E402
from zoo import architectures, augment, datasets, export, index, mobile_former, publish, speed, training  # noqa: E402
from zoo.recipe import RECIPES, Recipe  # noqa: E402


@pytest.fixture
def images() -> datasets.Images:
    """Forty random 28x28 images of ten classes."""
    rng = np.random.default_rng(0)
    return datasets.Images(rng.integers(0, 256, (40, 28, 28, 3), dtype=np.uint8), np.arange(40) % 10)


def _tiny_recipe() -> Recipe:
    return Recipe("mobilevit_xxs", "fashion_mnist", epochs=2, sides=((0.0, 32), (0.5, 64)), batch=8, validation=8)


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_fast_kernels_compute_the_same(name: str) -> None:
    torch.manual_seed(0)
    speed.use_plain_attention()
    model = architectures.build(name, 10).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        plain = model(x)
        speed.choose_fast_kernels(model)
        torch.testing.assert_close(model(x), plain, atol=1e-5, rtol=1e-4)
    assert plain.shape == (2, 10)


@pytest.mark.parametrize(("side", "kernel"), [(2, 3), (3, 3), (4, 7), (2, 9)])
def test_depthwise_by_matmul(side: int, kernel: int) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 5, side, side), torch.randn(5, 1, kernel, kernel), torch.randn(5)
    expected = torch.nn.functional.conv2d(x, weight, bias, padding=kernel // 2, groups=5)
    torch.testing.assert_close(speed.depthwise_by_matmul(x, weight, bias), expected)


def test_dynamic_relu_starts_near_relu() -> None:
    relu = mobile_former.DynamicReLU(4)
    for parameter in relu.coefficients.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(relu(x, torch.randn(2, mobile_former.TOKEN_DIM)), x.relu())


def test_channel_shuffle_mixes_the_groups() -> None:
    x = torch.arange(6).view(1, 6, 1, 1)
    assert mobile_former.ChannelShuffle(2)(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_crop_and_flip_is_a_shift_or_a_mirrored_shift(images: datasets.Images) -> None:
    out = augment.crop_and_flip(images.pixels, 2, np.random.default_rng(0))
    padded = np.pad(images.pixels, [(0, 0), (2, 2), (2, 2), (0, 0)], mode="reflect")
    for i, image in enumerate(out):
        shifts = [padded[i, r : r + 28, c : c + 28] for r in range(5) for c in range(5)]
        assert any((image == s).all() or (image == s[:, ::-1]).all() for s in shifts)


def test_to_batch_matches_the_input_at_inference(images: datasets.Images) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    ours = augment.to_batch(images.pixels, 64, mean, std).numpy()
    theirs = datasets.to_input(images.pixels, 64, mean, std)
    assert np.abs(ours - theirs).max() < 1.01 / 255 / 0.2  # Pillow rounds to whole pixel values, once per axis


def test_recipes_end_at_the_input_size() -> None:
    for recipe in RECIPES.values():
        assert recipe.architecture in architectures.ARCHITECTURES
        assert recipe.side_at(1.0) == architectures.INPUT_SIDE
        assert recipe.cycle_at(0.0) < recipe.cycle_at(recipe.warmup / recipe.cycles) == 1
        assert recipe.cycle_at(1.0) == pytest.approx(0)
        once, twice = (dataclasses.replace(recipe, cycles=cycles) for cycles in (1, 2))
        assert twice.cycle_at(0.25) == once.cycle_at(0.5) == twice.cycle_at(0.75)
    with pytest.raises(ValueError, match="sides"):
        Recipe("swin", sides=((0.5, 64),))


def test_resumed_run_equals_the_uninterrupted_one(images: datasets.Images, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    train, validation = datasets.split_train_validation(images, 8, 0)
    whole = training.Run(_tiny_recipe(), train, validation, tmp_path / "whole")
    whole.run()
    first = training.Run(_tiny_recipe(), train, validation, tmp_path / "parts")
    for _ in range(3):
        first.train_step()
    first.save()
    second = training.Run(_tiny_recipe(), train, validation, tmp_path / "parts")
    assert second.step == 3
    second.run()
    for key, value in whole.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[key], value, rtol=1e-2, atol=1e-3)
    curve = [json.loads(line) for line in (tmp_path / "whole" / training.CURVE).read_text().splitlines()]
    assert [line["side"] for line in curve] == [32, 64]


def test_publish_writes_model_preprocessing_and_entry(
    images: datasets.Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(_tiny_recipe(), epochs=1)
    monkeypatch.setitem(RECIPES, "tiny", recipe)
    train, validation = datasets.split_train_validation(images, 8, 0)
    run = training.Run(recipe, train, validation, tmp_path / "run")
    run.save()
    with pytest.raises(datasets.DataError, match="not finished"):
        publish.publish("tiny", tmp_path / "run", validation, tmp_path / "models")
    run.run()
    entry = publish.publish("tiny", tmp_path / "run", validation, tmp_path / "models")
    assert index.read_index(tmp_path / "models") == {"tiny": json.loads(json.dumps(entry))}
    model = onnx.load(tmp_path / "models" / "tiny.onnx")
    assert index.describe(model)["macs"] == entry["macs"] > 1e7
    assert (tmp_path / "models" / "tiny.toml").is_file()


def test_exported_model_holds_no_paths(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 2))
    export.export_onnx(model, tmp_path / "a.onnx", (3, 8, 8))
    assert str(ROOT).encode() not in (tmp_path / "a.onnx").read_bytes()
    assert b".py" not in (tmp_path / "a.onnx").read_bytes()


def test_export_timm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export_timm.main(["mobilevit_xxs", "--out", str(tmp_path), "--size", "64"]) == 0
    model = onnx.load(tmp_path / "mobilevit_xxs.onnx")
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == ["N", 3, 64, 64]
    assert 'resize = "bicubic"' in (tmp_path / "mobilevit_xxs.toml").read_text()
    assert "random" in capsys.readouterr().err
    assert export_timm.main(["no_such_model", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_export_hf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    assert export_hf.main(["mobilevit", "--random", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "mobilevit.onnx").is_file()
    toml = (tmp_path / "mobilevit.toml").read_text()
    assert 'channel_order = "BGR"' in toml
    assert "resize_size = " in toml
    assert "random" in capsys.readouterr().err
