"""The models and images of the comparison: the shipped Fashion-MNIST hybrid, quantized for each target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnx_hyvit import MobileConfig, QuantConfig, export_mobile, quantize
from onnx_hyvit.calibration import load_preprocess
from onnx_hyvit.demo import IMAGES, INPUT, MODEL, PREPROCESS, find_models, to_arrays

SHAPE = (3, 64, 64)
SAMPLES = 100


@dataclass(frozen=True)
class Case:
    """Prepared inputs and models.

    Args:
        folder: Where everything lies, ``inputs.f32`` included.
        images: float32 [100, 3, 64, 64], images that calibration did not see.
        files: (target, format) -> file; the format is ``onnx`` or ``ort``.
    """

    folder: Path
    images: np.ndarray
    files: dict[tuple[str, str], Path]


def prepare(folder: Path, targets: tuple[str, ...], samples: int = 64) -> Case:
    """Quantize the shipped model for each target, and write it as .onnx (batch 1) and as .ort in Fixed style.

    Only the files for native sessions on x86 get its layouts of float convolutions; a browser refuses those.

    Args:
        folder: Where to write; made when missing.
        targets: Names of targets.
        samples: Calibration images, at most 100.
    """
    folder.mkdir(parents=True, exist_ok=True)
    models = find_models()
    preprocess = load_preprocess(models / PREPROCESS)
    with np.load(models / IMAGES, allow_pickle=False) as archive:
        calibration, test = (to_arrays(archive[key][:SAMPLES], preprocess) for key in ("calib_images", "test_images"))
    test.astype("<f4").tofile(folder / "inputs.f32")
    files = {}
    for target in targets:
        quantized = folder / f"{target}.onnx"
        config = QuantConfig(target=target, samples=samples)
        quantize(models / MODEL, quantized, calibration={INPUT: calibration}, config=config)
        platform = "amd64" if target == "ort-x86-avx2" else "arm"
        exported = export_mobile(quantized, folder / target, MobileConfig(platform=platform, runs=1))
        files[target, "onnx"] = folder / target / exported["files"]["fixed_shape"]
        files[target, "ort"] = folder / target / exported["files"]["Fixed"]
    return Case(folder, test, files)
