"""The training loop: resumable at any checkpoint, one JSON line of log per epoch."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from .architectures import INPUT_SIDE, build
from .augment import crop_and_flip, to_batch
from .datasets import Images, load_images, split_train_validation
from .optimizer import Muon, takes_muon
from .recipe import DATASETS, Recipe
from .speed import choose_fast_kernels, use_plain_attention

CHECKPOINT = "checkpoint.pt"
CURVE = "curve.jsonl"


def cached_images(dataset: str, data: Path, split: str, cache: Path) -> Images:
    """Read a split, decoding it only the first time.

    Args:
        dataset: key of `DATASETS`.
        data: folder of the dataset.
        split: "train" or "test".
        cache: folder for the decoded copy (npz, not compressed).
    """
    path = cache / f"{dataset}_{split}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as npz:
            return Images(npz["pixels"], npz["labels"])
    images = load_images(dataset, data, split)
    cache.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}_{path.name}")
    np.savez(partial, pixels=images.pixels, labels=images.labels)
    partial.replace(path)
    return images


def make_optimizers(model: nn.Module, recipe: Recipe) -> list[tuple[torch.optim.Optimizer, float]]:
    """The optimizers with the peak of their learning rates: Muon for hidden matrices if asked for, AdamW for the rest.

    Weight decay is on matrices and kernels only.
    """
    matrices = [p for name, p in model.named_parameters() if recipe.muon_rate and takes_muon(name, p)]
    taken = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in taken]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    made: list[tuple[torch.optim.Optimizer, float]] = [(adamw, recipe.learning_rate)]
    if matrices:
        made.append((Muon(matrices, recipe.muon_rate, recipe.weight_decay), recipe.muon_rate))
    return made


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware; elsewhere bfloat16 is slower than float32."""
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name)() for name in names if hasattr(torch.cpu, name))


def autocast() -> torch.autocast:
    """Bfloat16 where the processor has it, float32 elsewhere."""
    return torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16())


@torch.inference_mode()
def accuracy(model: nn.Module, images: Images, recipe: Recipe, side: int = INPUT_SIDE) -> float:
    """Top-1 on `images`, 0..1, with the model in evaluation mode."""
    model.eval()
    dataset = DATASETS[recipe.dataset]
    right = 0
    for start in range(0, len(images), 256):
        part = images.take(slice(start, start + 256))
        with autocast():
            logits = model(to_batch(part.pixels, side, dataset.mean, dataset.std))
        right += int((logits.argmax(1).numpy() == part.labels).sum())
    return right / len(images)


def drop_patches(model: nn.Module, share: float) -> None:
    """Let a plain transformer see only `share` less of its patches in training; other models have no such layer."""
    layer = getattr(model, "patch_drop", None)
    if hasattr(layer, "prob"):
        layer.prob = share


class Run:
    """One training run and its files in a folder.

    Attributes:
        step: steps done, 0..total.
        seconds: processor time of the training so far, all threads together.
        total: steps of the whole run.
    """

    def __init__(self, recipe: Recipe, train: Images, validation: Images, folder: Path):
        """Build the model with the seed of the recipe, or take up the checkpoint in `folder`."""
        torch.manual_seed(recipe.seed)
        use_plain_attention()
        self.recipe, self.train, self.validation, self.folder = recipe, train, validation, folder
        self.dataset = DATASETS[recipe.dataset]
        self.model = build(recipe.architecture, len(self.dataset.classes)).to(memory_format=torch.channels_last)
        choose_fast_kernels(self.model)
        self.optimizers = make_optimizers(self.model, recipe)
        self.per_epoch = len(train) // recipe.batch
        self.total = self.per_epoch * recipe.epochs
        self.step, self.seconds = 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CHECKPOINT).is_file():
            self._resume()

    def _resume(self) -> None:
        state = torch.load(self.folder / CHECKPOINT, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        for (optimizer, _), saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Write the checkpoint so that an interruption leaves the old one or the new one, never half."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer, _ in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "finished": self.step == self.total,
        }
        partial = self.folder / f".{CHECKPOINT}"
        torch.save(state, partial)
        partial.replace(self.folder / CHECKPOINT)

    def batch_at(self, step: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Augmented batch of a step; depends on the seed and the step only, so a resumed run sees the same."""
        epoch, place = divmod(step, self.per_epoch)
        order = np.random.default_rng((self.recipe.seed, epoch)).permutation(len(self.train))
        index = order[place * self.recipe.batch : (place + 1) * self.recipe.batch]
        rng = np.random.default_rng((self.recipe.seed, epoch, place))
        pixels = crop_and_flip(self.train.pixels[index], self.dataset.pad, rng)
        return to_batch(pixels, side, self.dataset.mean, self.dataset.std), torch.from_numpy(self.train.labels[index])

    def train_step(self) -> float:
        """Do one step and return its loss."""
        progress = self.step / self.total
        x, target = self.batch_at(self.step, self.recipe.side_at(progress))
        for optimizer, peak in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * self.recipe.cycle_at(progress)
        drop_patches(self.model, self.recipe.patch_drop if progress < self.recipe.drop_until else 0.0)
        with autocast():
            logits = self.model(x)
        loss = functional.cross_entropy(logits.float(), target, label_smoothing=self.recipe.smoothing)
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        for optimizer, _ in self.optimizers:
            optimizer.step()
        self.step += 1
        return loss.item()

    def run(self, checkpoint_seconds: float = 300.0) -> None:
        """Train to the end; save every `checkpoint_seconds` and after each epoch."""
        losses: list[float] = []
        mark, saved = time.process_time(), time.monotonic()
        self.model.train()
        while self.step < self.total:
            losses.append(self.train_step())
            now = time.process_time()
            self.seconds, mark = self.seconds + now - mark, now
            if self.step % self.per_epoch == 0:
                self._end_epoch(losses)
                losses = []
            elif time.monotonic() - saved < checkpoint_seconds:
                continue
            self.save()
            saved = time.monotonic()

    def _end_epoch(self, losses: list[float]) -> None:
        side = self.recipe.side_at((self.step - 1) / self.total)
        top1 = accuracy(self.model, self.validation, self.recipe, side)
        self.model.train()
        self.log(
            epoch=self.step // self.per_epoch,
            side=side,
            loss=round(float(np.mean(losses)), 4),
            validation=round(top1, 4),
            core_minutes=round(self.seconds / 60, 1),
        )

    def log(self, **values: Any) -> None:
        """Append one line to the curve."""
        with (self.folder / CURVE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def train(recipe: Recipe, data: Path, folder: Path, cache: Path) -> float:
    """Train (or finish training) one model and report its accuracy on the test images.

    Args:
        recipe: what to train.
        data: folder of the dataset.
        folder: where the checkpoint and the curve go.
        cache: where decoded images go.

    Returns:
        Top-1 on the test split, 0..1.
    """
    torch.set_flush_denormal(True)
    training, validation = split_train_validation(
        cached_images(recipe.dataset, data, "train", cache), recipe.validation, recipe.seed
    )
    run = Run(recipe, training, validation, folder)
    finished = run.step == run.total
    run.run()
    top1 = accuracy(run.model, cached_images(recipe.dataset, data, "test", cache), recipe)
    if not finished:
        run.log(test=round(top1, 4), core_minutes=round(run.seconds / 60, 1))
    return top1
