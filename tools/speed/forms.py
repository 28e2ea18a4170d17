"""The forms in which a model is measured, each made once and kept."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from zoo.machine import has_vnni

from .models import BenchModel

PEERS = Path(__file__).parent / "peers"
EXCLUDED = {"Softmax", "AveragePool"}


class FormError(Exception):
    """A tool could not make its form of a model; one line says why."""


@dataclass(frozen=True)
class Tools:
    """Interpreters of the peers' virtual environments; None leaves a peer out."""

    nncf: str | None = None
    onnxsim: str | None = None


def form_names(tools: Tools, few: bool = False) -> list[str]:
    """Names of the forms in the order of tables; ``few`` is float, the best of onnxruntime, and ours by default."""
    if few:
        return ["float", "ort_best", "hyvit_balanced"]
    names = ["float", "ort_default", "ort_best"]
    names += ["nncf"] if tools.nncf else []
    names += ["onnxsim_minmax", "onnxsim_percentile"] if tools.onnxsim else []
    return [*names, "hyvit_size", "hyvit_balanced", "hyvit_speed"]


def make_form(model: BenchModel, form: str, folder: Path, tools: Tools, anew: bool = False) -> Path:
    """Path of ``model`` as ``form``, made when it is not there yet; ours also when ``anew`` asks for it.

    Raises:
        FormError: The tool failed.
    """
    if form == "float":
        return model.path
    path = folder / f"{model.path.stem}.{form}.onnx"
    if path.exists() and not (anew and form.startswith("hyvit")):
        return path
    part = path.with_name(f"{path.name}.part")
    try:
        _maker(form, tools)(model, part, model.calibration(folder))
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "").strip().splitlines() or [f"exit code {error.returncode}"]
        raise FormError(f"{model.name} as {form}: {lines[-1][:200]}") from error
    except Exception as error:  # the peers raise whatever they like
        raise FormError(
            f"{model.name} as {form}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
    part.replace(path)
    return path


def _maker(form: str, tools: Tools) -> Callable[[BenchModel, Path, Path], None]:
    tool, _, detail = form.partition("_")
    if tool == "hyvit":
        return lambda model, path, data: _hyvit(model, path, data, detail)
    if tool == "ort":
        return _ort_default if detail == "default" else _ort_best
    script, python = str(PEERS / f"{tool}_quantize.py"), getattr(tools, tool)
    extra = [detail] if detail else []
    return lambda model, path, data: _run([python, script, str(model.path), str(path), str(data), *extra])


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def _hyvit(model: BenchModel, path: Path, data: Path, objective: str) -> None:
    from onnx_hyvit.api import quantize
    from onnx_hyvit.config import QuantConfig

    config = QuantConfig(objective=objective, verify=False, threads=2)
    quantize(model.path, path, calibration=data, config=config)


def _reader(model: BenchModel, data: Path) -> object:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            with np.load(data) as arrays:
                images = arrays[model.input]
            batch = model.shape[0]
            self.feeds: Iterator[dict[str, np.ndarray]] = (
                {model.input: images[start : start + batch]} for start in range(0, len(images), batch)
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    return Reader()


def _ort_default(model: BenchModel, path: Path, data: Path) -> None:
    from onnxruntime.quantization import quantize_static

    logging.disable(logging.WARNING)
    quantize_static(str(model.path), str(path), _reader(model, data))


def _ort_best(model: BenchModel, path: Path, data: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.registry import QDQRegistry
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.disable(logging.WARNING)
    prepared = path.with_name(f"{path.name}.prepared.onnx")
    quant_pre_process(str(model.path), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(path),
        _reader(model, data),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=not has_vnni(),
        op_types_to_quantize=sorted(set(QDQRegistry) - EXCLUDED),
    )
    prepared.unlink()
