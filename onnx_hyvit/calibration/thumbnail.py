"""A small picture of what a model was fed, for reports."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from .preprocess import Preprocess
from .sources import ImageSource, Source

LONGEST = (192, 128)  # width and height in pixels
_CHANNELS = (1, 3, 4)


def thumbnail(values: np.ndarray, source: Source | None = None) -> bytes | None:
    """A PNG of one sample.

    Args:
        values: [C, H, W] or [H, W, C], as the model takes it.
        source: Where it came from; of images the preprocessing is undone, other arrays are stretched from their
            smallest to their largest value.

    Returns:
        The file; None when the array is no image. The same array gives the same bytes.
    """
    if values.ndim != 3 or 0 in values.shape or not np.isfinite(values).all():
        return None
    preprocess = source.preprocess if isinstance(source, ImageSource) else None
    rows = _channels_last(values.astype(np.float64), preprocess)
    if rows is None:
        return None
    pixels = _undone(rows, preprocess) if preprocess else _stretched(rows)
    image = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8).squeeze())
    factor = min(LONGEST[0] / image.width, LONGEST[1] / image.height)
    if factor < 1:
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        image = image.resize(size, Image.Resampling.BOX)
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _channels_last(values: np.ndarray, preprocess: Preprocess | None) -> np.ndarray | None:
    """[H, W, 1 or 3]; None when no axis can hold colours."""
    layout = preprocess.layout if preprocess else None
    if layout != "NHWC" and (layout == "NCHW" or values.shape[0] in _CHANNELS):
        values = values.transpose(1, 2, 0)
    return values[:, :, :3] if values.shape[2] in _CHANNELS else None


def _undone(values: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    pixels = (values * np.asarray(preprocess.std) + np.asarray(preprocess.mean)) / preprocess.scale
    return pixels[:, :, ::-1] if preprocess.channel_order == "BGR" else pixels


def _stretched(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return (values - low) * (255 / (high - low) if high > low else 0.0)
