"""The demo: a small real hybrid, trained on Fashion-MNIST, quantized and measured with the images that ship with it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .api import quantize
from .calibration import InputInfo, Preprocess, load_preprocess
from .comparison import compare
from .config import QuantConfig
from .errors import ModelError
from .evidence import compare_for_report
from .runtime import Progress

MODEL = "fashion_mobilevit_xxs.onnx"
PREPROCESS = "fashion_mobilevit_xxs.toml"
IMAGES = "fashion_mnist_subset.npz"
INPUT = "input"
SIDE = 64
COMPARED = 1000


def find_models(folder: Path | None = None) -> Path:
    """The folder with the demo's files.

    Args:
        folder: Where to look; the ``models`` folder of a checkout, or of the current folder, when None.

    Raises:
        ModelError: The files are not there.
    """
    places = [folder] if folder else [Path(__file__).parent.parent / "models", Path.cwd() / "models"]
    for place in places:
        if all((place / name).is_file() for name in (MODEL, PREPROCESS, IMAGES)):
            return place
    raise ModelError(f"{places[-1]}: {MODEL} and {IMAGES} are not there; run the demo in a checkout or name --models")


def run_demo(
    output: Path | None = None,
    models: Path | None = None,
    *,
    config: QuantConfig | None = None,
    samples: int = COMPARED,
    progress: Progress | None = None,
    evidence: bool = False,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Quantize the demo's model, compare it with the float one on labelled images it has not seen.

    Args:
        output: Folder for the int8 model; a temporary one when None.
        models: Folder with the demo's files, see ``find_models``.
        config: Settings; the defaults when None.
        samples: Test images to compare on, at most 2000.
        progress: Called as ``progress(done, total, text)``.
        evidence: Also collect what a report page shows, see ``evidence.compare_for_report``.
        say: Called with a line for a person now and then.

    Returns:
        ``{"quantize": report, "compare": report}``.
    """
    folder = find_models(models)
    config = config or QuantConfig()
    say = say or (lambda text: None)
    with np.load(folder / IMAGES, allow_pickle=False) as images:
        calibration, test = images["calib_images"], images["test_images"][:samples]
        labels = images["test_labels"][:samples].astype(np.int64)
    preprocess = load_preprocess(folder / PREPROCESS)
    say(f"A MobileViT-XXS for Fashion-MNIST ({MODEL}), {len(calibration)} images to calibrate, {len(test)} to compare.")
    with tempfile.TemporaryDirectory() as scratch:
        destination = (output or Path(scratch)) / "fashion_mobilevit_xxs_int8.onnx"
        result = quantize(
            folder / MODEL,
            destination,
            calibration={INPUT: to_arrays(calibration, preprocess)},
            config=config,
            progress=progress,
        )
        measure = compare_for_report if evidence else compare
        comparison = measure(
            folder / MODEL,
            destination,
            {INPUT: to_arrays(test, preprocess)},
            labels=labels,
            samples=len(test),
            progress=progress,
        )
    report = {**result.report, "output": str(destination) if output else None}
    return {"quantize": report, "compare": comparison}


def to_arrays(images: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Model inputs of grayscale images: uint8 [N, 28, 28] -> float32 [N, 3, 64, 64]."""
    ready = preprocess.resolve(InputInfo(INPUT, np.dtype(np.float32), (None, 3, SIDE, SIDE)))
    return np.stack([ready(Image.fromarray(image).convert("RGB")) for image in images])
