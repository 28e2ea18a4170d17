"""The flat TOML file that tells how an image becomes the input of a model."""

from __future__ import annotations

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
