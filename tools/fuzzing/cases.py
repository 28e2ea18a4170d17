"""The cases: for each kind, the damaged file, the sound ones around it, and the command to run on them."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .graphs import damage_model
from .raw import damage_bytes, damage_text

CORPUS = Path(__file__).resolve().parents[2] / "tests" / "corpus"
QUICK = "repvgg.torchscript-17.onnx"
KINDS = (
    "graph",
    "graph-default",
    "bytes",
    "image",
    "npz",
    "config",
    "target",
    "preprocess",
    "preprocess-json",
    "labels",
)

CONFIG = """recipe = "minmax"
bits = "w8a8"
target = "ort-x86"
samples = 2
seed = 0
batch_size = 2
threads = 1
opset = 20
residual = "auto"
activation_type = "uint8"
activation_symmetric = false
per_channel = true
float_nodes = []
rewrite_layout = true
verify = false
"""
PREPROCESS = """preset = "imagenet"
size = [64, 64]
resize = "bicubic"
resize_size = 72
crop = "center"
crop_pct = 0.9
keep_ratio = true
pad = "none"
pad_value = 0.0
min_width = 1
channel_order = "RGB"
scale = 0.00392
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
layout = "NCHW"
"""
JSONS = (
    {
        "architecture": "mobilevit_s",
        "num_classes": 1000,
        "pretrained_cfg": {
            "input_size": [3, 64, 64],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "crop_mode": "center",
            "mean": [0.0, 0.0, 0.0],
            "std": [1.0, 1.0, 1.0],
        },
    },
    {
        "image_processor_type": "MobileViTImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 72},
        "do_center_crop": True,
        "crop_size": {"height": 64, "width": 64},
        "do_rescale": True,
        "rescale_factor": 0.00392156862745098,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_flip_channel_order": True,
        "resample": 2,
    },
)
TARGET = """name = "mine"
description = "a target of my own"
extends = "ort-x86"
[activation]
dtype = "uint8"
scheme = "asymmetric"
bits = 8
[weight]
dtype = "int8"
scheme = "symmetric"
granularity = "per_channel"
[int8]
Conv = { min_channels = 16, depthwise = true }
Gemm = true
Sigmoid = false
[float]
Softmax = "slow"
[options]
residual = "int8"
opsets = [13, 23]
"""


@dataclass(frozen=True)
class Case:
    """One case: it is made again from these three values."""

    kind: str
    seed: int
    index: int

    @property
    def generator(self) -> np.random.Generator:
        """The source of all its random choices."""
        return np.random.default_rng([self.seed, zlib.crc32(self.kind.encode()), self.index])


def write_case(case: Case, folder: Path) -> list[str]:
    """Write the files of ``case`` into ``folder``; the output goes to its empty folder ``out``.

    Returns:
        The arguments of the command line, without the program.
    """
    rng = case.generator
    (folder / "out").mkdir()
    if case.kind in ("graph", "graph-default", "bytes"):
        return _model_case(case, folder, rng)
    model = CORPUS / QUICK
    data = _sound_npz(folder, QUICK)
    extra: list[str] = ["--samples", "2"]
    if case.kind == "image":
        data = _images(folder, rng)
        extra += ["--preprocess", str(rng.choice(["imagenet", "unit", "raw"]))]
        extra += ["--skip-unreadable"] * int(rng.integers(2))
    elif case.kind == "npz":
        _damage_npz(data, rng)
    elif case.kind == "config":
        extra = ["--config", _text(folder / "config.toml", CONFIG, rng)]
    elif case.kind == "target":
        extra += ["--target", _text(folder / "target.toml", TARGET, rng)]
    elif case.kind.startswith("preprocess"):
        data = _images(folder, None)
        text, suffix = (PREPROCESS, "toml")
        if case.kind.endswith("json"):
            text, suffix = json.dumps(JSONS[int(rng.integers(len(JSONS)))], indent=1), "json"
        extra += ["--preprocess", _text(folder / f"preprocess.{suffix}", text, rng)]
    elif case.kind == "labels":
        form, text = (("txt", "0\n1\n"), ("csv", "file,label\n0.png,0\n1.png,1\n"))[int(rng.integers(2))]
        labels = _text(folder / f"labels.{form}", text, rng)
        data = _images(folder, None) if form == "csv" else data
        return ["compare", *[str(model)] * 2, "--data", str(data), "--labels", labels, "--runs", "1"]
    return _quantize(model, data, folder, *extra)


def _quantize(model: Path, data: Path, folder: Path, *extra: str) -> list[str]:
    quick = ["--recipe", "minmax", "--no-verify", "--threads", "1"] if "--config" not in extra else []
    return ["quantize", str(model), "-o", str(folder / "out" / "int8.onnx"), "--calib", str(data), *quick, *extra]


def _model_case(case: Case, folder: Path, rng: np.random.Generator) -> list[str]:
    files = sorted(CORPUS.glob("*.onnx")) + sorted((CORPUS / "edge").glob("*.onnx")) * 3
    source = files[int(rng.integers(len(files)))]
    data = source.read_bytes()
    model = folder / "model.onnx"
    model.write_bytes(damage_bytes(data, rng) if case.kind == "bytes" else damage_model(data, rng))
    default = case.kind == "graph-default"  # with the default recipe, the slowest and the one with most code
    if not default and rng.random() < 0.1:
        return ["inspect", str(model)]
    calib = _npz_for(folder, model)
    if default or rng.random() < 0.3:
        output = str(folder / "out" / "int8.onnx")
        return ["quantize", str(model), "-o", output, "--calib", str(calib), "--samples", "2", "--threads", "1"]
    return _quantize(model, calib, folder, "--samples", "2")


def _sound_npz(folder: Path, model: str) -> Path:
    return _npz_for(folder, CORPUS / model)


def _npz_for(folder: Path, model: Path) -> Path:
    """Noise for the inputs that ``model`` declares, as far as they can be understood."""
    import onnx

    path = folder / "calib.npz"
    rng = np.random.default_rng(0)
    arrays = {}
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(model.read_bytes())
    except Exception:  # damaged beyond parsing: any data will do
        proto.Clear()
    constants = {tensor.name for tensor in proto.graph.initializer}
    for value in proto.graph.input:
        kind = value.type.tensor_type
        sizes = [dim.dim_value if dim.HasField("dim_value") else 64 for dim in kind.shape.dim]
        sizes = [2 if axis == 0 else size for axis, size in enumerate(sizes)]
        if value.name in constants or any(size < 0 for size in sizes) or np.prod(sizes, dtype=float) > 1e6:
            continue
        try:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            arrays[value.name] = rng.standard_normal(sizes).astype(dtype)
        except Exception:  # no such type
            arrays[value.name] = rng.standard_normal(sizes).astype(np.float32)
    arrays = {name: value for name, value in arrays.items() if is_file_name(name)}
    np.savez(path, **{name[:100]: value for name, value in (arrays or {"x": np.zeros((2, 3), "f")}).items()})
    return path


def is_file_name(name: object) -> bool:
    """Whether an input's name can be a member of an .npz; damaged names are bytes, empty, or paths."""
    return isinstance(name, str) and bool(name) and not set(name) & set("\0/")


def _damage_npz(path: Path, rng: np.random.Generator) -> None:
    """Damage the archive, or a member inside a sound archive (whose checksums would hide it otherwise)."""
    if rng.random() < 0.4:
        path.write_bytes(damage_bytes(path.read_bytes(), rng))
        return
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    form = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[int(rng.integers(2))]
    with zipfile.ZipFile(path, "w", form) as archive:
        for name, data in members.items():
            header = int(rng.random() < 0.6) * 128 or len(data)
            data = damage_bytes(data[:header], rng) + data[header:]
            names = (name, name, name, "../" + name, "/" + name, name * 60, "a\n.npy", "\x1b[31m.npy", "plain")
            archive.writestr(names[int(rng.integers(len(names)))], data)


def _images(folder: Path, rng: np.random.Generator | None) -> Path:
    """Two pictures, the first of them damaged when ``rng`` is given."""
    images = folder / "images"
    images.mkdir(exist_ok=True)
    pixels = np.random.default_rng(1)
    forms = ("png", "jpg", "webp", "bmp", "png16", "gif")
    for index in range(2):
        form = forms[int(rng.integers(len(forms)))] if rng else "png"
        picture = Image.fromarray(pixels.integers(0, 256, (70, 90, 3), np.uint8))
        if form == "png16":
            picture = Image.fromarray(pixels.integers(0, 65535, (70, 90), np.uint16))
        stream = io.BytesIO()
        picture.save(stream, {"jpg": "JPEG", "png16": "PNG"}.get(form, form.upper()))
        data = stream.getvalue()
        name = f"{index}.{'png' if form in ('png16', 'gif') else form}"
        (images / name).write_bytes(damage_bytes(data, rng) if rng and not index else data)
    return images


def _text(path: Path, text: str, rng: np.random.Generator) -> str:
    path.write_bytes(damage_text(text, rng))
    return str(path)
