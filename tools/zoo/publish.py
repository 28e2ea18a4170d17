"""From a finished training run to the files of `models/`: ONNX, preprocessing file, index entry."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .architectures import INPUT_SIDE, build
from .datasets import FASHION_SUBSET, DataError, Images, load_fashion_mnist
from .export import INPUT, OPSET, OUTPUT, export_onnx
from .index import describe, read_index, sha256, write_index
from .preprocess_file import write_preprocess_file
from .recipe import DATASETS, RECIPES, Recipe
from .scoring import open_session, predict, wilson
from .speed import use_plain_attention
from .training import CHECKPOINT, CURVE

LICENCE = "Apache-2.0"
SUBSET_TEST, SUBSET_CALIBRATION, SUBSET_SEED = 2000, 256, 0


def publish(name: str, run: Path, test: Images, models: Path) -> dict[str, Any]:
    """Export the finished run of a model and enter it into the index.

    Args:
        name: key of `RECIPES`.
        run: folder with the checkpoint.
        test: test images of the dataset, on which the accuracy is measured through onnxruntime.
        models: folder for the files.

    Returns:
        The entry of the index.

    Raises:
        DataError: if there is no checkpoint or the run is not finished.
    """
    recipe = RECIPES[name]
    model, minutes = load_finished(recipe, run)
    models.mkdir(parents=True, exist_ok=True)
    path = models / f"{name}.onnx"
    proto = export_onnx(model, path, (3, INPUT_SIDE, INPUT_SIDE))
    preprocessing = preprocessing_of(recipe)
    write_preprocess_file(models / f"{name}.toml", preprocessing, f"Preprocessing of {path.name}")
    entry = {
        "name": name,
        "file": path.name,
        "sha256": sha256(path),
        "bytes": path.stat().st_size,
        "architecture": recipe.architecture,
        "dataset": recipe.dataset,
        "classes": list(DATASETS[recipe.dataset].classes),
        **describe(proto),
        "opset": OPSET,
        "input": {"name": INPUT, "dtype": "float32", "shape": ["N", 3, INPUT_SIDE, INPUT_SIDE]},
        "output": {"name": OUTPUT, "dtype": "float32", "shape": ["N", len(DATASETS[recipe.dataset].classes)]},
        "preprocessing": preprocessing,
        "accuracy": measure(path, test, preprocessing),
        "made": made_by(recipe, minutes, run),
        "licence": LICENCE,
    }
    entries = read_index(models)
    write_index(models, {**entries, name: entry}, list(RECIPES))
    return entry


def load_finished(recipe: Recipe, run: Path) -> tuple[torch.nn.Module, float]:
    """Model with the trained weights, and the processor minutes that the training took."""
    path = run / CHECKPOINT
    if not path.is_file():
        raise DataError(f"{path}: no checkpoint; train the model first")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not state.get("finished"):
        raise DataError(f"{path}: the training has not finished ({state['step']} steps done)")
    use_plain_attention()
    model = build(recipe.architecture, len(DATASETS[recipe.dataset].classes))
    model.load_state_dict(state["model"])
    return model, state["seconds"] / 60


def preprocessing_of(recipe: Recipe) -> dict[str, Any]:
    """How an image becomes the input of a model of the zoo, as flat keys."""
    dataset = DATASETS[recipe.dataset]
    return {
        "size": [INPUT_SIDE, INPUT_SIDE],
        "resize": "bilinear",
        "crop": "none",
        "channel_order": "RGB",
        "scale": 1 / 255,
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "layout": "NCHW",
    }


def measure(path: Path, test: Images, preprocessing: dict[str, Any]) -> dict[str, Any]:
    """Top-1 of a model file through onnxruntime, with its 95 % Wilson interval."""
    right = predict(open_session(path, threads=1), test, preprocessing).argmax(1) == test.labels
    share = wilson(int(right.sum()), len(right))
    return {"top1": round(share.value, 4), "low": round(share.low, 4), "high": round(share.high, 4), "images": share.n}


def made_by(recipe: Recipe, minutes: float, run: Path) -> dict[str, Any]:
    """Recipe, time, versions and the curve of the training behind a model."""
    curve = (run / CURVE).read_text(encoding="utf-8").splitlines() if (run / CURVE).is_file() else []
    return {
        "tool": "tools/train_zoo.py",
        "recipe": asdict(recipe),
        "core_minutes": round(minutes, 1),
        "versions": {package: version(package).split("+")[0] for package in ("torch", "timm", "onnx", "onnxscript")},
        "curve": [json.loads(line) for line in curve],
    }


def write_fashion_subset(data: Path, models: Path) -> Path:
    """Write the shipped Fashion-MNIST images: 2,000 of the test split, 256 of the training split.

    Both are drawn with a fixed seed; the arrays are uint8 [n, 28, 28] and uint8 [n].
    """
    rng = np.random.default_rng(SUBSET_SEED)
    arrays: dict[str, np.ndarray] = {}
    for key, split, count in (("calib", "train", SUBSET_CALIBRATION), ("test", "test", SUBSET_TEST)):
        images = load_fashion_mnist(data, split)
        drawn = images.take(rng.permutation(len(images))[:count])
        arrays[f"{key}_images"] = drawn.pixels[..., 0]
        arrays[f"{key}_labels"] = drawn.labels.astype(np.uint8)
    path = models / FASHION_SUBSET
    models.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return path
