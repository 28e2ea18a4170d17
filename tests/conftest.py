"""What several test files share: a tiny real hybrid from the corpus, and calibration data for it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a job in the background starts with Ctrl-C ignored, and so would the processes that tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)

CORPUS = Path(__file__).parent / "corpus"
TINY = "mobilevit_v1.torchscript-17.onnx"


@pytest.fixture(autouse=True, scope="session")
def default_target() -> Iterator[None]:
    """Plans of tests are the same on every processor: ``auto`` is ``ort-x86``, except in processes of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnx_hyvit.processor.target_here", lambda: "ort-x86")
        yield


@pytest.fixture(scope="session")
def rules_target(tmp_path_factory: pytest.TempPathFactory) -> str:
    """``ort-x86`` without costs: by costs, so small a model is float for the most part."""
    path = tmp_path_factory.mktemp("targets") / "rules.toml"
    path.write_text('extends = "ort-x86"\nname = "rules"\n[options]\nprofile = false\n')
    return str(path)


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """Path of a reduced MobileViT with random weights."""
    return CORPUS / TINY


@pytest.fixture(scope="session")
def tiny_input() -> tuple[str, tuple[int, ...]]:
    """Name and shape [C, H, W] of the tiny model's input."""
    entries = json.loads((CORPUS / "index.json").read_text())
    entries = entries["models"]
    entry = next(entry for entry in entries if entry["file"] == TINY)
    return entry["input"]["name"], tuple(entry["input"]["shape"][1:])


@pytest.fixture(scope="session")
def tiny_data(tiny_input: tuple[str, tuple[int, ...]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz of 24 smooth random images for the tiny model."""
    name, shape = tiny_input
    rng = np.random.default_rng(3)
    coarse = rng.normal(0, 1, (24, shape[0], 8, 8)).astype(np.float32)
    images = np.kron(coarse, np.ones((1, 1, -(-shape[1] // 8), -(-shape[2] // 8)), np.float32))
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, **{name: images[:, :, : shape[1], : shape[2]] + 0.1 * rng.normal(size=(24, *shape)).astype("f")})
    return path
