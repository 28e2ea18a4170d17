"""The examples as a new user runs them.

`make interop-test` runs those in node and in a browser, `make examples` those that need torch, transformers and Olive.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import onnx_hyvit
from onnx_hyvit import QuantConfig
from onnx_hyvit.demo import IMAGES, find_models
from onnx_hyvit.runtime import make_session

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "tools" / "examples"
MODEL = ROOT / "tests" / "corpus" / "repvgg.torchscript-17.onnx"
sys.path.insert(0, str(ROOT / "tools"))

from interop.browser import Browser  # noqa: E402
from interop.runtimes import PACKAGES  # noqa: E402
from interop.serving import listen  # noqa: E402

SHAPE = (1, 3, 64, 64)


@pytest.fixture()
def int8(tmp_path: Path) -> Path:
    """The file of the examples, in a folder of its own."""
    folder = tmp_path / "site"
    folder.mkdir()
    data = {"input": np.random.default_rng(0).normal(size=(4, *SHAPE[1:])).astype(np.float32)}
    config = QuantConfig(recipe="minmax", target="ort-web")
    onnx_hyvit.quantize(MODEL, folder / "model_int8.onnx", calibration=data, config=config)
    return folder / "model_int8.onnx"


def assert_first_values(shown: str, model: Path, image: np.ndarray) -> None:
    """The last five numbers of ``shown`` are the first ones of the model's output."""
    output = next(iter(make_session(model, threads=1, exact_sums=True).run({"input": image}).values()))
    numbers = [float(text) for text in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", shown)][:5]
    scale = np.abs(output).max()
    np.testing.assert_allclose(numbers, output.flatten()[:5], atol=0.05 * scale)


@pytest.mark.interop
def test_run_in_node(int8: Path) -> None:
    shutil.copy(EXAMPLES / "run_in_node.mjs", int8.parent)
    (int8.parent / "node_modules").symlink_to(PACKAGES.resolve())
    command = ["node", "run_in_node.mjs", int8.name, "input", ",".join(map(str, SHAPE))]
    done = subprocess.run(command, cwd=int8.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    noise = np.sin(np.arange(np.prod(SHAPE))).astype(np.float32).reshape(SHAPE)
    assert_first_values(done.stdout, int8, noise)


def http_server(folder: Path) -> AbstractContextManager[str]:
    """What ``python -m http.server`` does, on a free port."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    return listen(functools.partial(Quiet, directory=str(folder)))


@pytest.mark.interop
def test_run_in_browser(int8: Path, tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "run_in_browser.html", int8.parent)
    (int8.parent / "ort").symlink_to((PACKAGES / "onnxruntime-web" / "dist").resolve())
    script = (
        "const text = document.getElementById('result').textContent; return text.startsWith('loading') ? null : text"
    )
    with http_server(int8.parent) as address, Browser(tmp_path / "profile") as browser:
        browser.open(address + "/run_in_browser.html")
        shown = browser.wait_for(script, 300)
    assert shown.endswith(" ms"), shown
    assert_first_values(shown.partition(":")[2], int8, np.zeros(SHAPE, np.float32))


def run_example(*arguments: object) -> str:
    """What an example prints."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OLIVE_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_images(folder: Path, count: int) -> Path:
    """The first calibration images of the shipped model, as files."""
    folder.mkdir()
    with np.load(find_models() / IMAGES, allow_pickle=False) as images:
        for index, pixels in enumerate(images["calib_images"][:count]):
            Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return folder


@pytest.mark.examples
def test_from_hugging_face(tmp_path: Path) -> None:
    """With a checkpoint of random weights: there is no network in a test."""
    import torch
    from transformers import MobileViTConfig, MobileViTForImageClassification, MobileViTImageProcessor

    torch.manual_seed(0)  # with these weights a block reads next to constant inputs
    narrow = {"hidden_sizes": [48, 64, 80], "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 160]}
    config = MobileViTConfig(num_labels=10, image_size=64, **narrow)
    MobileViTForImageClassification(config).save_pretrained(tmp_path / "checkpoint")
    processor = MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})
    processor.save_pretrained(tmp_path / "checkpoint")
    images, output = write_images(tmp_path / "images", 8), tmp_path / "int8.onnx"
    shown = run_example(EXAMPLES / "from_hugging_face.py", tmp_path / "checkpoint", images, output)
    assert "nodes in int8" in shown and "x smaller" in shown
    onnx.checker.check_model(onnx.load(output), full_check=True)
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(output).graph.node)


@pytest.mark.examples
def test_olive_pass_gives_the_same_file(tmp_path: Path) -> None:
    model, preprocess = find_models() / "fashion_mobilevit_xxs.onnx", find_models() / "fashion_mobilevit_xxs.toml"
    images = write_images(tmp_path / "images", 8)
    shown = run_example(EXAMPLES / "olive_pass.py", model, images, preprocess, tmp_path / "olive")
    made = Path(shown.strip().splitlines()[-1])
    assert made.is_relative_to(tmp_path / "olive")
    onnx_hyvit.quantize(model, tmp_path / "int8.onnx", calibration=images, preprocess=preprocess)
    assert made.read_bytes() == (tmp_path / "int8.onnx").read_bytes()
