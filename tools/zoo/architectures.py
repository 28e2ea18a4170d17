"""The nine architectures of the zoo at 64x64 pixels, from timm where timm has them."""

from __future__ import annotations

from collections.abc import Callable

import timm
from timm.models.efficientformer import EfficientFormer, MetaBlock1d
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from .mobile_former import mobile_former_26m

INPUT_SIDE = 64


def _mobilevit_xxs(classes: int) -> nn.Module:
    return timm.create_model("mobilevit_xxs", num_classes=classes)


def _mobilevitv2_050(classes: int) -> nn.Module:
    return timm.create_model("mobilevitv2_050", num_classes=classes)


def _edgenext_xx_small(classes: int) -> nn.Module:
    return timm.create_model("edgenext_xx_small", num_classes=classes)


def _efficientformerv2_s0(classes: int) -> nn.Module:
    return timm.create_model("efficientformerv2_s0", num_classes=classes, img_size=INPUT_SIDE)


def _efficientformer(classes: int) -> nn.Module:
    """EfficientFormer-L1 with half the depth and width; its attention bias is made for 2x2 tokens.

    timm fixes the bias at the 7x7 tokens of 224 pixels, so the attention of the last stage is built anew.
    """
    model = EfficientFormer(
        depths=(2, 2, 4, 4),
        embed_dims=(32, 64, 128, 224),
        num_classes=classes,
        num_vit=2,
        drop_path_rate=0.0,
    )
    tokens = INPUT_SIDE // 32
    for block in model.modules():
        if isinstance(block, MetaBlock1d):
            block.token_mixer = type(block.token_mixer)(dim=224, resolution=tokens)
    return model


def _mobile_former(classes: int) -> nn.Module:
    """Mobile-Former-26M; its last maps are 4x4 where a stride of 32 would leave 2x2."""
    return mobile_former_26m(classes, last_stride=1)


def _deit_tiny(classes: int) -> nn.Module:
    """DeiT-Tiny (width 192, 3 heads) with patch 8 and half the depth."""
    return VisionTransformer(
        img_size=INPUT_SIDE,
        patch_size=8,
        embed_dim=192,
        depth=6,
        num_heads=3,
        num_classes=classes,
        patch_drop_rate=0.5,  # the layer is there; training sets its share, and it does nothing in evaluation
    )


def _swin(classes: int) -> nn.Module:
    """Swin with patch 4, window 4 and three stages of two blocks (plain and shifted windows)."""
    return SwinTransformer(
        img_size=INPUT_SIDE,
        patch_size=4,
        window_size=4,
        embed_dim=64,
        depths=(2, 2, 2),
        num_heads=(2, 4, 8),
        num_classes=classes,
        drop_path_rate=0.0,
    )


ARCHITECTURES: dict[str, Callable[[int], nn.Module]] = {
    "mobilevit_xxs": _mobilevit_xxs,
    "mobilevitv2_050": _mobilevitv2_050,
    "efficientformerv2_s0": _efficientformerv2_s0,
    "edgenext_xx_small": _edgenext_xx_small,
    "mobile_former": _mobile_former,
    "efficientformer": _efficientformer,
    "deit_tiny": _deit_tiny,
    "swin": _swin,
}


def build(name: str, classes: int) -> nn.Module:
    """Build an architecture with fresh weights (seed torch first).

    Args:
        name: a key of `ARCHITECTURES`.
        classes: number of outputs.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}: expected one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name](classes)
