"""Calibration data: images, arrays and readers as streamed batches."""

from .inputs import InputInfo, inputs_of
from .open import open_source
from .preprocess import Preprocess
from .presets import PRESETS, load_preprocess
from .sources import FirstSamples, Source
from .thumbnail import thumbnail

__all__ = [
    "PRESETS",
    "FirstSamples",
    "InputInfo",
    "Preprocess",
    "Source",
    "inputs_of",
    "load_preprocess",
    "open_source",
    "thumbnail",
]
