"""Mobile-Former (Chen et al., "Mobile-Former: Bridging MobileNet and Transformer", arXiv 2108.05895).

Two streams run side by side. Mobile keeps a map x of local features [n, c, h, w]; Former keeps a few
global tokens z [n, m, d] that start as learned parameters. Each block does four things in turn:

    Mobile -> Former   z' = z + Attention(z Wq, x, x) Wo        keys and values are x itself
    Former             z'' = transformer block(z')
    Mobile             x' = inverted bottleneck(x), with dynamic ReLU steered by the first token of z''
    Former -> Mobile   x'' = x' + Attention(x', z'' Wk, z'' Wv)  queries are x' itself

Dynamic ReLU (arXiv 2003.10027) is max(a1 x + b1, a2 x + b2) with coefficients per channel and image.
The 26M variant groups its 1x1 convolutions by four; a channel shuffle lets the groups mix.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

TOKENS, TOKEN_DIM = 3, 128
HEADS = 2
GROUPS = 4
STEM = 8
# Blocks of the 26M variant: (channels out, expansion of the bottleneck, expansion of the strided
# depthwise convolution in front of it, or 0 for a block without stride).
BLOCKS_26M = (
    (12, 3, 0),
    (24, 6, 3),
    (24, 3, 0),
    (48, 6, 4),
    (48, 4, 0),
    (64, 6, 0),
    (96, 6, 4),
    (96, 6, 0),
)
LITE_CHANNELS, LITE_EXPANSION = 12, 3
HEAD_FEATURES = 1024


class ConvNorm(nn.Sequential):
    """Convolution without bias, then batch normalisation."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        super().__init__(
            nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(c_out)
        )


class DynamicReLU(nn.Module):
    """max(a1 x + b1, a2 x + b2) per channel, with coefficients computed from a token.

    The coefficients are (1, 0, 0, 0) plus lambda * (2 sigmoid(theta) - 1), with lambda 1 for the slopes
    and 0.5 for the offsets, so that the function starts close to ReLU.
    """

    def __init__(self, channels: int, token_dim: int = TOKEN_DIM, squeeze: int = 4):
        super().__init__()
        hidden = token_dim // squeeze
        self.coefficients = nn.Sequential(
            nn.Linear(token_dim, hidden), nn.ReLU(), nn.Linear(hidden, 4 * channels), nn.Sigmoid()
        )
        reach = torch.tensor([1.0, 1.0, 0.5, 0.5]).repeat_interleave(channels)  # a1, a2, b1, b2
        start = torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat_interleave(channels)
        self.register_buffer("gain", 2 * reach, persistent=False)
        self.register_buffer("offset", start - reach, persistent=False)

    def forward(self, x: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """Apply to x [n, c, h, w] with the coefficients of token [n, d]."""
        theta = self.coefficients(token).float() * self.gain + self.offset
        a1, a2, b1, b2 = theta.to(x.dtype).unsqueeze(-1).unsqueeze(-1).chunk(4, dim=1)
        return torch.maximum(a1 * x + b1, a2 * x + b2)


class ChannelShuffle(nn.Module):
    """Interleave the channels of `groups` groups."""

    def __init__(self, groups: int):
        super().__init__()
        self.groups = groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Permute the channels of x [n, c, h, w]."""
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


class Mobile(nn.Module):
    """Inverted bottleneck with dynamic ReLU; with stride 2 a lite bottleneck comes first."""

    def __init__(self, c_in: int, c_out: int, expansion: int, strided_expansion: int, stride: int = 2):
        super().__init__()
        self.reduce = None
        if strided_expansion:
            self.reduce = LiteBottleneck(c_in, c_out, strided_expansion, stride, groups=GROUPS, activation=False)
            c_in = c_out
        wide = c_in * expansion
        self.expand = ConvNorm(c_in, wide, groups=GROUPS)
        self.shuffle = ChannelShuffle(GROUPS)
        self.activation1 = DynamicReLU(wide)
        self.depthwise = ConvNorm(wide, wide, 3, groups=wide)
        self.activation2 = DynamicReLU(wide)
        self.project = ConvNorm(wide, c_out, groups=GROUPS)
        self.residual = c_in == c_out

    def forward(self, x: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """Map x [n, c_in, h, w] to [n, c_out, h, w] (or half the size), steered by token [n, d]."""
        if self.reduce is not None:
            x = self.reduce(x)
        y = self.activation1(self.shuffle(self.expand(x)), token)
        y = self.project(self.activation2(self.depthwise(y), token))
        return x + y if self.residual else y


class LiteBottleneck(nn.Module):
    """Depthwise convolution that widens, then a 1x1 convolution that narrows."""

    def __init__(self, c_in: int, c_out: int, expansion: int, stride: int, groups: int = 1, activation: bool = True):
        super().__init__()
        wide = c_in * expansion
        self.depthwise = ConvNorm(c_in, wide, 3, stride, groups=c_in)
        self.activation = nn.ReLU6() if activation else nn.Identity()
        self.project = ConvNorm(wide, c_out, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [n, c_in, h, w] to [n, c_out, h / stride, w / stride]."""
        return self.project(self.activation(self.depthwise(x)))


def split_heads(x: torch.Tensor) -> torch.Tensor:
    """[n, length, c] -> [n, heads, length, c / heads]."""
    return x.unflatten(2, (HEADS, -1)).transpose(1, 2)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Scaled dot-product attention; [n, heads, length, c / heads] each -> [n, length of q, c]."""
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


class MobileToFormer(nn.Module):
    """Bridge from the map to the tokens; only the tokens are projected."""

    def __init__(self, channels: int):
        super().__init__()
        self.query = nn.Linear(TOKEN_DIM, channels)
        self.out = nn.Linear(channels, TOKEN_DIM)
        self.norm = nn.LayerNorm(TOKEN_DIM)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Update z [n, m, d] from x [n, c, h, w]."""
        pixels = split_heads(x.flatten(2).transpose(1, 2))
        return self.norm(z + self.out(attend(split_heads(self.query(z)), pixels, pixels)))


class Former(nn.Module):
    """Transformer block over the tokens: attention, then a feed-forward layer of twice the width."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(TOKEN_DIM, 3 * TOKEN_DIM)
        self.out = nn.Linear(TOKEN_DIM, TOKEN_DIM)
        self.norm1 = nn.LayerNorm(TOKEN_DIM)
        self.feed = nn.Sequential(nn.Linear(TOKEN_DIM, 2 * TOKEN_DIM), nn.GELU(), nn.Linear(2 * TOKEN_DIM, TOKEN_DIM))
        self.norm2 = nn.LayerNorm(TOKEN_DIM)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Update z [n, m, d]."""
        q, k, v = self.qkv(z).chunk(3, dim=-1)
        z = self.norm1(z + self.out(attend(split_heads(q), split_heads(k), split_heads(v))))
        return self.norm2(z + self.feed(z))


class FormerToMobile(nn.Module):
    """Bridge from the tokens to the map; only the tokens are projected."""

    def __init__(self, channels: int):
        super().__init__()
        self.key = nn.Linear(TOKEN_DIM, channels)
        self.value = nn.Linear(TOKEN_DIM, channels)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Update x [n, c, h, w] from z [n, m, d]."""
        pixels = split_heads(x.flatten(2).transpose(1, 2))
        update = attend(pixels, split_heads(self.key(z)), split_heads(self.value(z)))
        return x + update.transpose(1, 2).unflatten(2, x.shape[2:])


class MobileFormerBlock(nn.Module):
    """Bridge, Former, Mobile, bridge: one step of both streams."""

    def __init__(self, c_in: int, c_out: int, expansion: int, strided_expansion: int, stride: int = 2):
        super().__init__()
        self.to_former = MobileToFormer(c_in)
        self.former = Former()
        self.mobile = Mobile(c_in, c_out, expansion, strided_expansion, stride)
        self.to_mobile = FormerToMobile(c_out)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Update x [n, c_in, h, w] and z [n, m, d]."""
        z = self.former(self.to_former(x, z))
        return self.to_mobile(self.mobile(x, z[:, 0]), z), z


class MobileFormer(nn.Module):
    """The whole network: image [n, 3, side, side] -> logits [n, classes]; the last strided block has `last_stride`."""

    def __init__(self, blocks: tuple[tuple[int, int, int], ...], classes: int, last_stride: int = 2):
        super().__init__()
        strided = [place for place, block in enumerate(blocks) if block[2]]
        strides = [last_stride if place == strided[-1] else 2 for place in range(len(blocks))]
        self.tokens = nn.Parameter(torch.randn(1, TOKENS, TOKEN_DIM) * 0.02)
        self.stem = nn.Sequential(ConvNorm(3, STEM, 3, stride=2), nn.Hardswish())
        self.lite = LiteBottleneck(STEM, LITE_CHANNELS, LITE_EXPANSION, stride=2)
        widths = [LITE_CHANNELS, *(block[0] for block in blocks)]
        self.blocks = nn.ModuleList(
            MobileFormerBlock(c_in, *block, stride)
            for c_in, block, stride in zip(widths, blocks, strides, strict=False)
        )
        last, wide = widths[-1], 6 * widths[-1]
        self.widen = nn.Sequential(ConvNorm(last, wide), nn.Hardswish())
        self.head = nn.Sequential(
            nn.Linear(wide + TOKEN_DIM, HEAD_FEATURES), nn.Hardswish(), nn.Linear(HEAD_FEATURES, classes)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify images [n, 3, side, side]."""
        x = self.lite(self.stem(x))
        z = self.tokens.expand(x.shape[0], -1, -1)
        for block in self.blocks:
            x, z = block(x, z)
        pooled = functional.adaptive_avg_pool2d(self.widen(x), 1).flatten(1)
        return self.head(torch.cat((pooled, z[:, 0]), dim=1))


def mobile_former_26m(classes: int, last_stride: int = 2) -> MobileFormer:
    """Build Mobile-Former-26M with fresh weights; `last_stride` 1 leaves maps of 1/16 of the image, not 1/32."""
    return MobileFormer(BLOCKS_26M, classes, last_stride)
