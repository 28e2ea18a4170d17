"""Reduced configurations of Hugging Face transformers' hybrid models.

EfficientFormer is in releases 4 only; MobileViT's depths (2, 4, 3) are fixed in its code.
"""

from __future__ import annotations

from functools import partial

import torch
import transformers
from torch import nn

from .record import Architecture
from .timm_models import BRIEF, seeded


class Logits(nn.Module):
    """A classifier of transformers that returns its scores only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Class scores (B, classes) of images (B, 3, H, W)."""
        return self.model(pixel_values).logits


def _build(name: str, **options: object) -> nn.Module:
    config = getattr(transformers, f"{name}Config")(num_labels=10, **options)
    return Logits(getattr(transformers, f"{name}ForImageClassification")(config))


def _mobilevit() -> nn.Module:
    necks = [8, 8, 8, 8, 8, 8, 24]
    return _build("MobileViT", image_size=128, hidden_sizes=[8, 8, 8], neck_hidden_sizes=necks, expand_ratio=2.0)


def _mobilevit_v2() -> nn.Module:
    units = {"base_attn_unit_dims": [128, 128, 128], "n_attn_blocks": [2, 2, 1]}
    return _build("MobileViTV2", image_size=128, width_multiplier=0.125, **units)


def _efficientformer() -> nn.Module:
    sizes = {"depths": [1, 1, 1, 2], "hidden_sizes": [8, 8, 16, 16], "dim": 16, "image_size": 128, "resolution": 4}
    return _build("EfficientFormer", **sizes, key_dim=8, num_attention_heads=4, num_hidden_layers=1)


def _levit() -> nn.Module:
    attention = {"num_attention_heads": [2, 2, 3], "depths": [2, 1, 1], "key_dim": [8, 8, 8]}
    return _build("Levit", image_size=128, hidden_sizes=[16, 16, 24], **attention)


def architectures() -> list[Architecture]:
    """The four hybrid models, for two exporters each."""
    rows = (
        ("hf_mobilevit", "mobilevit", _mobilevit, 3, 9, "one per MobileViT layer (stages 3, 4, 5)"),
        ("hf_mobilevit_v2", "mobilevitv2", _mobilevit_v2, 3, 5, "one per MobileViTV2 layer (stages 3, 4, 5)"),
        ("hf_efficientformer", "efficientformer", _efficientformer, 1, 1, "the flatten before the last block"),
        ("hf_levit", "levit", _levit, 1, 6, "after the convolutional stem"),
    )
    shape = (1, 3, 128, 128)
    found = []
    for name, family, make, bridges, attentions, note in rows:
        build = seeded(name, shape, partial(make))
        exporters = BRIEF if name != "hf_mobilevit_v2" else (*BRIEF, "torchscript-20")  # 17 has no Col2Im
        counts = (bridges, attentions, note)
        found.append(Architecture(name, family, build, shape, *counts, exporters, source="transformers"))
    return found
