"""Named preprocessing, and the files in which others write it down."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..checked import read_text, read_toml
from ..errors import ConfigError
from .preprocess import RESIZE, Preprocess

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

PRESETS: dict[str, Preprocess] = {
    "imagenet": Preprocess(crop_pct=0.875, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    "timm-mobilevit": Preprocess(resize="bicubic", crop_pct=0.9),
    "hf-mobilevit": Preprocess(crop_pct=256 / 288, channel_order="BGR"),
    "unit": Preprocess(crop="none", keep_ratio=False),
    "signed": Preprocess(crop="none", keep_ratio=False, mean=(0.5,), std=(0.5,)),
    "inception": Preprocess(resize="bicubic", crop_pct=0.875, mean=(0.5,), std=(0.5,)),
    "openai-clip": Preprocess(resize="bicubic", mean=CLIP_MEAN, std=CLIP_STD),
    "raw": Preprocess(crop="none", keep_ratio=False, scale=1.0),
    "ppocr-rec": Preprocess(
        size=(48, None),
        crop="none",
        pad="right",
        pad_value=127.5,
        min_width=320,
        channel_order="BGR",
        scale=1 / 127.5,
        mean=(1.0,),
    ),
}
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def load_preprocess(name_or_path: str | os.PathLike[str]) -> Preprocess:
    """A preset by name, or preprocessing from a file.

    Args:
        name_or_path: A name in ``PRESETS``; a ``.toml`` with the fields of ``Preprocess`` as flat keys (and
            ``preset`` to start from one); or a ``.json`` as timm (``config.json``) or transformers
            (``preprocessor_config.json``) write it.

    Raises:
        ConfigError: Unknown name, missing or malformed file, unknown key, or a value out of range.
    """
    if isinstance(name_or_path, str) and name_or_path in PRESETS:
        return PRESETS[name_or_path]
    path = Path(name_or_path)
    if not path.is_file():
        known = ", ".join(PRESETS)
        raise ConfigError(f"{os.fspath(name_or_path)}: no such preset or file; the presets are {known}")
    data = _read_json(path) if path.suffix.lower() == ".json" else read_toml(path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a table of settings, found {type(data).__name__}")
    try:
        return _from_mapping(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise ConfigError(f"{path}: malformed preprocessing ({type(error).__name__}: {error})") from error


def _read_json(path: Path) -> Any:
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a JSON file ({error})") from error


def _from_mapping(data: Mapping[str, Any]) -> Preprocess:
    if "pretrained_cfg" in data or {"input_size", "interpolation"} <= data.keys():
        return _from_timm(data.get("pretrained_cfg", data))
    if isinstance(data.get("image_processor"), Mapping):  # processor_config.json of transformers
        return _from_transformers(data["image_processor"])
    if any(key in data for key in ("image_mean", "do_resize", "do_rescale", "image_processor_type")):
        return _from_transformers(data)
    return _from_flat(data)


def _from_flat(data: Mapping[str, Any]) -> Preprocess:
    settings = dict(data)
    preset = settings.pop("preset", None)
    known = [field.name for field in fields(Preprocess)]
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise ConfigError(f"unknown key {unknown[0]!r}; the keys are preset, {', '.join(known)}")
    if preset is None:
        return Preprocess(**settings)
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}; the presets are {', '.join(PRESETS)}")
    base = {field: getattr(PRESETS[preset], field) for field in known}
    return Preprocess(**{**base, **settings})


def _from_timm(cfg: Mapping[str, Any]) -> Preprocess:
    """What timm calls ``pretrained_cfg``: crop_mode center (default), squash, or border (pads)."""
    _, height, width = cfg["input_size"]
    mode = cfg.get("crop_mode") or "center"
    if mode not in ("center", "squash", "border"):
        raise ConfigError(f"crop_mode {mode!r} is not known")
    return Preprocess(
        size=None if cfg.get("fixed_input_size") is False else (height, width),
        resize=cfg.get("interpolation") or "bilinear",
        crop_pct=float(cfg.get("crop_pct") or 0.875),
        keep_ratio=mode != "squash",
        pad="center" if mode == "border" else "none",
        mean=tuple(cfg.get("mean") or IMAGENET_MEAN),
        std=tuple(cfg.get("std") or IMAGENET_STD),
    )


def _from_transformers(cfg: Mapping[str, Any]) -> Preprocess:
    """An image processor of transformers: resize, crop, rescale, normalise and channel flip, each optional."""
    kind = str(cfg.get("image_processor_type") or cfg.get("feature_extractor_type") or "")
    short, exact = _hf_size(cfg.get("size", 224)) if cfg.get("do_resize", True) else (None, None)
    crop = _hf_size(cfg["crop_size"]) if cfg.get("do_center_crop") and "crop_size" in cfg else (None, None)
    target = crop[1] or ((crop[0], crop[0]) if crop[0] else exact or ((short, short) if short else None))
    if short and kind.startswith("Levit"):
        short = int(256 / 224 * short)
    elif short and kind.startswith("ConvNext") and short < 384:
        short = int(short / float(cfg.get("crop_pct") or 0.875))
    normalize = cfg.get("do_normalize", "image_mean" in cfg)
    resample = cfg.get("resample", 2)
    return Preprocess(
        size=target,
        resize=_RESAMPLE[resample] if not isinstance(resample, str) else _known_filter(resample),
        resize_size=short or exact,
        crop="center" if short or crop != (None, None) else "none",
        keep_ratio=short is not None,
        channel_order="BGR" if cfg.get("do_flip_channel_order") else "RGB",
        scale=float(cfg.get("rescale_factor") or 1 / 255) if cfg.get("do_rescale", True) else 1.0,
        mean=tuple(cfg["image_mean"]) if normalize else (0.0,),
        std=tuple(cfg["image_std"]) if normalize else (1.0,),
    )


def _hf_size(size: Any) -> tuple[int | None, tuple[int, int] | None]:
    """(shortest edge, None) or (None, (height, width)) from the forms that transformers has had."""
    if isinstance(size, Mapping):
        if "shortest_edge" in size:
            return int(size["shortest_edge"]), None
        return None, (int(size["height"]), int(size["width"]))
    if isinstance(size, (list, tuple)):
        return None, (int(size[0]), int(size[1]))
    return int(size), None


def _known_filter(name: str) -> str:
    if name.lower() not in RESIZE:
        raise ConfigError(f"resample {name!r} is not known")
    return name.lower()
