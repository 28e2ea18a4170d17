"""Candidates of a block re-ranked by the divergence of the model's outputs: quantized up to the block, float behind it.

The error at a block's outputs says little about which way the classes move; a run of the float model behind the block
does, at many times the cost. So only the best few candidates by that error are judged by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import onnx

from ..backward import Head
from ..runtime import run_at_once, share_threads
from .divergence import divergence_of, is_worse
from .trial import Cut, Feeds, Region, cut_region

Candidate = TypeVar("Candidate")


@dataclass(frozen=True)
class Reranking:
    """What a sweep needs to judge by the model's outputs.

    Args:
        heads: What the outputs are.
        makers: Tensor of a head -> index of the block that makes it.
        wanted: Float values of these tensors; one dict for each batch.
        rows: Samples of each batch.
        batches: Indices of the batches to judge on, the first to use first.
        samples: Samples that each block's candidates are judged on; none where it is 0.
    """

    heads: tuple[Head, ...]
    makers: Mapping[str, int]
    wanted: Sequence[Feeds] = field(repr=False)
    rows: Sequence[int]
    batches: Sequence[int]
    samples: Sequence[int]


@dataclass(frozen=True)
class Suffix:
    """The float model behind a block.

    Args:
        region: From the tensors alive behind the block to the heads; None where the block makes them all.
        heads: Those that the block or the region makes.
        inner: Tensors of heads that the block makes.
        batches: Indices of the batches to judge on.
        rows: Samples of each of them.
        carried: Tensors that pass by the block, as the quantized graph gives them; one dict for each of them.
        wanted: Float values of the heads; one dict for each of them.
    """

    region: Region | None = field(repr=False)
    heads: tuple[Head, ...]
    inner: tuple[str, ...]
    batches: tuple[int, ...]
    rows: tuple[int, ...]
    carried: Sequence[Feeds] = field(repr=False)
    wanted: Sequence[Feeds] = field(repr=False)


def cut_suffix(
    proto: onnx.ModelProto, reranking: Reranking, index: int, alive: Sequence[str], found: Sequence[Feeds]
) -> Suffix | None:
    """The suffix of block ``index``; None where its candidates are not judged, or where no output depends on it.

    Args:
        proto: Float model with shapes inferred.
        reranking: Heads, samples and their float values.
        index: The block.
        alive: Tensors that are read behind the block, its own outputs among them.
        found: Tensors in front of the block as the quantized graph gives them; one dict for each batch.
    """
    heads = tuple(head for head in reranking.heads if reranking.makers.get(head.tensor, -1) >= index)
    batches, seen = [], 0
    for batch in reranking.batches:
        if seen >= reranking.samples[index]:
            break
        batches.append(batch)
        seen += reranking.rows[batch]
    if not heads or not batches:
        return None
    inner = tuple(head.tensor for head in heads if reranking.makers[head.tensor] == index)
    later = list(dict.fromkeys(head.tensor for head in heads if head.tensor not in inner))
    region = cut_region(proto, alive, later, []) if later else None
    passed = region.entering if region else ()
    return Suffix(
        region,
        heads,
        inner,
        tuple(batches),
        tuple(reranking.rows[batch] for batch in batches),
        [{name: found[batch][name] for name in passed if name in found[batch]} for batch in batches],
        [{head.tensor: reranking.wanted[batch][head.tensor] for head in heads} for batch in batches],
    )


class OutputJudge:
    """Divergence of the model's outputs for values of a block's inputs that are searched."""

    def __init__(self, suffix: Suffix, block: Cut, found: Sequence[Feeds], threads: int) -> None:
        """Open the session behind the block.

        Args:
            suffix: What is behind the block.
            block: The block; its session also gives ``suffix.inner``.
            found: Tensors that enter the block; one dict for each batch of the sweep.
            threads: Threads in all.
        """
        self._suffix, self._block, self._found = suffix, block, found
        share = share_threads(threads, len(suffix.batches))
        self._at_once = share.at_once
        self._behind = suffix.region.open(share.each) if suffix.region else None

    def each(self, given: Feeds) -> np.ndarray:
        """Divergence of every sample: float64 [samples].

        Args:
            given: Scales, zero points, weights and biases of the block.
        """
        suffix = self._suffix
        outputs = list(dict.fromkeys((*self._block.leaving, *suffix.inner)))

        def judge(place: int) -> np.ndarray:
            found = self._block.run(self._found[suffix.batches[place]], given, outputs)
            if self._behind is not None:
                found |= self._behind.run({**suffix.carried[place], **found}, {})
            return divergence_of(suffix.heads, suffix.wanted[place], found, suffix.rows[place])

        return np.concatenate(list(run_at_once(judge, range(len(suffix.batches)), self._at_once)))


def least_divergence(candidates: Sequence[Candidate], each: Callable[[Candidate], np.ndarray]) -> int:
    """Index of the candidate with which the outputs stay closest; an earlier one unless a later one is clearly better.

    Args:
        candidates: The best first, as far as is known.
        each: Divergence of every sample with a candidate.
    """
    best, least = 0, each(candidates[0])
    for index, candidate in enumerate(candidates[1:], 1):
        found = each(candidate)
        if is_worse(found, least):
            best, least = index, found
    return best
