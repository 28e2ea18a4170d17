"""Preprocessing files as timm and transformers write them, several models of each: what they come to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnx_hyvit.calibration import InputInfo, load_preprocess
from onnx_hyvit.errors import ConfigError

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HF_IMAGENET = {"image_mean": IMAGENET["mean"], "image_std": IMAGENET["std"]}
RESCALE = {"do_rescale": True, "rescale_factor": 1 / 255}


def timm(architecture: str, size: int, **cfg: object) -> dict:
    """``config.json`` of a timm model on the hub."""
    common = {"tag": "in1k", "custom_load": False, "input_size": [3, size, size], "fixed_input_size": False}
    cfg = {**common, "crop_mode": "center", "num_classes": 1000, "pool_size": [8, 8], "first_conv": "stem.conv", **cfg}
    return {"architecture": architecture, "num_classes": 1000, "num_features": 320, "pretrained_cfg": cfg}


FILES = {
    "mobilevit_s": timm("mobilevit_s", 256, interpolation="bicubic", crop_pct=0.9, mean=[0.0] * 3, std=[1.0] * 3),
    "mobilevitv2": timm("mobilevitv2_100", 256, interpolation="bicubic", crop_pct=0.888, mean=[0] * 3, std=[1] * 3),
    "efficientformer": timm("efficientformer_l1", 224, interpolation="bicubic", crop_pct=0.95, **IMAGENET),
    "edgenext": timm(
        "edgenext_small",
        256,
        test_input_size=[3, 320, 320],
        interpolation="bicubic",
        crop_pct=0.95,
        test_crop_pct=1.0,
        **IMAGENET,
    ),
    "vit_squash": timm("vit_base", 384, interpolation="bicubic", crop_pct=1.0, **{**IMAGENET, "crop_mode": "squash"}),
    "hf_mobilevit": {
        "image_processor_type": "MobileViTImageProcessor",
        **RESCALE,
        "do_resize": True,
        "size": {"shortest_edge": 288},
        "do_center_crop": True,
        "crop_size": {"height": 256, "width": 256},
        "do_flip_channel_order": True,
        "resample": 2,
    },
    "hf_mobilevit_old": {
        "feature_extractor_type": "MobileViTFeatureExtractor",
        "crop_size": 256,
        "do_center_crop": True,
        "do_flip_channel_order": True,
        "do_resize": True,
        "resample": 2,
        "size": 288,
    },
    "hf_vit": {
        "image_processor_type": "ViTImageProcessor",
        **RESCALE,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 2,
        "size": {"height": 224, "width": 224},
    },
    "hf_vit_fast": {
        "image_processor_type": "ViTImageProcessorFast",
        "crop_size": None,
        "do_center_crop": None,
        "do_convert_rgb": None,
        **RESCALE,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 2,
        "size": {"height": 224, "width": 224},
    },
    "hf_efficientformer": {
        "image_processor_type": "EfficientFormerImageProcessor",
        **RESCALE,
        **HF_IMAGENET,
        "do_normalize": True,
        "do_resize": True,
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "size": {"shortest_edge": 224},
        "resample": 3,
    },
    "hf_convnext": {
        "image_processor_type": "ConvNextImageProcessor",
        **RESCALE,
        **HF_IMAGENET,
        "do_normalize": True,
        "do_resize": True,
        "crop_pct": 0.875,
        "size": {"shortest_edge": 224},
        "resample": 3,
    },
    "hf_clip": {
        "image_processor_type": "CLIPImageProcessor",
        **RESCALE,
        "do_normalize": True,
        "do_resize": True,
        "do_center_crop": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "crop_size": {"height": 224, "width": 224},
        "size": {"shortest_edge": 224},
        "resample": 3,
    },
    "hf_no_rescale": {
        "do_resize": True,
        "size": {"height": 32, "width": 32},
        "do_rescale": False,
        "resample": "bicubic",
    },
    "hf_nested": {
        "processor_class": "CLIPProcessor",
        "image_processor": {
            "image_processor_type": "ViTImageProcessor",
            **RESCALE,
            "do_resize": True,
            "size": {"height": 64, "width": 64},
            "resample": 2,
        },
    },
}
# (size, before the crop, filter, channel order, value of a white pixel in the first channel)
EXPECTED = {
    "mobilevit_s": (256, 284, "bicubic", "RGB", 1.0),
    "mobilevitv2": (256, 288, "bicubic", "RGB", 1.0),
    "efficientformer": (224, 235, "bicubic", "RGB", (1 - 0.485) / 0.229),
    "edgenext": (256, 269, "bicubic", "RGB", (1 - 0.485) / 0.229),
    "vit_squash": (384, 384, "bicubic", "RGB", (1 - 0.485) / 0.229),
    "hf_mobilevit": (256, 288, "bilinear", "BGR", 1.0),
    "hf_mobilevit_old": (256, 288, "bilinear", "BGR", 1.0),
    "hf_vit": (224, 224, "bilinear", "RGB", 1.0),
    "hf_vit_fast": (224, 224, "bilinear", "RGB", 1.0),
    "hf_efficientformer": (224, 224, "bicubic", "RGB", (1 - 0.485) / 0.229),
    "hf_convnext": (224, 256, "bicubic", "RGB", (1 - 0.485) / 0.229),
    "hf_clip": (224, 224, "bicubic", "RGB", (1 - 0.48145466) / 0.26862954),
    "hf_no_rescale": (32, 32, "bicubic", "RGB", 255.0),
    "hf_nested": (64, 64, "bilinear", "RGB", 1.0),
}


@pytest.mark.parametrize("name", FILES)
def test_what_the_file_says_is_what_is_done(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(FILES[name]))
    size, before, resample, order, white = EXPECTED[name]
    preprocess = load_preprocess(path).resolve(InputInfo("x", np.dtype("float32"), (1, 3, size, size)))
    assert (preprocess.size, preprocess.resize, preprocess.channel_order) == ((size, size), resample, order)
    assert min(preprocess._resized(Image.new("RGB", (400, 400)), size, size)) == before
    found = preprocess(Image.new("RGB", (500, 400), (255, 255, 255)))
    assert found.shape == (3, size, size)
    assert found[0, size // 2, size // 2] == pytest.approx(white, rel=1e-5)


@pytest.mark.parametrize(
    "data",
    [
        {"do_resize": True, "size": {"longest_edge": 224}},
        {"do_resize": True, "size": 224, "resample": 77},
        {"do_normalize": True, "image_mean": [0.5] * 3},
        {"image_processor": 5},
        timm("x", 224, interpolation="lanczos9", crop_pct=0.9),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(data: dict, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_preprocess(path)
