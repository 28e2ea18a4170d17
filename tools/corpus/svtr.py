"""Two small text recognisers after SVTR (Du et al., arXiv 2205.00159).

`svtr_neck` is the form in which text recognition is deployed most: a depthwise-separable backbone that keeps
the width, a neck that turns the last map into a row of tokens, mixes them and goes back to a map, and a CTC head
with softmax. `svtr_stages` is the paper's own form: overlapping convolutional patch embedding, three stages of
local (masked) or global mixing blocks, and convolutions which merge the height between them.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

from .record import Architecture
from .timm_models import BRIEF, FULL, seeded

CLASSES = 37


def conv_norm(
    cin: int,
    cout: int,
    kernel: tuple[int, int],
    act: type[nn.Module],
    stride: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> nn.Sequential:
    """Convolution with same padding, batch norm and activation."""
    padding = (kernel[0] // 2, kernel[1] // 2)
    conv = nn.Conv2d(cin, cout, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), act())


class Mixing(nn.Module):
    """Self-attention over (B, N, C) tokens; `window` limits it to a neighbourhood in `grid` (height, width)."""

    def __init__(self, dim: int, heads: int, grid: tuple[int, int] | None, window: tuple[int, int] | None) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.register_buffer("mask", _local_mask(grid, window) if grid and window else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mixes tokens."""
        channels = x.shape[2]
        qkv = self.qkv(x).reshape(x.shape[0], -1, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * self.scale, qkv[1], qkv[2]
        attention = q @ k.transpose(-2, -1)
        if self.mask is not None:
            attention = attention + self.mask
        mixed = attention.softmax(dim=-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(x.shape[0], -1, channels))


def _local_mask(grid: tuple[int, int], window: tuple[int, int]) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    far = (rows[:, None] - rows).abs() > window[0] // 2
    far |= (columns[:, None] - columns).abs() > window[1] // 2
    return torch.zeros(1, 1, *far.shape).masked_fill(far, float("-inf"))


class MixingBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(
        self, dim: int, act: type[nn.Module], grid: tuple[int, int] | None = None, window: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.mixer = Mixing(dim, 4, grid, window)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), act(), nn.Linear(2 * dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mixes tokens (B, N, C)."""
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SvtrNeck(nn.Module):
    """Convolutional backbone, SVTR neck, CTC head; the width may vary."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_norm(3, 8, (3, 3), nn.Hardswish, (2, 2))]
        for cin, cout, stride in ((8, 16, (2, 1)), (16, 16, (2, 2)), (16, 24, (2, 1)), (24, 32, (1, 1))):
            layers += [conv_norm(cin, cin, (3, 3), nn.Hardswish, stride, groups=cin)]
            layers += [conv_norm(cin, cout, (1, 1), nn.Hardswish)]
        self.backbone, self.pool = nn.Sequential(*layers), nn.AvgPool2d((3, 2))
        self.squeeze = nn.Sequential(conv_norm(32, 16, (1, 3), nn.SiLU), conv_norm(16, 24, (1, 1), nn.SiLU))
        self.blocks = nn.Sequential(MixingBlock(24, nn.SiLU), MixingBlock(24, nn.SiLU))
        self.norm = nn.LayerNorm(24, eps=1e-6)
        self.expand = conv_norm(24, 32, (1, 1), nn.SiLU)
        self.fuse = nn.Sequential(conv_norm(64, 16, (1, 3), nn.SiLU), conv_norm(16, 24, (1, 1), nn.SiLU))
        self.head = nn.Linear(24, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Character probabilities (B, W / 8, CLASSES) of line images (B, 3, 48, W)."""
        x = self.pool(self.backbone(image))
        y = self.squeeze(x)
        batch, channels, height, width = y.shape
        tokens = self.norm(self.blocks(y.flatten(2).permute(0, 2, 1)))
        y = tokens.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        y = self.fuse(torch.cat((x, self.expand(y)), dim=1))
        return self.head(y.squeeze(2).permute(0, 2, 1)).softmax(dim=2)


class SvtrStages(nn.Module):
    """Patch embedding, three stages of mixing blocks with convolutional merging, combining, CTC head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(conv_norm(3, 8, (3, 3), nn.GELU, (2, 2)), conv_norm(8, 16, (3, 3), nn.GELU, (2, 2)))
        self.position = nn.Parameter(torch.zeros(1, 64, 16))
        self.grids, dims, self.stages, self.merges = ((8, 8), (4, 8), (2, 8)), (16, 16, 24), nn.ModuleList(), []
        for stage, (grid, dim) in enumerate(zip(self.grids, dims, strict=True)):
            local = MixingBlock(dim, nn.GELU, grid, (5, 5)) if stage < 2 else MixingBlock(dim, nn.GELU)
            self.stages.append(nn.Sequential(local, MixingBlock(dim, nn.GELU)))
        merges = [nn.Conv2d(cin, cout, 3, (2, 1), 1) for cin, cout in itertools.pairwise(dims)]
        self.merges = nn.ModuleList(merges)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims[1:])
        self.last = nn.Sequential(nn.Linear(24, 24), nn.Hardswish())
        self.head = nn.Linear(24, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Character scores (B, 8, CLASSES) of line images (B, 3, 32, 32)."""
        x = self.embed(image).flatten(2).transpose(1, 2) + self.position
        for i, stage in enumerate(self.stages):
            if i > 0:
                x = x.transpose(1, 2).reshape(x.shape[0], x.shape[2], *self.grids[i - 1])
                x = self.norms[i - 1](self.merges[i - 1](x).flatten(2).transpose(1, 2))
            x = stage(x)
        x = x.transpose(1, 2).reshape(x.shape[0], x.shape[2], *self.grids[-1])
        return self.head(self.last(x.mean(dim=2).transpose(1, 2)))


def architectures() -> list[Architecture]:
    """Both recognisers, for the PyTorch exporters."""
    neck, stages = (1, 3, 48, 160), (1, 3, 32, 32)
    return [
        Architecture(
            "svtr_neck",
            "svtr",
            seeded("svtr_neck", neck, SvtrNeck),
            neck,
            1,
            2,
            "the neck's 1x1 conv, flatten, first qkv; the softmax of the CTC head is no attention",
            FULL,
            dynamic_width=True,
        ),
        Architecture(
            "svtr_stages",
            "svtr",
            seeded("svtr_stages", stages, SvtrStages),
            stages,
            3,
            6,
            "patch embedding and one after each merging convolution (stages 2, 3)",
            BRIEF,
        ),
    ]
