"""The small text recogniser of `svtr.py` (backbone, SVTR neck, CTC head) in PaddlePaddle."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import nn

from .record import Architecture

CLASSES = 37
NOTE = "the neck's 1x1 conv, flatten, first qkv; the softmax of the CTC head is no attention"


def conv_norm(
    cin: int, cout: int, kernel: tuple[int, int], act: type[nn.Layer], stride: tuple[int, int] = (1, 1), groups: int = 1
) -> nn.Sequential:
    """Convolution with same padding, batch norm and activation."""
    padding = (kernel[0] // 2, kernel[1] // 2)
    conv = nn.Conv2D(cin, cout, kernel, stride, padding, groups=groups, bias_attr=False)
    return nn.Sequential(conv, nn.BatchNorm2D(cout), act())


class MixingBlock(nn.Layer):
    """Pre-norm transformer block with global self-attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.dim, self.heads, self.scale = dim, heads, (dim // heads) ** -0.5
        self.norm1, self.norm2 = nn.LayerNorm(dim, epsilon=1e-6), nn.LayerNorm(dim, epsilon=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2, self.act = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim), nn.Swish()

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Mixes tokens (B, N, C)."""
        qkv = self.qkv(self.norm1(x)).reshape((0, -1, 3, self.heads, self.dim // self.heads))
        qkv = qkv.transpose((2, 0, 3, 1, 4))
        q, k, v = qkv[0] * self.scale, qkv[1], qkv[2]
        attention = nn.functional.softmax(q.matmul(k.transpose((0, 1, 3, 2))), axis=-1)
        x = x + self.proj(attention.matmul(v).transpose((0, 2, 1, 3)).reshape((0, -1, self.dim)))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


class SvtrNeck(nn.Layer):
    """Convolutional backbone, SVTR neck, CTC head; the width may vary."""

    def __init__(self) -> None:
        super().__init__()
        layers = [conv_norm(3, 8, (3, 3), nn.Hardswish, (2, 2))]
        for cin, cout, stride in ((8, 16, (2, 1)), (16, 16, (2, 2)), (16, 24, (2, 1)), (24, 32, (1, 1))):
            layers += [conv_norm(cin, cin, (3, 3), nn.Hardswish, stride, groups=cin)]
            layers += [conv_norm(cin, cout, (1, 1), nn.Hardswish)]
        self.backbone, self.pool = nn.Sequential(*layers), nn.AvgPool2D((3, 2))
        self.squeeze = nn.Sequential(conv_norm(32, 16, (1, 3), nn.Swish), conv_norm(16, 24, (1, 1), nn.Swish))
        self.blocks, self.norm = nn.Sequential(MixingBlock(24, 4), MixingBlock(24, 4)), nn.LayerNorm(24, epsilon=1e-6)
        self.expand = conv_norm(24, 32, (1, 1), nn.Swish)
        self.fuse = nn.Sequential(conv_norm(64, 16, (1, 3), nn.Swish), conv_norm(16, 24, (1, 1), nn.Swish))
        self.head = nn.Linear(24, CLASSES)

    def forward(self, image: paddle.Tensor) -> paddle.Tensor:
        """Character probabilities (B, W / 8, CLASSES) of line images (B, 3, 48, W)."""
        x = self.pool(self.backbone(image))
        y = self.squeeze(x)
        height, width = paddle.shape(y)[2], paddle.shape(y)[3]
        tokens = self.norm(self.blocks(y.flatten(2).transpose((0, 2, 1))))
        y = tokens.reshape((0, height, width, 24)).transpose((0, 3, 1, 2))
        y = self.fuse(paddle.concat((x, self.expand(y)), axis=1))
        scores = self.head(y.squeeze(axis=2).transpose((0, 2, 1)))
        return nn.functional.softmax(scores, axis=2)


def build() -> nn.Layer:
    """The recogniser with random weights; batch norm statistics measured on noise, then perturbed."""
    random = np.random.default_rng(77)
    model = SvtrNeck()
    norms = [layer for layer in model.sublayers() if isinstance(layer, nn.BatchNorm2D)]
    for layer in model.sublayers():
        for kind, parameter in layer.named_parameters(include_sublayers=False):
            shape = tuple(parameter.shape)
            is_norm = isinstance(layer, (nn.BatchNorm2D, nn.LayerNorm))
            if kind == "weight" and is_norm:
                value = random.uniform(0.5, 1.5, shape)
            elif kind == "bias":
                value = 0.1 * random.standard_normal(shape)
            else:
                fan_in = shape[0] if isinstance(layer, nn.Linear) else int(np.prod(shape[1:]))
                value = np.clip(random.standard_normal(shape), -2, 2) / np.sqrt(fan_in)
            parameter.set_value(value.astype(np.float32))
    model.train()
    for norm in norms:
        norm._momentum = 0.0
    model(paddle.to_tensor(random.standard_normal((8, 3, 48, 160)).astype(np.float32)))
    for norm in norms:
        mean, variance = norm._mean.numpy(), norm._variance.numpy()
        norm._mean.set_value((mean + 0.1 * np.sqrt(variance) * random.standard_normal(mean.shape)).astype(np.float32))
        norm._variance.set_value((variance * random.uniform(0.8, 1.25, mean.shape)).astype(np.float32))
    model.eval()
    return model


def architectures() -> list[Architecture]:
    """The recogniser through paddle2onnx."""
    exporters = ("paddle2onnx-11", "paddle2onnx-17")
    options = {"dynamic_width": True, "source": "paddlepaddle"}
    return [Architecture("paddle_svtr_neck", "svtr", build, (1, 3, 48, 160), 1, 2, NOTE, exporters, **options)]
