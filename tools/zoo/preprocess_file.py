"""The flat TOML file that tells how an image becomes the input of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEYS = ("size", "resize", "resize_size", "crop", "channel_order", "scale", "mean", "std", "layout")


def write_preprocess_file(path: Path, values: Mapping[str, Any], comment: str) -> None:
    """Write `values` (some of `KEYS`: strings, numbers, lists of numbers) as flat TOML.

    Raises:
        ValueError: if a key is unknown or a value has no TOML form here.
    """
    if unknown := sorted(set(values) - set(KEYS)):
        raise ValueError(f"unknown preprocessing keys: {', '.join(unknown)}")
    lines = [f"# {comment}", *(f"{key} = {_literal(values[key])}" for key in KEYS if key in values)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def from_timm(config: Mapping[str, Any]) -> dict[str, Any]:
    """Preprocessing keys from what `timm.data.resolve_data_config` returns.

    timm resizes the shorter side to floor(size / crop_pct), then crops the middle; with crop mode
    "squash" it resizes without keeping the ratio.
    """
    _, height, width = config["input_size"]
    before = [math.floor(side / config["crop_pct"]) for side in (height, width)]
    squash = config.get("crop_mode") == "squash"
    return {
        "size": [height, width],
        "resize": "bicubic" if config["interpolation"] == "random" else config["interpolation"],
        "resize_size": before if squash or height != width else before[0],
        "crop": "center",
        "channel_order": "RGB",
        "scale": 1 / 255,
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "layout": "NCHW",
    }


RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def from_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Preprocessing keys from the dictionary of an image processor (`preprocessor_config.json`).

    Raises:
        ValueError: if the size of the result is not told.
    """
    resized, cropped = _sides(config.get("size")), _sides(config.get("crop_size"))
    crop = bool(config.get("do_center_crop")) and cropped is not None
    size = cropped if crop else resized
    if size is None:
        raise ValueError("the image processor tells no size")
    if isinstance(size, int):
        size = [size, size]
    normalise = bool(config.get("do_normalize", False))
    keys: dict[str, Any] = {"size": size, "resize": RESAMPLE[int(config.get("resample") or 2)]}
    if crop and resized is not None:
        keys["resize_size"] = resized
    keys |= {
        "crop": "center" if crop else "none",
        "channel_order": "BGR" if config.get("do_flip_channel_order") else "RGB",
        "scale": float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
        "mean": list(config["image_mean"]) if normalise else [0.0, 0.0, 0.0],
        "std": list(config["image_std"]) if normalise else [1.0, 1.0, 1.0],
        "layout": "NCHW",
    }
    return keys


def _sides(size: Any) -> int | list[int] | None:
    """Shorter side, or [height, width], from the forms in which processors write a size."""
    if size is None or isinstance(size, int):
        return size
    if "shortest_edge" in size:
        return int(size["shortest_edge"])
    return [int(size["height"]), int(size["width"])]


def _literal(value: Any) -> str:
    if isinstance(value, str):
        if '"' in value or "\\" in value:
            raise ValueError(f"no plain string: {value!r}")
        return f'"{value}"'
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_literal(v) for v in value)}]"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return repr(value)
    raise ValueError(f"no TOML form for {value!r}")
