"""From a picture to the array that a model takes: resize, crop or pad, scale, normalise, lay out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from PIL import Image

from ..checked import check_field_types
from ..errors import CalibrationError, ConfigError
from .images import MAX_PIXELS
from .inputs import InputInfo

RESIZE: dict[str, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
CHANNELS = {"RGB": 3, "BGR": 3, "GRAY": 1}
MAX_SIDE = 16384


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes an input: ``(pixel * scale - mean) / std``, channel by channel.

    Args:
        size: Height and width of the result; None follows the model; a None width keeps the ratio of each image.
        resize: Filter: nearest, box, bilinear, hamming, bicubic or lanczos, antialiased as Pillow does it.
        resize_size: Length of the shorter side before the crop, or (height, width); None is ``size / crop_pct``.
        crop: ``center``, or ``none`` to resize to ``size`` exactly.
        crop_pct: Part of the resized image that the crop keeps, above 0 and at most 1.
        keep_ratio: Resize without distortion.
        pad: ``right`` (and below) or ``center``: fit the image inside ``size`` and fill the rest; ``none`` crops.
        pad_value: Fill, in pixel values 0 to 255.
        min_width: Least width when the width is free; the rest is padded.
        channel_order: RGB, BGR or GRAY.
        scale: Factor of the pixel values 0 to 255.
        mean: Subtracted after scaling, one number or one per channel.
        std: Divided by after that, positive.
        layout: NCHW or NHWC; None follows the model.
    """

    size: tuple[int, int | None] | None = None
    resize: str = "bilinear"
    resize_size: int | tuple[int, int] | None = None
    crop: Literal["center", "none"] = "center"
    crop_pct: float = 1.0
    keep_ratio: bool = True
    pad: Literal["none", "right", "center"] = "none"
    pad_value: float = 0.0
    min_width: int = 1
    channel_order: str = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["NCHW", "NHWC"] | None = None

    def __post_init__(self) -> None:
        _normalise_fields(self)
        _one_of("resize", self.resize, RESIZE)
        _one_of("crop", self.crop, ("center", "none"))
        _one_of("pad", self.pad, ("none", "right", "center"))
        _one_of("channel_order", self.channel_order, CHANNELS)
        if self.layout is not None:
            _one_of("layout", self.layout, ("NCHW", "NHWC"))
        if not 0 < self.crop_pct <= 1:
            raise ConfigError(f"crop_pct must be above 0 and at most 1, found {self.crop_pct}")
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ConfigError(f"scale must be positive, found {self.scale}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, CHANNELS[self.channel_order]):
                raise ConfigError(f"{name} must have 1 or {CHANNELS[self.channel_order]} numbers, found {len(values)}")
        if not all(value > 0 and math.isfinite(value) for value in self.std):
            raise ConfigError(f"std must be positive, found {list(self.std)}")
        if not all(math.isfinite(value) for value in (*self.mean, self.pad_value)):
            raise ConfigError(f"mean and pad_value must be finite, found {list(self.mean)} and {self.pad_value}")
        check_field_types(self)
        if not 1 <= self.min_width <= MAX_SIDE:
            raise ConfigError(f"min_width must be 1 to {MAX_SIDE}, found {self.min_width}")
        if self.size is not None and self.size[1] is None and self.pad != "right":
            raise ConfigError("a free width keeps the ratio and needs pad = 'right'")

    def resolve(self, info: InputInfo) -> Preprocess:
        """Fill ``size`` and ``layout`` in from the model's input.

        Raises:
            CalibrationError: The input is not an image, or contradicts what is set here.
        """
        if len(info.shape) != 4:
            raise CalibrationError(f"input {info.name!r} has shape {info.text}: images need 4 dimensions; pass arrays")
        channels = CHANNELS[self.channel_order]
        layout = self.layout or _layout_of(info, channels)
        axes = (1, 2, 3) if layout == "NCHW" else (3, 1, 2)
        wanted_channels, height, width = (info.shape[axis] for axis in axes)
        if isinstance(wanted_channels, int) and wanted_channels != channels:
            raise CalibrationError(
                f"input {info.name!r} ({info.text}) takes {wanted_channels} channels in {layout} layout, but "
                f"channel_order {self.channel_order} makes {channels}"
            )
        return replace(self, layout=layout, size=self._size_for(info, height, width))

    def _size_for(self, info: InputInfo, height: int | str | None, width: int | str | None) -> tuple[int, int | None]:
        fixed = (height if isinstance(height, int) else None, width if isinstance(width, int) else None)
        if self.size is None:
            if fixed[0] is None or fixed[1] is None:
                raise CalibrationError(
                    f"input {info.name!r} ({info.text}) has no fixed size: set size in the preprocess file"
                )
            return (fixed[0], fixed[1])
        for found, want in zip(fixed, self.size, strict=True):
            if found is not None and want is not None and found != want:
                made = f"{self.size[0]}x{self.size[1] or '?'}"
                raise CalibrationError(
                    f"the preprocess size is {made}, but input {info.name!r} is {info.text}; leave size out to follow "
                    "the model"
                )
        return (self.size[0], fixed[1] if fixed[1] is not None else self.size[1])

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Preprocess one image, in mode RGB or L; ``resolve`` must have filled in ``size``.

        Returns:
            float32 [C, H, W] or [H, W, C].
        """
        assert self.size is not None, "call resolve first"
        gray = self.channel_order == "GRAY"
        if image.mode != ("L" if gray else "RGB"):
            image = image.convert("L" if gray else "RGB")
        pixels = self._pixels(image)
        if self.channel_order == "BGR":
            pixels = pixels[:, :, ::-1]
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        values = (pixels * np.float32(self.scale) - mean) / std
        return np.ascontiguousarray(values if self.layout == "NHWC" else values.transpose(2, 0, 1), np.float32)

    def _pixels(self, image: Image.Image) -> np.ndarray:
        """Resized and cropped or padded pixels, float32 [H, W, C] from 0 to 255."""
        assert self.size is not None
        height, width = self.size
        if self.pad != "none":
            return self._padded(image, height, width)
        assert width is not None
        image = _resize(image, self._resized(image, height, width), self.resize)
        return _as_pixels(_crop_center(image, height, width))

    def _resized(self, image: Image.Image, height: int, width: int) -> tuple[int, int]:
        """Width and height after the resize, before the crop."""
        if isinstance(self.resize_size, tuple):
            return self.resize_size[1], self.resize_size[0]
        if self.crop == "none" or not self.keep_ratio:
            return (width, height) if self.crop == "none" else (self._before_crop(width), self._before_crop(height))
        if self.resize_size is not None:
            short: float = self.resize_size
        elif height == width:
            short = self._before_crop(height)
        else:  # the smallest image that the crop fits into
            ratio = max(self._before_crop(height) / image.height, self._before_crop(width) / image.width)
            return math.ceil(image.width * ratio - 1e-6), math.ceil(image.height * ratio - 1e-6)
        if image.width <= image.height:
            return int(short), max(1, int(short * image.height / image.width))
        return max(1, int(short * image.width / image.height)), int(short)

    def _before_crop(self, size: int) -> int:
        return math.floor(size / self.crop_pct)

    def _padded(self, image: Image.Image, height: int, width: int | None) -> np.ndarray:
        if width is None:
            ratio = height / image.height
            width = max(self.min_width, math.ceil(image.width * ratio))
        else:
            ratio = min(height / image.height, width / image.width)
            if self.pad == "right":  # text lines: the height is filled, the width squeezed when it must be
                ratio = height / image.height
        fitted = min(width, max(1, math.ceil(image.width * ratio))), min(height, max(1, round(image.height * ratio)))
        pixels = _as_pixels(_resize(image, fitted, self.resize))
        spare = height - fitted[1], width - fitted[0]
        before = (spare[0] // 2, spare[1] // 2) if self.pad == "center" else (0, 0)
        filler = [(first, total - first) for first, total in zip(before, spare, strict=True)]
        return np.pad(pixels, [*filler, (0, 0)], constant_values=self.pad_value)


def _normalise_fields(preprocess: Preprocess) -> None:
    """Accept what TOML and callers write: lists, single numbers, other letter cases."""
    put = object.__setattr__
    for name in ("mean", "std"):
        value = getattr(preprocess, name)
        try:
            numbers = tuple(float(item) for item in (value if isinstance(value, (list, tuple)) else (value,)))
        except (TypeError, ValueError):
            raise ConfigError(f"{name} must be a number or a list of numbers, found {value!r}") from None
        put(preprocess, name, numbers)
    for name in ("scale", "crop_pct", "pad_value"):
        if not isinstance(getattr(preprocess, name), (int, float)) or isinstance(getattr(preprocess, name), bool):
            raise ConfigError(f"{name} must be a number, found {getattr(preprocess, name)!r}")
    put(preprocess, "size", _pair("size", preprocess.size, free_width=True))
    if not isinstance(preprocess.resize_size, int):
        put(preprocess, "resize_size", _pair("resize_size", preprocess.resize_size))
    elif not 1 <= preprocess.resize_size <= MAX_SIDE:
        raise ConfigError(f"resize_size must be 1 to {MAX_SIDE}, found {preprocess.resize_size}")
    for name, change in (("resize", str.lower), ("channel_order", str.upper), ("layout", str.upper)):
        if isinstance(getattr(preprocess, name), str):
            put(preprocess, name, change(getattr(preprocess, name)))


def _pair(name: str, value: Any, free_width: bool = False) -> tuple[int, int | None] | None:
    if value is None:
        return None
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (list, tuple)) else ()
    if free_width and len(pair) == 2 and pair[1] in (0, None):
        pair = (pair[0], None)
    sizes = [size for size in pair if size is not None or not free_width]
    if len(pair) != 2 or not all(isinstance(size, int) and 0 < size <= MAX_SIDE for size in sizes):
        raise ConfigError(f"{name} must be one size or [height, width], found {value!r}")
    return pair


def _one_of(name: str, value: object, known: Any) -> None:
    if value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(known)}, found {value!r}")


def _layout_of(info: InputInfo, channels: int) -> Literal["NCHW", "NHWC"]:
    first, last = info.shape[1], info.shape[3]
    return "NHWC" if last == channels and first != channels else "NCHW"


def _resize(image: Image.Image, size: tuple[int, int], resample: str) -> Image.Image:
    """Resize to (width, height); a sliver of an image would become enormous where its ratio is kept."""
    if size[0] * size[1] > MAX_PIXELS:
        raise CalibrationError(
            f"an image of {image.width}x{image.height} becomes {size[0]}x{size[1]} when its ratio is kept, more than "
            f"{MAX_PIXELS} pixels"
        )
    return image.resize(size, RESIZE[resample])


def _crop_center(image: Image.Image, height: int, width: int) -> Image.Image:
    """The middle of ``image``; a smaller image is padded with black first, as torchvision's CenterCrop does."""
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    if (left, top, image.width, image.height) == (0, 0, width, height):
        return image
    return image.crop((left, top, left + width, top + height))


def _as_pixels(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image, np.float32)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]
