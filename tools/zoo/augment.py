"""Augmentation and normalisation of whole batches, without a Python loop over images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional


def crop_and_flip(pixels: np.ndarray, pad: int, rng: np.random.Generator) -> np.ndarray:
    """Shift each image by up to `pad` pixels (edges reflected) and mirror half of them.

    Args:
        pixels: uint8 [n, h, w, 3].
        pad: largest shift, in pixels of the original image.
        rng: source of all randomness.

    Returns:
        uint8 [n, h, w, 3], a copy.
    """
    n, height, width, _ = pixels.shape
    rows = _reflect(np.arange(height) + rng.integers(-pad, pad + 1, (n, 1)), height)
    columns = _reflect(np.arange(width) + rng.integers(-pad, pad + 1, (n, 1)), width)
    mirrored = rng.random(n) < 0.5
    columns[mirrored] = columns[mirrored, ::-1]
    return pixels[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _reflect(index: np.ndarray, size: int) -> np.ndarray:
    """Fold indices outside 0..size-1 back in, without repeating the edge."""
    return (size - 1) - np.abs((size - 1) - np.abs(index))


def to_batch(pixels: np.ndarray, side: int, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Normalise and resize (bilinear) on the batch.

    Args:
        pixels: uint8 [n, h, w, 3].
        side: output size in pixels.
        mean: per channel, 0..1 scale.
        std: per channel, 0..1 scale.

    Returns:
        float32 [n, 3, side, side] in channels-last memory order.
    """
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    shift = torch.tensor(mean).view(1, 3, 1, 1) * 255
    scale = torch.tensor(std).view(1, 3, 1, 1) * 255
    batch = (batch - shift) / scale
    if pixels.shape[1:3] != (side, side):
        batch = functional.interpolate(batch, size=(side, side), mode="bilinear", align_corners=False)
    return batch.contiguous(memory_format=torch.channels_last)
