"""Why a tensor loses accuracy, read off its range, its channels and the codes that it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .tensors import TensorError

WIDE = 3.0  # range of the codes over the range of the values
DOMINANT = 8.0  # a channel's largest value over the median channel's
CLIP_SHARE = 0.3  # of the error that enters
FEW_LEVELS = 128
WEIGHT_SHARE = 0.5
ENOUGH_DB = 40.0  # above this no cause is worth naming


@dataclass(frozen=True)
class Cause:
    """One reason.

    Args:
        kind: ``wide_range``, ``dominant_channels``, ``clipping``, ``few_codes``, ``weights`` or ``residual``.
        text: One sentence with the numbers.
    """

    kind: str
    text: str


def find_causes(row: TensorError, residual: bool) -> list[Cause]:
    """Reasons for the error that enters at a tensor, the plainest first.

    Args:
        row: What was measured.
        residual: Whether the tensor is the sum of two activations.
    """
    if row.entering.sqnr_db >= ENOUGH_DB or not row.low.size:
        return []
    name = row.pair.tensor
    bottom, top = float(row.pair.low.min()), float(row.pair.high.max())
    least, most = float(row.low.min()), float(row.high.max())
    found = []
    width = max(most, 0.0) - min(least, 0.0)
    if width > 0 and (top - bottom) > WIDE * width:
        used = max(2, round(row.pair.levels * width / (top - bottom)))
        text = (
            f"the codes of {name} reach from {bottom:.3g} to {top:.3g}, its values from {least:.3g} to {most:.3g}: "
            f"only {used} of {row.pair.levels} codes are used"
        )
        found.append(Cause("wide_range", text))
    if row.clipped and row.clip_noise > CLIP_SHARE * row.entering.noise:
        share = 100 * row.clipped / row.count
        text = f"{share:.2g} % of the values of {name} lie outside of its range {bottom:.3g} to {top:.3g}"
        found.append(Cause("clipping", text))
    if residual:
        found.append(Cause("residual", f"the residual addition that makes {name} is rounded in int8"))
    dominant = _dominant(row)
    if dominant:
        found.append(dominant)
    if row.by_weights.noise > WEIGHT_SHARE * row.entering.noise:
        text = f"most of the error of {name} comes from the weights of its {row.operator}, not from its own rounding"
        found.append(Cause("weights", text))
    if row.pair.levels <= FEW_LEVELS:
        found.append(Cause("few_codes", f"{name} has {row.pair.levels} codes"))
    return found


def _dominant(row: TensorError) -> Cause | None:
    """Whether a few channels set the range that all share."""
    if row.pair.low.size > 1 or row.low.size < 4:
        return None
    largest = np.maximum(np.abs(row.low), np.abs(row.high))
    median = float(np.median(largest))
    if median <= 0 or largest.max() < DOMINANT * median:
        return None
    few = int((largest > largest.max() / 2).sum())
    if few > len(largest) // 4:
        return None
    text = (
        f"the range of {row.pair.tensor} is set by {few} of {len(largest)} channels "
        f"(the largest {largest.max() / median:.0f}x the median channel)"
    )
    return Cause("dominant_channels", text)


def tensor_row(row: TensorError, block: str, causes: list[Cause]) -> dict[str, Any]:
    """Plain values of a tensor for the report."""
    return {
        "name": row.pair.tensor,
        "op": row.operator,
        "block": block,
        "entering_db": row.entering.sqnr_db,
        "by_weights_db": row.by_weights.sqnr_db,
        "sqnr_db": row.total.sqnr_db,
        "range": [float(row.pair.low.min()), float(row.pair.high.max())],
        "values": [float(row.low.min()), float(row.high.max())] if row.low.size else None,
        "levels": row.pair.levels,
        "clipped": row.clipped / row.count if row.count else 0.0,
        "causes": [{"kind": cause.kind, "text": cause.text} for cause in causes],
    }
