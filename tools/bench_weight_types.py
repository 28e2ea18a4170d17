"""Compare weight types on x86 without VNNI: s8 of 7 bits against u8 of 8 bits, kernel by kernel and on whole models.

    python tools/bench_weight_types.py --json tools/results/weight_types.json [MODEL.onnx ...]

Sessions are a user's default ones, 1 thread, batch 1; the variants take turns and medians are shown. A chain is eight
equal layers, each between Q/DQ pairs, with random weights. A model that is named is quantized for both types with
random images, so only its speed and its error to float count, never an accuracy.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_hyvit import QuantConfig, compare, quantize
from onnx_hyvit.calibration import load_preprocess
from onnx_hyvit.demo import IMAGES, INPUT, MODEL, PREPROCESS, find_models, to_arrays
from onnx_hyvit.runtime import benchmark, make_session, sums_saturate

DEPTH = 8
TYPES = {"s8, 7 bits": (np.int8, 63, 0), "u8, 8 bits": (np.uint8, 127, 128)}
# kind, channels in and out, side of the image (or rows of a Gemm)
CHAINS = [
    ("conv 1x1", 32, 32, 64),
    ("conv 1x1", 96, 96, 32),
    ("conv 1x1", 160, 160, 16),
    ("conv 1x1", 384, 384, 8),
    ("conv 3x3", 64, 64, 32),
    ("conv 3x3", 128, 128, 16),
    ("depthwise 3x3", 64, 64, 64),
    ("depthwise 3x3", 256, 256, 32),
    ("gemm", 64, 64, 1024),
    ("gemm", 144, 144, 256),
    ("gemm", 192, 192, 64),
    ("gemm", 384, 384, 64),
]
TARGETS = {
    "s8, 7 bits": ("int8", 7),
    "u8, 8 bits": ("uint8", 8),
}


def chain(kind: str, channels: int, side: int, weights: tuple[type, int, int] | None) -> onnx.ModelProto:
    """Eight layers of one kind; float when ``weights`` is None, else Q/DQ with (dtype, largest code, zero point)."""
    generator = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    tensors: dict[str, np.ndarray] = {"s": np.float32(0.05), "z": np.uint8(128)}
    gemm, depthwise = kind == "gemm", kind.startswith("depthwise")
    taps = int(kind[-1]) if not gemm else 1
    shape = [side, channels] if gemm else [1, channels, side, side]

    def pair(name: str) -> str:
        nodes.append(helper.make_node("QuantizeLinear", [name, "s", "z"], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "s", "z"], [f"{name}_d"]))
        return f"{name}_d"

    last = pair("x") if weights else "x"
    for layer in range(DEPTH):
        size = (channels, channels) if gemm else (channels, 1 if depthwise else channels, taps, taps)
        values = (generator.standard_normal(size) / np.sqrt(np.prod(size[1:]))).astype(np.float32)
        name, bias = f"w{layer}", f"b{layer}"
        if weights:
            dtype, largest, middle = weights
            scale = np.abs(values).reshape(channels, -1).max(1) / largest
            codes = np.rint(values / scale.reshape(-1, *[1] * (values.ndim - 1))) + middle
            tensors |= {f"{name}_q": codes.astype(dtype), f"{name}_s": scale.astype(np.float32)}
            tensors |= {f"{name}_z": np.full(channels, middle, dtype)}
            tensors |= {f"{bias}_q": np.zeros(channels, np.int32), f"{bias}_s": (scale * 0.05).astype(np.float32)}
            inputs = [f"{name}_q", f"{name}_s", f"{name}_z"]
            nodes.append(helper.make_node("DequantizeLinear", inputs, [name], axis=0))
            nodes.append(helper.make_node("DequantizeLinear", [f"{bias}_q", f"{bias}_s"], [bias], axis=0))
        else:
            tensors |= {name: values, bias: np.zeros(channels, np.float32)}
        attributes: dict[str, Any] = {"transB": 1} if gemm else {"pads": [taps // 2] * 4}
        if depthwise:
            attributes["group"] = channels
        out = "y" if layer == DEPTH - 1 and not weights else f"y{layer}"
        nodes.append(helper.make_node("Gemm" if gemm else "Conv", [last, name, bias], [out], **attributes))
        last = pair(out) if weights else out
    nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def time_chains(runs: int) -> list[dict[str, Any]]:
    rows = []
    for kind, channels, _, side in CHAINS:
        sessions = {
            name: make_session(chain(kind, channels, side, weights), threads=1, exact_sums=False)
            for name, weights in {"float": None, **TYPES}.items()
        }
        feed = np.random.default_rng(1).standard_normal(sessions["float"].inputs[0].shape).astype(np.float32)
        timed = benchmark(sessions, {"x": feed}, runs=runs)
        micro = {name: round(1e3 * timing.median_ms / DEPTH, 1) for name, timing in timed.items()}
        rows.append({"layer": kind, "channels": channels, "side": side, "us_per_layer": micro})
        print(f"{kind:14} {channels:4} channels, {side:4}: " + ", ".join(f"{k} {v} us" for k, v in micro.items()))
    return rows


def quantize_both(model: Path, data: dict[str, np.ndarray], folder: Path) -> dict[str, Path]:
    paths = {}
    for index, (name, (dtype, bits)) in enumerate(TARGETS.items()):
        target = folder / f"weights{index}.toml"
        target.write_text(
            f'extends = "ort-x86"\nname = "{dtype}"\ndescription = "{name}"\n'
            f'[weight]\ndtype = "{dtype}"\nbits = {bits}\n'
        )
        paths[name] = folder / f"{model.stem}.{dtype}.onnx"
        quantize(model, paths[name], calibration=data, config=QuantConfig(target=str(target)))
    return paths


def measure_model(model: Path, calibration: np.ndarray, test: np.ndarray, labels: Any, name: str, runs: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        paths = quantize_both(model, {name: calibration}, Path(folder))
        sessions = {"float": make_session(model, threads=1)}
        sessions |= {key: make_session(path, threads=1, exact_sums=False) for key, path in paths.items()}
        timed = benchmark(sessions, {name: test[:1]}, runs=runs)
        found: dict[str, Any] = {"ms": {key: round(timing.median_ms, 2) for key, timing in timed.items()}}
        for key, path in paths.items():
            result = compare(model, path, {name: test}, labels=labels, samples=len(test), runs=1)
            output = next(iter(result["outputs"].values()))
            found[key] = {
                "agreement": result["top1_agreement"] if labels is not None else None,
                "top1": result["accuracy"]["int8_top1"] if labels is not None else None,
                "sqnr_db": round(output["sqnr_db"], 2),
            }
    print(f"{model.name}: {json.dumps(found)}")
    return {"model": model.name, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, help="models with one image input, such as the bench exports")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"saturates": sums_saturate(), "layers": time_chains(arguments.runs), "models": []}
    folder = find_models()
    with np.load(folder / IMAGES, allow_pickle=False) as images:
        preprocess = load_preprocess(folder / PREPROCESS)
        calibration, test = (to_arrays(images[key], preprocess) for key in ("calib_images", "test_images"))
        labels = images["test_labels"].astype(np.int64)
    results["models"].append(measure_model(folder / MODEL, calibration, test, labels, INPUT, arguments.runs))
    for model in arguments.models:
        info = make_session(model, optimize=False).inputs[0]
        shape = [size if isinstance(size, int) else 1 for size in info.shape]
        noise = np.random.default_rng(2).standard_normal((24, *shape[1:])).astype(np.float32)
        results["models"].append(measure_model(model, noise[:16], noise[16:], None, info.name, arguments.runs))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
