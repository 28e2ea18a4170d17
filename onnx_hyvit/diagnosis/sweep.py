"""Sensitivity of every block, both ways: only this block quantized, and everything quantized but this block."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import calibration as calib
from ..runtime import Progress, Session
from .losses import OutputLoss
from .switches import KINDS, Part, SwitchSession

TOGETHER = 4


@dataclass(frozen=True)
class Sweep:
    """Losses of combinations.

    Args:
        float_twin: Nothing quantized: what is left is weights whose float original was not found.
        everything: All parts quantized.
        kinds: Kind of part -> all but the parts of this kind.
        alone: Block -> only its parts.
        without: Block -> all but its parts.
        tensors: Tensor with a switch of its own -> all but its rounding.
    """

    float_twin: OutputLoss
    everything: OutputLoss
    kinds: dict[str, OutputLoss]
    alone: dict[int, OutputLoss]
    without: dict[int, OutputLoss]
    tensors: dict[str, OutputLoss]


def sweep(reference: Session, session: SwitchSession, source: calib.Source, progress: Progress | None = None) -> Sweep:
    """Run all combinations over the data, batch by batch.

    Args:
        reference: The float model.
        session: The switchable int8 model.
        source: Data.
        progress: Called as ``progress(done, total, text)``.
    """
    parts = session.parts
    blocks = sorted({part.block for part in parts})
    kinds = [kind for kind in KINDS if any(part.kind == kind for part in parts)]
    tensors = [part.tensor for part in parts if part.tensor]
    combinations: dict[Any, Iterable[Part]] = {
        "none": (),
        "all": parts,
        **{kind: [part for part in parts if part.kind != kind] for kind in kinds},
        **{("alone", block): [part for part in parts if part.block == block] for block in blocks},
        **{("without", block): [part for part in parts if part.block != block] for block in blocks},
        **{("tensor", name): [part for part in parts if part.tensor != name] for name in tensors},
    }
    losses = _measure(reference, session, source, combinations, progress, "one block at a time")
    return Sweep(
        losses["none"],
        losses["all"],
        {kind: losses[kind] for kind in kinds},
        {block: losses["alone", block] for block in blocks},
        {block: losses["without", block] for block in blocks},
        {name: losses["tensor", name] for name in tensors},
    )


def best_together(
    reference: Session,
    session: SwitchSession,
    source: calib.Source,
    ranked: list[int],
    progress: Progress | None = None,
) -> list[OutputLoss]:
    """Losses with the first, the first two, ... of the ``ranked`` blocks float, at most ``TOGETHER`` of them."""
    combinations: dict[Any, Iterable[Part]] = {
        count: [part for part in session.parts if part.block not in ranked[:count]]
        for count in range(1, min(TOGETHER, len(ranked)) + 1)
    }
    return list(_measure(reference, session, source, combinations, progress, "blocks together").values())


def first_rows(outputs: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Outputs of the samples alone, where a fixed batch was filled up; outputs without an axis stay."""
    return {name: value[:count] if value.ndim else value for name, value in outputs.items()}


def _measure(
    reference: Session,
    session: SwitchSession,
    source: calib.Source,
    combinations: dict[Any, Iterable[Part]],
    progress: Progress | None,
    text: str,
) -> dict[Any, OutputLoss]:
    losses = {name: OutputLoss() for name in combinations}
    done, total = 0, len(source) * len(combinations)
    for ids, feeds in source:
        expected = first_rows(reference.run(feeds), len(ids))
        for name, on in combinations.items():
            losses[name].update(expected, first_rows(session.run(feeds, on), len(ids)))
            done += len(ids)
            if progress is not None:
                progress(done, total, text)
    return losses
