"""Reduced models of timm's own classes: fewer channels and blocks, the same block structure."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from .record import Architecture
from .torch_weights import randomize

FULL = ("torchscript-13", "torchscript-17", "torchscript-20", "dynamo-18", "dynamo-20", "dynamo-23")
BRIEF = ("torchscript-17", "dynamo-20")
EAGER = ("torchscript-17-eager",)


def seeded(name: str, shape: tuple[int, ...], make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A builder whose weights depend on `name` only."""
    return lambda: randomize(make(), shape, seed=zlib.crc32(name.encode()))


def _mobilevit(kind: str) -> nn.Module:
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    def inverted(c: int, s: int) -> ByoBlockCfg:
        options = {"bottle_in": True, "linear_out": True}
        return ByoBlockCfg(type="bottle", d=1, c=c, s=s, gs=1, br=2.0, block_kwargs=options)

    def hybrid(c: int, dim: int, depth: int) -> tuple[ByoBlockCfg, ByoBlockCfg]:
        options = {"transformer_depth": depth, "patch_size": 2}
        extra: dict[str, Any] = {"br": 0.5, "gs": 1}
        if kind == "mobilevit":
            options["transformer_dim"], extra = dim, {}
        return inverted(c, 2), ByoBlockCfg(type=kind, d=1, c=c, s=1, block_kwargs=options, **extra)

    blocks = (inverted(8, 1), inverted(8, 2), hybrid(8, 12, 2), hybrid(12, 16, 2), hybrid(12, 16, 1))
    config = ByoModelCfg(
        blocks=blocks,
        stem_chs=8,
        stem_type="3x3",
        stem_pool="",
        downsample="",
        act_layer="silu",
        num_features=32 if kind == "mobilevit" else 0,
    )
    return ByobNet(config, num_classes=10)


def _efficientformer() -> nn.Module:
    from timm.models.efficientformer import EfficientFormer

    return EfficientFormer(depths=(1, 1, 1, 2), embed_dims=(8, 8, 12, 12), num_vit=1, num_classes=10)


def _efficientformer_v2() -> nn.Module:
    from timm.models.efficientformer_v2 import EfficientFormerV2

    return EfficientFormerV2(depths=(1, 1, 2, 2), embed_dims=(4, 4, 4, 4), num_vit=1, img_size=128, num_classes=10)


def _edgenext() -> nn.Module:
    from timm.models.edgenext import EdgeNeXt

    return EdgeNeXt(dims=(8, 16, 16, 24), depths=(1, 2, 2, 1), heads=(4, 4, 4, 4), num_classes=10)


def _efficientvit_mit() -> nn.Module:
    from timm.models.efficientvit_mit import EfficientVit

    return EfficientVit(
        widths=(4, 8, 8, 16, 16), depths=(1, 2, 1, 2, 1), head_dim=8, head_widths=(32, 48), num_classes=10
    )


def _efficientvit_msra() -> nn.Module:
    from timm.models.efficientvit_msra import EfficientVitMsra

    return EfficientVitMsra(
        img_size=128,
        num_classes=10,
        embed_dim=(8, 12, 16),
        key_dim=(8, 8, 8),
        depth=(1, 1, 1),
        num_heads=(2, 2, 2),
        window_size=(4, 4, 4),
    )


def _tiny_vit() -> nn.Module:
    from timm.models.tiny_vit import TinyVit

    return TinyVit(
        embed_dims=(8, 12, 16, 24),
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 2, 3),
        window_sizes=(4, 4, 8, 4),
        num_classes=10,
    )


def _levit(use_conv: bool = False) -> nn.Module:
    from timm.models.levit import LevitDistilled

    return LevitDistilled(
        img_size=128,
        num_classes=10,
        embed_dim=(16, 16, 24),
        key_dim=8,
        depth=(2, 1, 1),
        num_heads=(2, 2, 3),
        use_conv=use_conv,
    )


def _fastvit(attention: bool) -> nn.Module:
    from timm.models.fastvit import FastVit, RepConditionalPosEnc
    from timm.utils import reparameterize_model

    if not attention:
        return FastVit(layers=(1, 1, 2, 1), embed_dims=(8, 16, 16, 32), mlp_ratios=(3,) * 4, num_classes=10)
    position = partial(RepConditionalPosEnc, spatial_shape=(7, 7))
    mixers = ("repmixer", "repmixer", "repmixer", "attention")
    model = FastVit(
        layers=(1, 1, 1, 2),
        embed_dims=(8, 8, 16, 32),
        mlp_ratios=(2,) * 4,
        num_classes=10,
        pos_embs=(None, None, None, position),
        token_mixers=mixers,
    )
    return reparameterize_model(model)


def _deit() -> nn.Module:
    from timm.models.deit import VisionTransformerDistilled

    return VisionTransformerDistilled(img_size=64, patch_size=16, embed_dim=16, depth=2, num_heads=2, num_classes=10)


def _vit_qk_norm() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=64,
        patch_size=16,
        embed_dim=24,
        depth=2,
        num_heads=3,
        num_classes=10,
        qk_norm=True,
        init_values=0.1,
        reg_tokens=2,
        class_token=False,
        global_pool="avg",
    )


def _swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=64, patch_size=4, embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=4, num_classes=10
    )


def _mobilenet(version: int) -> nn.Module:
    from timm.models._efficientnet_blocks import SqueezeExcite
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.efficientnet import EfficientNet
    from timm.models.mobilenetv3 import MobileNetV3

    if version == 2:
        rows = [["ds_r1_k3_s1_c8"], ["ir_r2_k3_s2_e6_c8"], ["ir_r2_k3_s2_e6_c12"], ["ir_r1_k3_s2_e6_c16"]]
        return EfficientNet(
            block_args=decode_arch_def(rows), num_features=64, stem_size=8, act_layer=nn.ReLU6, num_classes=10
        )
    rows = [
        ["ds_r1_k3_s2_e1_c8_se0.25_nre"],
        ["ir_r2_k3_s2_e4_c8_nre"],
        ["ir_r2_k5_s2_e4_c16_se0.25"],
        ["cn_r1_k1_s1_c48"],
    ]
    squeeze = partial(SqueezeExcite, gate_layer="hard_sigmoid")
    return MobileNetV3(
        block_args=decode_arch_def(rows),
        num_features=64,
        stem_size=8,
        act_layer=nn.Hardswish,
        se_layer=squeeze,
        num_classes=10,
    )


def _resnet() -> nn.Module:
    from timm.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, layers=(1, 2, 1, 1), channels=(4, 6, 8, 8), num_classes=10)


def _convnext() -> nn.Module:
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 12, 16, 24), num_classes=10)


def _repvgg() -> nn.Module:
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    blocks = tuple(ByoBlockCfg(type="rep", d=d, c=c, s=2) for d, c in ((2, 8), (2, 12), (1, 16)))
    return ByobNet(ByoModelCfg(blocks=blocks, stem_type="rep", stem_chs=8), num_classes=10)


def _maxxvit(kind: str) -> nn.Module:
    from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitTransformerCfg

    depths = (1, 1, 2, 1) if kind == "coatnet" else (1, 1, 1, 1)
    types = ("C", "C", "T", "T") if kind == "coatnet" else ("M",) * 4
    config = MaxxVitCfg(
        embed_dim=(8, 8, 16, 16),
        depths=depths,
        block_type=types,
        stem_width=8,
        transformer_cfg=MaxxVitTransformerCfg(dim_head=8, expand_ratio=2.0),
    )
    return MaxxVit(config, img_size=128, num_classes=10)


def _metaformer(kind: str) -> nn.Module:
    from timm.models import metaformer as mf

    if kind == "poolformer":
        return mf.MetaFormer(
            depths=(1, 1, 2, 1),
            dims=(8, 12, 16, 24),
            downsample_norm=None,
            mlp_act=nn.GELU,
            mlp_bias=True,
            norm_layers=mf.GroupNorm1,
            layer_scale_init_values=1e-5,
            res_scale_init_values=None,
            use_mlp_head=False,
            num_classes=10,
        )
    return mf.MetaFormer(
        depths=(1, 1, 2, 1),
        dims=(8, 8, 32, 32),
        num_classes=10,
        token_mixers=[mf.SepConv, mf.SepConv, mf.Attention, mf.Attention],
        norm_layers=[mf.LayerNorm2dNoBias] * 2 + [mf.LayerNormNoBias] * 2,
    )


# fmt: off
HYBRID: tuple[tuple[Any, ...], ...] = (
    ("mobilevit_v1", "mobilevit", partial(_mobilevit, "mobilevit"), 128, 3, 5,
     "one per MobileViT block (stages 3, 4, 5): conv_1x1, unfold, first qkv", FULL + EAGER),
    ("mobilevit_v2", "mobilevitv2", partial(_mobilevit, "mobilevit2"), 128, 3, 5,
     "one per MobileViTv2 block (stages 3, 4, 5); tokens stay (B, C, P, N), linear attention of 1x1 convs",
     FULL),
    ("efficientformer_v1", "efficientformer", _efficientformer, 224, 1, 1,
     "the 4D -> 3D switch (flatten) before the last MetaBlock", FULL),
    ("efficientformer_v2", "efficientformerv2", _efficientformer_v2, 128, 2, 3,
     "one for stage 3 and one for stage 4 (which starts with the attention down-sampling)", FULL),
    ("edgenext", "edgenext", _edgenext, 128, 3, 3,
     "one per resolution with an SDTA block (stages 2, 3, 4); cross-covariance attention", FULL),
    ("efficientvit_mit", "efficientvit", _efficientvit_mit, 128, 2, 3,
     "one per stage with LiteMLA (stages 3 and 4); ReLU linear attention without softmax", FULL),
    ("efficientvit_msra", "efficientvit_msra", _efficientvit_msra, 128, 3, 6,
     "one per stage (3 resolutions joined by convolutions); every head of a cascaded group counts as an attention",
     BRIEF),
    ("tiny_vit", "tinyvit", _tiny_vit, 128, 3, 4,
     "one per attention stage (2, 3, 4): the patch merging between them is convolutional", FULL),
    ("levit", "levit", _levit, 128, 1, 6,
     "after the convolutional stem; attention down-sampling stays in tokens", FULL),
    ("levit_conv", "levit", partial(_levit, True), 128, 1, 6,
     "as levit, but tokens stay NCHW and linears are 1x1 convs: one run from the first attention on", BRIEF),
    ("fastvit_sa", "fastvit", partial(_fastvit, True), 128, 1, 2,
     "stage 4, the only one with attention", FULL),
    ("deit", "deit", _deit, 64, 1, 2, "the patch embedding", FULL + EAGER),
    ("swin", "swin", _swin, 64, 1, 4, "the patch embedding; patch merging stays in tokens (NHWC)", FULL),
    ("vit_qk_norm", "vit", _vit_qk_norm, 64, 1, 2, "the patch embedding", BRIEF),
    ("coatnet", "coatnet", partial(_maxxvit, "coatnet"), 128, 2, 3,
     "one per transformer stage (3 and 4); attention keeps NCHW and 1x1 convs", BRIEF),
    ("maxvit", "maxvit", partial(_maxxvit, "maxvit"), 128, 4, 8,
     "one per stage: each block is MBConv, window attention, grid attention", BRIEF),
    ("caformer", "metaformer", partial(_metaformer, "caformer"), 128, 2, 3,
     "one per attention stage (3 and 4)", BRIEF),
)

CONVOLUTIONAL: tuple[tuple[Any, ...], ...] = (
    ("fastvit_t", "fastvit", partial(_fastvit, False), 64, BRIEF),
    ("mobilenetv2", "mobilenetv2", partial(_mobilenet, 2), 64, FULL),
    ("mobilenetv3", "mobilenetv3", partial(_mobilenet, 3), 64, FULL),
    ("resnet", "resnet", _resnet, 64, FULL),
    ("convnext", "convnext", _convnext, 64, FULL),
    ("repvgg", "repvgg", _repvgg, 64, BRIEF),
    ("poolformer", "metaformer", partial(_metaformer, "poolformer"), 64, BRIEF),
)
# fmt: on


def architectures() -> list[Architecture]:
    """All timm architectures of the corpus."""
    found = []
    for name, family, make, size, bridges, attentions, note, exporters in HYBRID:
        shape = (1, 3, size, size)
        build = seeded(name, shape, make)
        found.append(Architecture(name, family, build, shape, bridges, attentions, note, exporters, source="timm"))
    for name, family, make, size, exporters in CONVOLUTIONAL:
        shape = (1, 3, size, size)
        build = seeded(name, shape, make)
        found.append(Architecture(name, family, build, shape, 0, 0, "no attention", exporters, source="timm"))
    return found
