"""What is trained how: one `Recipe` per model of the zoo."""

from __future__ import annotations

import math
from dataclasses import dataclass

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclass(frozen=True)
class Dataset:
    """What a model of this dataset needs to know.

    Attributes:
        classes: class names in label order.
        mean: per channel (RGB), 0..1 scale.
        std: per channel (RGB), 0..1 scale.
        pad: largest random shift in training, pixels of the original image.
    """

    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pad: int


DATASETS = {
    "cifar10": Dataset(CIFAR10_CLASSES, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 4),
    "fashion_mnist": Dataset(FASHION_CLASSES, (0.2860,) * 3, (0.3530,) * 3, 2),
}


@dataclass(frozen=True)
class Recipe:
    """One training run: one cycle of the learning rate, or several equal ones, label smoothing.

    Attributes:
        architecture: key of `zoo.architectures.ARCHITECTURES`.
        dataset: key of `DATASETS`.
        epochs: passes over the training images, in all cycles together.
        cycles: how often the learning rate rises and falls.
        sides: input size in pixels over the run, as (from this share of the steps on, size). Small
            images first make the early epochs cheap; the last part is always at 64.
        batch: images per step.
        learning_rate: peak of the cycle, of AdamW.
        muon_rate: peak of the cycle for hidden weight matrices, which Muon trains; 0 leaves them to AdamW.
        patch_drop: share of the patches that a plain transformer does not see in the first part of the run.
        drop_until: share of the run after which it sees all of them.
        weight_decay: of matrices and convolution kernels; norms and biases have none.
        warmup: share of the steps of a cycle in which the rate rises.
        smoothing: label smoothing, 0..1.
        clip: largest norm of the gradient.
        validation: training images set apart.
        seed: of the weights, the split, the order and the augmentation.
    """

    architecture: str
    dataset: str = "cifar10"
    epochs: int = 16
    cycles: int = 1
    sides: tuple[tuple[float, int], ...] = ((0.0, 64),)
    batch: int = 128
    learning_rate: float = 2e-3
    muon_rate: float = 0.02
    patch_drop: float = 0.0
    drop_until: float = 0.75
    weight_decay: float = 0.05
    warmup: float = 0.2
    smoothing: float = 0.1
    clip: float = 1.0
    validation: int = 5000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a recipe that cannot run."""
        if self.dataset not in DATASETS:
            raise ValueError(f"unknown dataset {self.dataset!r}: expected one of {', '.join(DATASETS)}")
        if not self.sides or self.sides[0][0] != 0.0 or list(self.sides) != sorted(self.sides):
            raise ValueError(f"sides must start at 0.0 and rise, found {self.sides}")

    def side_at(self, progress: float) -> int:
        """Input size in pixels at `progress` (0..1) of the run."""
        return [side for start, side in self.sides if progress >= start][-1]

    def cycle_at(self, progress: float) -> float:
        """Learning rate at `progress` (0..1) as a share of its peak: a linear rise, then half a cosine to zero."""
        progress *= self.cycles
        progress -= min(int(progress), self.cycles - 1)
        if progress < self.warmup:
            return max(progress / self.warmup, 0.01)
        return 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


PROGRESSIVE = ((0.0, 48), (0.45, 64))

# In the order in which `train_zoo.py --all` trains them.
RECIPES = {
    "fashion_mobilevit_xxs": Recipe(
        "mobilevit_xxs",
        "fashion_mnist",
        epochs=7,
        sides=((0.0, 32), (2 / 7, 64)),
        learning_rate=3e-3,
        muon_rate=0.0,
    ),
    "cifar_mobilevit_xxs": Recipe("mobilevit_xxs", epochs=10, sides=PROGRESSIVE),
    "cifar_edgenext_xx_small": Recipe("edgenext_xx_small", epochs=14, sides=PROGRESSIVE),
    "cifar_mobile_former": Recipe("mobile_former", epochs=27, cycles=3, sides=((0.0, 48), (0.15, 64))),
    "cifar_efficientformer": Recipe("efficientformer", epochs=10, sides=PROGRESSIVE),
    "cifar_mobilevitv2_050": Recipe("mobilevitv2_050", epochs=10, sides=PROGRESSIVE),
    "cifar_efficientformerv2_s0": Recipe("efficientformerv2_s0", epochs=6),
    "cifar_swin": Recipe("swin", epochs=3, learning_rate=1e-3),
    "cifar_deit_tiny": Recipe("deit_tiny", epochs=12, cycles=3, learning_rate=1e-3, patch_drop=0.5, drop_until=0.25),
}
