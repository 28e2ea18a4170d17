"""How errors are weighted, and which weighting keeps the outputs closer on samples that the search did not see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from ..backward import LossSpec, fisher_weights, regularize
from ..blocks import Block
from ..recipes import Reconstruction
from .layers import Layer
from .objective import Metric, Objective

REGULARIZATION = 0.2  # of the Fisher diagonal, see ``backward.regularize``
AUTO: tuple[Metric, ...] = ("mse", "fisher")  # what ``auto`` tries; the first wins a tie
SEARCHED_SHARE = 0.75  # of the samples at most, where some are held out


@dataclass(frozen=True)
class Split:
    """Batches that ranges are searched on, and those behind them, which judge the weightings.

    A weighting changes the search of ranges only, so the layers are rounded on all samples with every weighting.

    Args:
        batches: How many, from the first, the search and the Fisher weights may see.
        samples: Samples in them.
        held_out: Samples in the others; 0 where there is only one batch.
    """

    batches: int
    samples: int
    held_out: int


def split_samples(rows: Sequence[int], most: int, share: float = SEARCHED_SHARE) -> Split:
    """Hold out the batches that the search does not need, a quarter of the samples at least.

    Args:
        rows: Samples of each batch.
        most: Samples that the search uses at most.
        share: The same as a share of all.
    """
    limit = min(most, int(share * sum(rows)))
    count, samples = 0, 0
    for row in rows:
        if count and samples + row > limit:
            break
        count, samples = count + 1, samples + row
    return Split(count, samples, sum(rows) - samples)


@dataclass(frozen=True)
class Comparison:
    """Weightings that were tried, by the divergence that they left.

    Args:
        samples: Samples that they were judged on.
        held_out: Whether the search did not see these samples.
        divergence: Weighting -> mean divergence of the outputs from the float ones.
        root: Weighting -> mean root of the divergence, which decides, see ``is_worse``.
    """

    samples: int
    held_out: bool
    divergence: Mapping[str, float]
    root: Mapping[str, float]

    @property
    def best(self) -> str:
        """The weighting of least root."""
        return min(self.root, key=lambda name: self.root[name])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the report."""
        return {
            "samples": self.samples,
            "held_out": self.held_out,
            "divergence": dict(self.divergence),
            "root_divergence": dict(self.root),
        }


def compare_weightings(names: Sequence[str], each: Sequence[np.ndarray], split: Split) -> Comparison:
    """Judge weightings by the samples held out, or by all where none are.

    Args:
        names: The weightings.
        each: Divergence of every sample for each of them, see ``Divergence.each``.
        split: Which samples were held out.
    """
    held = [np.maximum(values[-split.held_out :] if split.held_out else values, 0.0) for values in each]
    return Comparison(
        len(held[0]),
        split.held_out > 0,
        {name: float(values.mean()) for name, values in zip(names, held, strict=True)},
        {name: float(np.sqrt(values).mean()) for name, values in zip(names, held, strict=True)},
    )


def metrics_of(settings: Reconstruction) -> tuple[Metric, ...]:
    """Metrics to reconstruct with: one, or those that ``auto`` compares; without a search they all do the same."""
    if settings.metric != "auto":
        return (settings.metric,)
    return AUTO if settings.search else AUTO[:1]


def make_objective(
    metric: Metric,
    proto: onnx.ModelProto,
    blocks: Sequence[Block],
    batches: Sequence[Mapping[str, np.ndarray]],
    shapes: Mapping[str, tuple[int, ...]],
    loss: LossSpec,
    seed: int,
    threads: int,
    layers: Sequence[Layer] = (),
) -> tuple[Objective, str]:
    """The objective of a metric, and what it is in words.

    Args:
        metric: The metric.
        proto: Float model.
        blocks: Blocks whose outputs are weighted.
        batches: Samples that the Fisher information is taken from.
        shapes: Concrete shape of every tensor.
        loss: What the outputs are.
        seed: Seed of the Fisher draws.
        threads: Threads of ONNX Runtime.
        layers: Layers whose output positions are weighted, too.
    """
    if metric != "fisher":
        return Objective(metric), metric
    made = {name for node in proto.graph.node for name in node.output}
    targets = [name for block in blocks for name in block.outputs if name in made and len(shapes.get(name, ())) > 1]
    outputs = {layer.node: layer for layer in layers if layer.output in made and len(shapes.get(layer.output, ())) > 1}
    wanted = [*targets, *(layer.output for layer in outputs.values())]
    found = fisher_weights(proto, wanted, batches, shapes, loss=loss, seed=seed, threads=threads)
    elementwise = {name: found.elementwise(name, REGULARIZATION) for name in targets}
    positions = {
        node: regularize(found.diagonal[layer.output].mean(-1 if layer.geometry is None else 1), REGULARIZATION)
        for node, layer in outputs.items()
    }
    return Objective("fisher", elementwise, positions), f"fisher of {loss.describe()}"
