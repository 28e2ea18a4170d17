"""A small Mobile-Former, written from the paper (Chen et al., arXiv 2108.05895).

A convolutional stream X (Mobile, B x C x H x W) and a few tokens Z (Former, B x M x d) run side by side. Each
block has four parts: Mobile -> Former cross attention, the Former (attention and feed-forward), the Mobile (an
inverted bottleneck whose dynamic ReLUs are steered by the first token) and Former -> Mobile cross attention. The
cross attentions have no projections on the Mobile side.
"""

from __future__ import annotations

import torch
from torch import nn

from .record import Architecture
from .timm_models import FULL, seeded


class DynamicReLU(nn.Module):
    """y_c = max_k(a_ck x_c + b_ck), k = 1, 2, with a and b from a token (B, d)."""

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.mlp = nn.Sequential(nn.Linear(dim, dim // 2), nn.ReLU(), nn.Linear(dim // 2, 4 * channels))
        self.register_buffer("start", torch.tensor([1.0, 0.0, 0.0, 0.0]))
        self.register_buffer("reach", torch.tensor([1.0, 1.0, 0.5, 0.5]))

    def forward(self, x: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """Applies it to `x` (B, C, H, W)."""
        change = 2.0 * torch.sigmoid(self.mlp(token)) - 1.0
        theta = change.view(-1, self.channels, 1, 1, 4) * self.reach + self.start
        return torch.maximum(x * theta[..., 0] + theta[..., 2], x * theta[..., 1] + theta[..., 3])


class MobileToFormer(nn.Module):
    """Tokens ask the feature map: only queries and the output are projected."""

    def __init__(self, dim: int, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (channels // heads) ** -0.5
        self.query, self.output = nn.Linear(dim, channels), nn.Linear(channels, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Returns the new tokens (B, M, d)."""
        batch, tokens, _ = z.shape
        q = self.query(z).view(batch, tokens, self.heads, -1).transpose(1, 2)
        kv = x.flatten(2).view(batch, self.heads, q.shape[-1], -1)
        attention = ((q @ kv) * self.scale).softmax(dim=-1)
        gathered = (attention @ kv.transpose(2, 3)).transpose(1, 2).reshape(batch, tokens, -1)
        return self.norm(z + self.output(gathered))


class Former(nn.Module):
    """Transformer block on the tokens, norm after the residual sum."""

    eager_attention = False

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Returns the new tokens (B, M, d)."""
        z = self.norm1(z + self.attention(z, z, z, need_weights=self.eager_attention)[0])
        return self.norm2(z + self.mlp(z))


class Mobile(nn.Module):
    """Inverted bottleneck with dynamic ReLUs; residual when the shape stays."""

    def __init__(self, dim: int, cin: int, cout: int, stride: int, expand: int = 2) -> None:
        super().__init__()
        hidden = cin * expand
        self.expand = nn.Sequential(nn.Conv2d(cin, hidden, 1, bias=False), nn.BatchNorm2d(hidden))
        depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(hidden))
        self.project = nn.Sequential(nn.Conv2d(hidden, cout, 1, bias=False), nn.BatchNorm2d(cout))
        self.act1, self.act2 = DynamicReLU(dim, hidden), DynamicReLU(dim, hidden)
        self.residual = stride == 1 and cin == cout

    def forward(self, x: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """Returns the new feature map."""
        y = self.act1(self.expand(x), token)
        y = self.project(self.act2(self.depthwise(y), token))
        return x + y if self.residual else y


class FormerToMobile(nn.Module):
    """The feature map asks the tokens: only keys and values are projected."""

    def __init__(self, dim: int, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (channels // heads) ** -0.5
        self.key, self.value = nn.Linear(dim, channels), nn.Linear(dim, channels)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Returns the new feature map."""
        batch, channels, height, width = x.shape
        split = (batch, z.shape[1], self.heads, channels // self.heads)
        q = x.flatten(2).view(batch, self.heads, split[-1], -1).transpose(2, 3)
        k, v = self.key(z).view(split).permute(0, 2, 3, 1), self.value(z).view(split).transpose(1, 2)
        attention = ((q @ k) * self.scale).softmax(dim=-1)
        return x + (attention @ v).transpose(2, 3).reshape(batch, channels, height, width)


class MobileFormerBlock(nn.Module):
    """Mobile -> Former, Former, Mobile, Former -> Mobile."""

    def __init__(self, dim: int, cin: int, cout: int, stride: int, heads: int = 2) -> None:
        super().__init__()
        self.to_former, self.former = MobileToFormer(dim, cin, heads), Former(dim, heads)
        self.mobile, self.to_mobile = Mobile(dim, cin, cout, stride), FormerToMobile(dim, cout, heads)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the new feature map and the new tokens."""
        z = self.former(self.to_former(x, z))
        x = self.mobile(x, z[:, 0])
        return self.to_mobile(x, z), z


class MobileFormer(nn.Module):
    """Stem, four Mobile-Former blocks on two resolutions, and a head on (pooled map, first token)."""

    def __init__(self, dim: int = 16, tokens: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(1, tokens, dim))
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        shapes = ((8, 12, 2), (12, 12, 1), (12, 16, 2), (16, 16, 1))
        self.blocks = nn.ModuleList(MobileFormerBlock(dim, *shape) for shape in shapes)
        self.last = nn.Sequential(nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(32 + dim, 32), nn.Hardswish(), nn.Linear(32, classes))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Class scores (B, classes) of images (B, 3, H, W)."""
        x, z = self.stem(image), self.tokens.expand(image.shape[0], -1, -1)
        for block in self.blocks:
            x, z = block(x, z)
        pooled = self.last(x).mean(dim=(2, 3))
        return self.head(torch.cat((pooled, z[:, 0]), dim=1))


def architectures() -> list[Architecture]:
    """Mobile-Former, for every PyTorch exporter."""
    shape = (1, 3, 64, 64)
    note = "4 Mobile->Former and 4 Former->Mobile cross attentions; the Former's own attention is no bridge"
    build = seeded("mobile_former", shape, MobileFormer)
    return [Architecture("mobile_former", "mobileformer", build, shape, 8, 12, note, FULL)]
