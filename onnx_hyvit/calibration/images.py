"""Finding and decoding image files."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import CalibrationError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB")
MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a gigabyte as RGB


def find_images(folder: Path) -> list[Path]:
    """Image files below ``folder``, sorted by their path; hidden files and folders are left out.

    Raises:
        CalibrationError: There are none.
    """
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in names if Path(name).suffix.lower() in SUFFIXES and name[0] != "."]
    if not found:
        kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise CalibrationError(f"{folder}: no images in the folder or below it (looked for {kinds})")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image, upright, in mode RGB or L.

    Orientation from EXIF is applied, palettes are looked up, transparency is dropped (as ``convert("RGB")`` of the
    training pipelines does), 16-bit samples are scaled to 8 bits.

    Args:
        path: The file; its contents decide the format, not its suffix.
        max_pixels: Refuse larger images before they are decoded.

    Raises:
        CalibrationError: Unreadable, truncated, or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise CalibrationError(
                        f"{path}: {image.width}x{image.height} is more than {max_pixels} pixels (a decompression bomb?)"
                    )
                image.load()
                return _plain(image)
    except CalibrationError:
        raise
    except Image.DecompressionBombError as error:
        raise CalibrationError(f"{path}: more than {max_pixels} pixels (a decompression bomb?)") from error
    except FileNotFoundError as error:
        raise CalibrationError(f"{path}: no such file") from error
    except Exception as error:  # decoders raise nearly anything on damaged data
        reason = "not a JPEG, PNG, WebP or BMP" if isinstance(error, Image.UnidentifiedImageError) else error
        raise CalibrationError(f"{path}: unreadable image ({' '.join(str(reason).split())})") from error


def _plain(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        pixels = np.asarray(image, np.float64)
        scale = 257.0 if pixels.max(initial=0) > 255 or image.mode.startswith("I;16") else 1.0
        return Image.fromarray(np.clip(np.rint(pixels / scale), 0, 255).astype(np.uint8))
    if image.mode in ("1", "L", "LA", "La"):
        return image.convert("L")
    return image.convert("RGB")
