"""What a report page shows beyond numbers: the blocks, histograms of the worst tensors, pictures of disagreements."""

from __future__ import annotations

import base64
import heapq
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from . import calibration as calib
from .comparison import TENSOR_SAMPLES, absolute, check_pair, compare, exposing, open_samples
from .diagnosis.ownership import FloatModel, blocks_of_nodes, read_float_model
from .diagnosis.pairs import ActivationPair, GraphIndex, find_pairs
from .evaluation import Arrays
from .graph.io import read_proto
from .labels import labels_of, load_labels
from .numerics import Histogram
from .runtime import make_session

HISTOGRAMS = 6
BINS = 80
PICTURES = 12
ModelLike = str | os.PathLike[str] | onnx.ModelProto


def compare_for_report(
    float_model: ModelLike,
    int8_model: ModelLike,
    data: Any,
    *,
    labels: str | os.PathLike[str] | np.ndarray | Mapping[str, int] | None = None,
    samples: int = 256,
    seed: int = 0,
    preprocess: calib.Preprocess | str | os.PathLike[str] | None = None,
    skip_unreadable: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """As ``compare``, with what a report page needs besides.

    Args:
        float_model: The float model.
        int8_model: The quantized model.
        data: Data as for ``quantize``.
        labels: See ``compare``.
        samples: See ``compare``.
        seed: See ``compare``.
        preprocess: See ``compare``.
        skip_unreadable: See ``compare``.
        options: The others of ``compare``.

    Returns:
        The result of ``compare``, whose ``tensors`` also name their ``block``, and with ``evidence``: ``found`` (the
        blocks), ``histograms``, ``pictures`` (PNG in base64, at most 12) and ``disagreements`` (how many samples).

    Raises:
        ModelError: A model cannot be used, or the two do not fit together.
        CalibrationError: The data cannot be used.
    """
    disagreements = Disagreements()
    (reference, float_name), (quantized, int8_name) = read_proto(float_model), read_proto(int8_model)
    check_pair(reference, quantized, float_name, int8_name)
    if options.get("jobs", 1) != 1 or options.get("executor") is not None:
        data = absolute(data)
    source = open_samples(reference, data, preprocess, samples, seed, skip_unreadable)
    truth = None if labels is None else load_labels(labels)
    result = compare(float_model, int8_model, source, labels=truth, watch=disagreements, **options)
    known = read_float_model(float_model)
    for row in result["tensors"]:
        number = known.block_of_tensor.get(row["name"])
        row["block"] = known.structure.blocks[number].name if number is not None else None
    result["evidence"] = {
        "found": {"model": result["float"], "blocks": known.structure.to_dict()["blocks"]},
        "kernels": _kernels(quantized, known, result["audit"]),
        "histograms": _histograms(known.proto, quantized, result["tensors"], source),
        "pictures": disagreements.pictures(source, truth),
        "disagreements": disagreements.count,
    }
    return result


class Disagreements:
    """Samples for which the two models answer differently; keeps those where the float model was surest."""

    def __init__(self) -> None:
        self.count = 0
        self._kept: list[tuple[float, int, dict[str, Any]]] = []

    def update(self, ids: Sequence[Any], feeds: Arrays, expected: Arrays, found: Arrays) -> None:
        """Look at one batch; the class scores lie on the last axis of the first output."""
        name = next(iter(expected))
        scores, others = expected[name], found[name]
        if scores.ndim not in (2, 3) or scores.shape[-1] < 2 or len(scores) != len(ids):
            return
        for place, sample in enumerate(ids):
            wanted, given = scores[place].argmax(-1), others[place].argmax(-1)
            if np.array_equal(wanted, given):
                continue
            self.count += 1
            ranked = np.sort(scores[place], axis=-1)
            margin = float(np.mean(ranked[..., -1] - ranked[..., -2]))
            entry = {
                "sample": sample,
                "image": next((feed[place] for feed in feeds.values() if feed.ndim == 4), None),
                **_answers(wanted, given),
            }
            self._keep(margin, -self.count, entry)

    def merge(self, other: Disagreements) -> None:
        """Take in those of later samples."""
        for margin, place, entry in other._kept:
            self._keep(margin, place - self.count, entry)
        self.count += other.count

    def _keep(self, margin: float, place: int, entry: dict[str, Any]) -> None:
        heapq.heappush(self._kept, (margin, place, entry))
        if len(self._kept) > PICTURES:
            heapq.heappop(self._kept)

    def pictures(
        self, source: calib.Source, labels: Mapping[str, int] | np.ndarray | None = None
    ) -> list[dict[str, Any]]:
        """The kept samples, the one where the float model was surest first; those without an image are left out."""
        shown = []
        for _, _, entry in sorted(self._kept, key=lambda item: (-item[0], -item[1])):
            image = entry["image"]
            png = calib.thumbnail(image, source) if image is not None else None
            if png is not None:
                words = {key: value for key, value in entry.items() if key != "image"}
                label = None if labels is None else labels_of([entry["sample"]], labels)[0]
                name, text = str(entry["sample"]), base64.b64encode(png).decode("ascii")
                shown.append({**words, "sample": name, "label": label, "png": text})
        return shown


def _answers(wanted: np.ndarray, given: np.ndarray) -> dict[str, str]:
    """The two answers in words: classes, or at how many positions of a sequence they differ."""
    if wanted.ndim == 0:
        return {"float": f"class {int(wanted)}", "int8": f"class {int(given)}"}
    different = int((wanted != given).sum())
    return {"float": f"{wanted.size} positions", "int8": f"{different} of them differ"}


def _kernels(quantized: onnx.ModelProto, known: FloatModel, audit: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Block -> how many of its convolutions and matrix products run in int8, and how many in float."""
    places = blocks_of_nodes(GraphIndex(quantized.graph), known)
    owner = {node.name: place for node, place in zip(quantized.graph.node, places, strict=True)}
    counts = {block.name: {"int8": 0, "float": 0} for block in known.structure.blocks}
    for kind in ("int8", "float"):
        for node in audit[kind]:
            if node in owner:
                counts[known.structure.blocks[owner[node]].name][kind] += 1
    return counts


def _histograms(
    reference: onnx.ModelProto, quantized: onnx.ModelProto, rows: list[dict[str, Any]], source: calib.Source
) -> list[dict[str, Any]]:
    """Histograms of the worst quantized tensors, over a few samples of the float model."""
    pairs = {
        pair.tensor: pair
        for pair in find_pairs(GraphIndex(quantized.graph))
        if pair.scale.size == 1 and pair.factors[0] == 1
    }
    chosen = [row for row in rows if row["name"] in pairs][:HISTOGRAMS]
    if not chosen:
        return []
    names = [row["name"] for row in chosen]
    session = make_session(exposing(reference, names), optimize=False)
    seen = {name: _Values(pairs[name]) for name in names}
    for done, (_, feeds) in enumerate(source):
        if done >= TENSOR_SAMPLES:
            break
        for name, values in session.run(feeds, names).items():
            seen[name].update(values)
    return [
        {
            "tensor": row["name"],
            "op": row["op"],
            "block": row["block"],
            "sqnr_db": row["sqnr_db"],
            **seen[row["name"]].to_dict(),
        }
        for row in chosen
    ]


class _Values:
    """Streaming histogram of a tensor, with constant memory, and the part of it that lies outside of the codes."""

    def __init__(self, pair: ActivationPair) -> None:
        self.low, self.high = float(pair.low), float(pair.high)
        self._half_step = (self.high - self.low) / max(1, pair.levels - 1) / 2
        self._levels = pair.levels
        self._histogram = Histogram(4096)
        self._outside = self._count = 0

    def update(self, values: np.ndarray) -> None:
        self._histogram.update(values)
        beyond = (values < self.low - self._half_step) | (values > self.high + self._half_step)
        self._outside += int(beyond.sum())
        self._count += values.size

    def to_dict(self) -> dict[str, Any]:
        least, most = (float(end) for end in self._histogram.range())
        low, high = min(least, self.low), max(most, self.high)
        counts, _ = np.histogram(
            self._histogram.centers(), BINS, (low, high), weights=self._histogram.counts[0].astype(np.float64)
        )
        return {
            "low": low,
            "high": high,
            "counts": [int(count) for count in counts],
            "range": [self.low, self.high],
            "levels": self._levels,
            "clipped": self._outside / max(1, self._count),
        }
