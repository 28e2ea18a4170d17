"""One function per runtime: model file and images in, outputs and times out."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnx_hyvit.demo import INPUT
from onnx_hyvit.runtime import make_session

from .browser import Browser, find_programs
from .errors import FailedRuntimeError, MissingRuntimeError
from .models import SHAPE
from .serving import serve

ROOT = Path(__file__).parent.parent.parent
PACKAGES = Path(os.environ.get("INTEROP_PACKAGES", ROOT / "build" / "interop")) / "node_modules"
NPM = "npm install --ignore-scripts --prefix build/interop onnxruntime-node onnxruntime-web"
_SECONDS = 900


@dataclass(frozen=True)
class Outcome:
    """What a runtime answered: outputs float [n, classes], milliseconds to load and to run one image (median)."""

    outputs: np.ndarray
    load_ms: float
    run_ms: float


def run_python(model: Path, images: np.ndarray, exact_sums: bool = False) -> Outcome:
    """Onnxruntime's Python package, one thread; by default the session that a user gets."""
    start = time.perf_counter()
    session = make_session(model, threads=1, exact_sums=exact_sums)
    load = 1e3 * (time.perf_counter() - start)
    return _timed(lambda image: next(iter(session.run({INPUT: image}).values())), images, load)


def run_openvino(model: Path, images: np.ndarray) -> Outcome:
    """OpenVINO's CPU plugin, one thread, float parts in float32."""
    try:
        import openvino
    except ImportError as error:
        raise MissingRuntimeError("openvino is missing: pip install openvino") from error
    start = time.perf_counter()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(str(model), "CPU", settings)
    load = 1e3 * (time.perf_counter() - start)
    return _timed(lambda image: next(iter(compiled([image]).values())), images, load)


def run_reference(model: Path, images: np.ndarray) -> Outcome:
    """onnx.reference: the operators as the standard defines them, in numpy."""
    from onnx.reference import ReferenceEvaluator

    start = time.perf_counter()
    evaluator = ReferenceEvaluator(str(model))
    load = 1e3 * (time.perf_counter() - start)
    return _timed(lambda image: evaluator.run(None, {INPUT: image})[0], images, load)


def _timed(run: Callable[[np.ndarray], np.ndarray], images: np.ndarray, load_ms: float) -> Outcome:
    outputs, times = [], []
    for image in images:
        start = time.perf_counter()
        outputs.append(np.asarray(run(image[None]))[0])
        times.append(1e3 * (time.perf_counter() - start))
    return Outcome(np.stack(outputs), load_ms, statistics.median(times))


def run_node(model: Path, images: np.ndarray) -> Outcome:
    """onnxruntime-node, one thread."""
    return _run_script("onnxruntime-node", model, images)


def run_web_in_node(model: Path, images: np.ndarray) -> Outcome:
    """onnxruntime-web's wasm backend in node, one thread."""
    return _run_script("onnxruntime-web", model, images)


def _run_script(package: str, model: Path, images: np.ndarray) -> Outcome:
    _need_package(package)
    node = shutil.which("node")
    if node is None:
        raise MissingRuntimeError("node is missing: apt-get install nodejs npm")
    inputs = _write_inputs(model, images)
    script = Path(__file__).with_name("run_node.cjs")
    shape = ",".join(map(str, SHAPE))
    command = [node, str(script), package, str(model), str(inputs), shape, INPUT]
    environment = {**os.environ, "NODE_PATH": str(PACKAGES)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_SECONDS)
    lines = done.stdout.strip().splitlines()
    if not lines:
        raise FailedRuntimeError(f"{package}: {done.stderr.strip()[-300:] or done.returncode}")
    return _outcome(package, json.loads(lines[-1]))


def run_web_in_chromium(model: Path, images: np.ndarray) -> Outcome:
    """onnxruntime-web's wasm backend in a page of headless Chromium, one thread."""
    _need_package("onnxruntime-web")
    find_programs()
    inputs = _write_inputs(model, images)
    places = {
        "/page.html": Path(__file__).with_name("page.html"),
        "/ort": PACKAGES / "onnxruntime-web" / "dist",
        "/files/inputs.f32": inputs,
        f"/files/{model.name}": model,
    }
    shape = ",".join(map(str, SHAPE))
    page = f"/page.html?model={model.name}&name={INPUT}&shape={shape}"
    with serve(places) as address, tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as browser:
        browser.open(address + page)
        return _outcome("onnxruntime-web in Chromium", browser.wait_for("return window.outcome", _SECONDS))


def _need_package(package: str) -> None:
    if not (PACKAGES / package).is_dir():
        raise MissingRuntimeError(f"{package} is missing: {NPM}")


def _write_inputs(model: Path, images: np.ndarray) -> Path:
    path = model.with_name("inputs.f32")
    images.astype("<f4").tofile(path)
    return path


def _outcome(name: str, answer: dict) -> Outcome:
    if "error" in answer:
        raise FailedRuntimeError(f"{name}: {answer['error']}")
    return Outcome(np.array(answer["outputs"], np.float32), answer["load_ms"], answer["run_ms"])


@dataclass(frozen=True)
class Runtime:
    """A runtime of the comparison.

    Args:
        name: Its name in tables.
        target: The target of onnx_hyvit that is meant for it.
        formats: Model formats that it reads.
        run: The function that runs it.
        samples: Images to run: fewer where it is slow.
        agreement: Least share of equal top-1 answers that the tests accept; below 1 where it rounds in its own way.
    """

    name: str
    target: str
    formats: tuple[str, ...]
    run: Callable[[Path, np.ndarray], Outcome]
    samples: int = 100
    agreement: float = 1.0


RUNTIMES = (
    Runtime("onnxruntime (Python)", "ort-x86-avx2", ("onnx", "ort"), run_python),
    Runtime("onnxruntime-node", "ort-x86-avx2", ("onnx", "ort"), run_node),
    Runtime("onnxruntime-web in node", "ort-web", ("onnx", "ort"), run_web_in_node),
    Runtime("onnxruntime-web in Chromium", "ort-web", ("onnx", "ort"), run_web_in_chromium),
    Runtime("OpenVINO", "openvino", ("onnx",), run_openvino, agreement=0.95),
    Runtime("onnx.reference", "generic", ("onnx",), run_reference, samples=10, agreement=0.9),
)
