"""A small MobileViT in JAX (flax nnx, channels last), written from the paper (arXiv 2110.02178)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .record import Architecture

NOTE = "one per MobileViT block: 1x1 convolution, unfold (channels last, so no transpose of channels), first query"


class ConvNorm(nnx.Module):
    """Convolution, batch norm, optional SiLU."""

    def __init__(
        self, cin: int, cout: int, kernel: int, rngs: nnx.Rngs, stride: int = 1, groups: int = 1, act: bool = True
    ) -> None:
        padding = [(kernel // 2, kernel // 2)] * 2
        options = {"strides": (stride, stride), "padding": padding, "use_bias": False, "feature_group_count": groups}
        self.conv = nnx.Conv(cin, cout, (kernel, kernel), rngs=rngs, **options)
        self.norm, self.act = nnx.BatchNorm(cout, epsilon=1e-5, rngs=rngs), act

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies it to (B, H, W, C)."""
        x = self.norm(self.conv(x))
        return nnx.silu(x) if self.act else x


class InvertedResidual(nnx.Module):
    """MobileNetV2 block with expansion 2."""

    def __init__(self, cin: int, cout: int, stride: int, rngs: nnx.Rngs) -> None:
        self.expand = ConvNorm(cin, 2 * cin, 1, rngs)
        self.depthwise = ConvNorm(2 * cin, 2 * cin, 3, rngs, stride, groups=2 * cin)
        self.project, self.residual = ConvNorm(2 * cin, cout, 1, rngs, act=False), stride == 1 and cin == cout

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies it to (B, H, W, C)."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class Transformer(nnx.Module):
    """Pre-norm transformer block on the last two axes (tokens, channels)."""

    def __init__(self, dim: int, rngs: nnx.Rngs, heads: int = 4) -> None:
        self.heads = heads
        self.norm1, self.norm2 = nnx.LayerNorm(dim, rngs=rngs), nnx.LayerNorm(dim, rngs=rngs)
        self.qkv, self.proj = nnx.Linear(dim, 3 * dim, rngs=rngs), nnx.Linear(dim, dim, rngs=rngs)
        self.fc1, self.fc2 = nnx.Linear(dim, 2 * dim, rngs=rngs), nnx.Linear(2 * dim, dim, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies it to (B, P, N, C)."""
        batch, patch, tokens, dim = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, patch, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv[:, :, :, 0], qkv[:, :, :, 1], qkv[:, :, :, 2]
        scores = jnp.einsum("bpnhd,bpmhd->bphnm", q, k) / np.sqrt(dim // self.heads).astype(np.float32)
        mixed = jnp.einsum("bphnm,bpmhd->bpnhd", nnx.softmax(scores, axis=-1), v)
        x = x + self.proj(mixed.reshape(batch, patch, tokens, dim))
        return x + self.fc2(nnx.silu(self.fc1(self.norm2(x))))


class MobileVitBlock(nnx.Module):
    """Local convolutions, transformers on unfolded patches, projection, fusion with the input."""

    def __init__(self, channels: int, dim: int, depth: int, rngs: nnx.Rngs) -> None:
        self.local = ConvNorm(channels, channels, 3, rngs)
        self.point = nnx.Conv(channels, dim, (1, 1), use_bias=False, rngs=rngs)
        self.blocks = nnx.List([Transformer(dim, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(dim, rngs=rngs)
        self.project, self.fuse = ConvNorm(dim, channels, 1, rngs), ConvNorm(2 * channels, channels, 3, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies it to (B, H, W, C)."""
        y = self.point(self.local(x))
        batch, height, width, dim = y.shape
        y = y.reshape(batch, height // 2, 2, width // 2, 2, dim).transpose(0, 2, 4, 1, 3, 5)
        y = y.reshape(batch, 4, height * width // 4, dim)
        for block in self.blocks:
            y = block(y)
        y = self.norm(y).reshape(batch, 2, 2, height // 2, width // 2, dim).transpose(0, 3, 1, 4, 2, 5)
        y = self.project(y.reshape(batch, height, width, dim))
        return self.fuse(jnp.concatenate((x, y), axis=-1))


class MobileVit(nnx.Module):
    """The whole classifier."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        layers: list[nnx.Module] = [ConvNorm(3, 8, 3, rngs, 2), InvertedResidual(8, 8, 1, rngs)]
        layers += [InvertedResidual(8, 8, 2, rngs)]
        for cin, cout, dim, depth in ((8, 8, 12, 2), (8, 12, 16, 2), (12, 12, 16, 1)):
            layers += [InvertedResidual(cin, cout, 2, rngs), MobileVitBlock(cout, dim, depth, rngs)]
        self.layers = nnx.List([*layers, ConvNorm(12, 32, 1, rngs)])
        self.head = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Class scores (B, 10) of images (B, H, W, 3)."""
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(axis=(1, 2)))


@nnx.jit
def forward(model: MobileVit, x: jax.Array) -> jax.Array:
    """Compiled forward pass; updates batch norm statistics in training mode."""
    return model(x)


def build() -> MobileVit:
    """The classifier with random weights; batch norm statistics measured on noise, then perturbed."""
    random = np.random.default_rng(55)
    model = MobileVit(nnx.Rngs(0))
    norms = [m for _, m in nnx.iter_graph(model) if isinstance(m, nnx.BatchNorm)]
    for module in [m for _, m in nnx.iter_graph(model) if isinstance(m, (nnx.BatchNorm, nnx.LayerNorm))]:
        shape = module.scale.shape
        module.scale[...] = jnp.asarray(random.uniform(0.5, 1.5, shape), jnp.float32)
        module.bias[...] = jnp.asarray(0.2 * random.standard_normal(shape), jnp.float32)
    for norm in norms:
        norm.momentum = 0.0
    model.train()
    forward(model, jnp.asarray(random.standard_normal((8, 128, 128, 3)), jnp.float32))
    model.eval()
    for norm in norms:
        mean, variance = np.asarray(norm.mean[...]), np.asarray(norm.var[...])
        norm.mean[...] = jnp.asarray(mean + 0.1 * np.sqrt(variance) * random.standard_normal(mean.shape), jnp.float32)
        norm.var[...] = jnp.asarray(variance * random.uniform(0.8, 1.25, mean.shape), jnp.float32)
    return model


def architectures() -> list[Architecture]:
    """MobileViT through jax2onnx."""
    exporters = ("jax2onnx-23", "jax2onnx-23-nchw")
    return [Architecture("jax_mobilevit", "mobilevit", build, (1, 128, 128, 3), 3, 5, NOTE, exporters, source="flax")]
