"""A small MobileViT in Keras (channels last), written from the paper (Mehta and Rastegari, arXiv 2110.02178)."""

from __future__ import annotations

from functools import partial

import keras
import numpy as np
from keras import layers, ops

from .record import Architecture

NOTE = "one per MobileViT block: 1x1 convolution, unfold (channels last, so no transpose of channels), first query"


def conv(x: keras.KerasTensor, filters: int, kernel: int, stride: int = 1, act: bool = True) -> keras.KerasTensor:
    """Convolution, batch norm, SiLU."""
    x = layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization(epsilon=1e-5)(x)
    return layers.Activation("silu")(x) if act else x


def inverted_residual(x: keras.KerasTensor, filters: int, stride: int) -> keras.KerasTensor:
    """MobileNetV2 block with expansion 2."""
    y = conv(x, 2 * x.shape[-1], 1)
    y = layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False)(y)
    y = layers.Activation("silu")(layers.BatchNormalization(epsilon=1e-5)(y))
    y = conv(y, filters, 1, act=False)
    return layers.Add()([x, y]) if stride == 1 and x.shape[-1] == filters else y


@keras.saving.register_keras_serializable(package="corpus")
class Unfold(layers.Layer):
    """(B, H, W, C) -> (B, p * p, H * W / p^2, C)."""

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """Cuts 2x2 patches."""
        _, height, width, channels = x.shape
        x = ops.reshape(x, (-1, height // 2, 2, width // 2, 2, channels))
        return ops.reshape(ops.transpose(x, (0, 2, 4, 1, 3, 5)), (-1, 4, height * width // 4, channels))


@keras.saving.register_keras_serializable(package="corpus")
class Fold(layers.Layer):
    """The inverse of `Unfold`; needs the height and width of the map."""

    def __init__(self, height: int, width: int, **options: object) -> None:
        super().__init__(**options)
        self.height, self.width = height, width

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """Puts 2x2 patches together."""
        x = ops.reshape(x, (-1, 2, 2, self.height // 2, self.width // 2, x.shape[-1]))
        return ops.reshape(ops.transpose(x, (0, 3, 1, 4, 2, 5)), (-1, self.height, self.width, x.shape[-1]))


@keras.saving.register_keras_serializable(package="corpus")
class DotAttention(layers.Layer):
    """Softmax attention on (B, P, N, 3 C) by matmuls, as many models spell it out."""

    def __init__(self, heads: int, **options: object) -> None:
        super().__init__(**options)
        self.heads = heads

    def call(self, qkv: keras.KerasTensor) -> keras.KerasTensor:
        """Returns (B, P, N, C)."""
        _, patch, tokens, width = qkv.shape
        dim = width // 3
        qkv = ops.reshape(qkv, (-1, patch, tokens, 3, self.heads, dim // self.heads))
        q, k, v = ops.unstack(ops.transpose(qkv, (3, 0, 1, 4, 2, 5)), 3, axis=0)
        scores = ops.matmul(q, ops.transpose(k, (0, 1, 2, 4, 3))) * (dim // self.heads) ** -0.5
        mixed = ops.matmul(ops.softmax(scores, axis=-1), v)
        return ops.reshape(ops.transpose(mixed, (0, 1, 3, 2, 4)), (-1, patch, tokens, dim))


def transformer(x: keras.KerasTensor, dim: int, einsum: bool, heads: int = 4) -> keras.KerasTensor:
    """Pre-norm transformer block, with Keras' own attention (einsum) or with matmuls."""
    y = layers.LayerNormalization(epsilon=1e-5)(x)
    if einsum:
        y = layers.MultiHeadAttention(heads, dim // heads)(y, y)
    else:
        y = layers.Dense(dim)(DotAttention(heads)(layers.Dense(3 * dim)(y)))
    x = layers.Add()([x, y])
    y = layers.LayerNormalization(epsilon=1e-5)(x)
    y = layers.Dense(dim)(layers.Dense(2 * dim, activation="silu")(y))
    return layers.Add()([x, y])


def mobilevit_block(x: keras.KerasTensor, dim: int, depth: int, einsum: bool) -> keras.KerasTensor:
    """Local convolutions, transformers on unfolded patches, projection, fusion with the input."""
    channels = x.shape[-1]
    y = layers.Conv2D(dim, 1, use_bias=False)(conv(x, channels, 3))
    height, width = y.shape[1:3]
    y = Unfold()(y)
    for _ in range(depth):
        y = transformer(y, dim, einsum)
    y = Fold(height, width)(layers.LayerNormalization(epsilon=1e-5)(y))
    return conv(layers.Concatenate()([x, conv(y, channels, 1)]), channels, 3)


def mobilevit(einsum: bool = True) -> keras.Model:
    """The whole classifier, with random weights."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(1234)
    image = layers.Input((128, 128, 3), name="image")
    x = inverted_residual(inverted_residual(conv(image, 8, 3, 2), 8, 1), 8, 2)
    for filters, dim, depth in ((8, 12, 2), (12, 16, 2), (12, 16, 1)):
        x = mobilevit_block(inverted_residual(x, filters, 2), dim, depth, einsum)
    x = layers.GlobalAveragePooling2D()(conv(x, 32, 1))
    model = keras.Model(image, layers.Dense(10, name="scores")(x), name="mobilevit")
    randomize(model)
    return model


def randomize(model: keras.Model) -> None:
    """Random weights as for PyTorch's models; batch norm statistics are measured on noise, then perturbed."""
    random = np.random.default_rng(99)
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    for variable in model.trainable_variables:
        shape, kind = tuple(variable.shape), variable.path.rsplit("/", 1)[-1]
        if kind == "gamma":
            value = random.uniform(0.5, 1.5, shape)
        elif kind in ("beta", "bias"):
            value = 0.1 * random.standard_normal(shape)
        else:
            depthwise = "depthwise" in variable.path
            inputs = np.prod(shape[:2]) if depthwise else variable.shape[0] if len(shape) < 4 else np.prod(shape[:-1])
            value = np.clip(random.standard_normal(shape), -2, 2) / np.sqrt(float(inputs))
        variable.assign(value.astype(np.float32))
    for norm in norms:
        norm.momentum = 0.0
    model(random.standard_normal((8, *model.input_shape[1:])).astype(np.float32), training=True)
    for norm in norms:
        norm.momentum = 0.99
        mean, variance = np.array(norm.moving_mean), np.array(norm.moving_variance)
        norm.moving_mean.assign(mean + 0.1 * np.sqrt(variance) * random.standard_normal(mean.shape))
        norm.moving_variance.assign(np.maximum(variance, 1e-3) * random.uniform(0.8, 1.25, mean.shape))


def architectures() -> list[Architecture]:
    """MobileViT through Keras' own export and through tf2onnx."""
    shape, both = (1, 128, 128, 3), ("keras", "tf2onnx-13", "tf2onnx-18-nchw")
    found = []
    for name, build, exporters in (
        ("keras_mobilevit", mobilevit, both),
        ("keras_mobilevit_matmul", partial(mobilevit, einsum=False), ("tf2onnx-18",)),
    ):
        found.append(Architecture(name, "mobilevit", build, shape, 3, 5, NOTE, exporters, source="keras"))
    return found
