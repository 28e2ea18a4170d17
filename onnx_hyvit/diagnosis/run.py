"""``debug``: where an int8 model loses accuracy, and what to do about it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnx

from .. import calibration as calib
from ..comparison import check_pair
from ..errors import ModelError
from ..graph.io import read_proto
from ..runtime import Progress, make_session
from ..validate import compare_fused, find_saturation
from .advice import NOTHING_TO_GAIN, Advice, by_gain, for_blocks, for_kinds, for_tensors, gain_of, harmless
from .causes import find_causes, tensor_row
from .ownership import FloatModel, blocks_of_nodes, read_float_model
from .pairs import GraphIndex, WeightCodes, find_pairs, find_weights
from .restore import FloatWeights
from .sweep import Sweep, best_together, sweep
from .switches import RESIDUALS, Switchable, SwitchSession, switchable
from .tensors import TensorError, measure_tensors

_MOVES_AND_SHAPES = frozenset(
    {"Constant", "Shape", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
)
BATCH = 8
TENSORS_MEASURED = 6


def debug(
    float_model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    int8_model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    data: Any,
    *,
    samples: int = 64,
    seed: int = 0,
    threads: int = 1,
    preprocess: calib.Preprocess | str | os.PathLike[str] | None = None,
    skip_unreadable: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Tell where an int8 QDQ model loses accuracy: by block, by tensor, and with what remedy.

    Args:
        float_model: The float model.
        int8_model: The QDQ model made from it, by this package or another.
        data: Data as for ``quantize``.
        samples: Samples at most.
        seed: Seed of the choice of samples.
        threads: Threads of ONNX Runtime.
        preprocess: For images, as for ``quantize``.
        skip_unreadable: Leave out unreadable images.
        progress: Called as ``progress(done, total, text)``.

    Returns:
        Plain values: ``measure`` (``kl``, nats, or ``relative_error``), ``everything`` (losses of the int8 model),
        ``kinds``, ``blocks`` (most gain first, each with ``alone``, ``without`` and ``gain``, the part of the loss that
        is gone when it is float), ``together``, ``tensors`` (most entering error first), ``advice``, ``findings``.

    Raises:
        ModelError: A model cannot be used, they do not fit together, or the second has no Q/DQ pairs.
        CalibrationError: The data cannot be used.
    """
    quantized, int8_name = read_proto(int8_model)
    known = read_float_model(float_model)
    float_name = str(float_model) if isinstance(float_model, (str, os.PathLike)) else "<model>"
    check_pair(known.proto, quantized, float_name, int8_name)
    model = _switchable(quantized, known, int8_name)
    if isinstance(preprocess, (str, os.PathLike)):
        preprocess = calib.load_preprocess(preprocess)
    source = calib.open_source(
        data,
        calib.inputs_of(known.proto),
        preprocess=preprocess,
        samples=samples,
        seed=seed,
        batch_size=BATCH,
        skip_unreadable=skip_unreadable,
    )
    measured = measure_tensors(model, source, threads=threads, progress=progress)
    measured = sorted((row for row in measured if row.entering.signal > 0), key=lambda row: row.entering.sqnr_db)
    model = model.with_own_switches(row.pair.tensor for row in measured[:TENSORS_MEASURED])
    reference = make_session(known.proto, threads=threads, name=float_name)
    session = SwitchSession(model, threads=threads)
    swept = sweep(reference, session, source, progress)
    everything = swept.everything.to_dict()
    blocks = _block_rows(swept, known, everything)
    numbers = {block.name: number for number, block in enumerate(known.structure.blocks)}
    ranked = [numbers[row["name"]] for row in blocks if row["gain"] > 0]
    together = best_together(reference, session, source, ranked, progress)
    tensors = _tensor_rows(measured, model, known, swept, everything)
    kinds = {kind: loss.to_dict() for kind, loss in swept.kinds.items()}
    findings = _findings(quantized, next(iter(source))[1], threads)
    advice = findings or []
    if harmless(everything):
        advice = [*advice, NOTHING_TO_GAIN]
    else:
        advice = [
            *advice,
            *by_gain(
                for_blocks(blocks, everything),
                for_tensors(tensors),
                for_kinds(kinds, everything, _weight_bits(model), _activation_bits(model)),
            ),
        ]
    stored = [(weight, original) for weight, _, original in model.weights if not weight.is_bias]
    found = sum(original is not None for _, original in stored)
    return {
        "float": float_name,
        "int8": int8_name,
        "samples": len(source),
        "measure": swept.everything.measure,
        "weights": {"quantized": len(stored), "float_found": found},
        "float_twin": swept.float_twin.to_dict(),
        "everything": everything,
        "kinds": kinds,
        "blocks": blocks,
        "together": [
            {"blocks": [row["name"] for row in blocks[: count + 1]], **loss.to_dict()}
            for count, loss in enumerate(together)
        ],
        "tensors": tensors,
        "findings": [line.text for line in findings],
        "advice": [line.to_dict() for line in advice],
    }


def _switchable(quantized: onnx.ModelProto, known: FloatModel, name: str) -> Switchable:
    index = GraphIndex(quantized.graph)
    pairs, weights = find_pairs(index), list(find_weights(index))
    if not pairs and not weights:
        raise ModelError(f"{name}: it has no QuantizeLinear/DequantizeLinear pairs; pass an int8 model in QDQ form")
    originals = FloatWeights(known.constants)
    restored = [_original(weight, originals, known) for weight in weights]
    return switchable(quantized, pairs, weights, restored, blocks_of_nodes(index, known), known.limits)


def _original(codes: WeightCodes, originals: FloatWeights, known: FloatModel) -> np.ndarray | None:
    """The float constant behind ``codes``: found, or zeros for the bias of a layer that has none in the float model."""
    found = originals.find(codes.values, codes.tensor)
    given = codes.is_bias and codes.tensor.removesuffix("_bias") in known.block_of_node
    return np.zeros_like(codes.values) if found is None and given else found


def _block_rows(swept: Sweep, known: FloatModel, everything: dict[str, Any]) -> list[dict[str, Any]]:
    """The blocks, the one first whose float copy takes away most of the loss."""
    rows = []
    operators = {node.name: node.op_type for node in known.proto.graph.node}
    for number, without in swept.without.items():
        block = known.structure.blocks[number]
        rows.append(
            {
                "name": block.name,
                "kind": block.kind,
                "alone": swept.alone[number].to_dict(),
                "without": without.to_dict(),
                "gain": gain_of(without.to_dict(), everything),
                "float_nodes": [
                    node for node in block.nodes if node in operators and operators[node] not in _MOVES_AND_SHAPES
                ],
            }
        )
    return sorted(rows, key=lambda row: -row["gain"])


def _tensor_rows(
    measured: list[TensorError], model: Switchable, known: FloatModel, swept: Sweep, everything: dict[str, Any]
) -> list[dict[str, Any]]:
    """The tensors, most entering error first."""
    residual = {pair.source for pair, part in model.activations if part.kind == RESIDUALS}
    rows = []
    for row in measured:
        causes = find_causes(row, row.pair.source in residual)
        loss = swept.tensors.get(row.pair.tensor)
        gain = gain_of(loss.to_dict(), everything) if loss else None
        rows.append({**tensor_row(row, known.structure.blocks[row.block].name, causes), "gain": gain})
    return rows


def _findings(quantized: onnx.ModelProto, feeds: Any, threads: int) -> list[Advice]:
    """What the runtime does wrong with a right graph: no choice of scales cures it."""
    found = [Advice(finding.message, "--target") for finding in find_saturation(quantized, feeds, threads=threads)]
    fused = compare_fused(quantized, feeds)
    if not fused.matches:
        found.append(Advice(f"the fused session disagrees with the Q/DQ graph: {fused.culprit}", "--target"))
    return found


def _weight_bits(model: Switchable) -> int:
    return max((weight.bits for weight, _, _ in model.weights if not weight.is_bias), default=8)


def _activation_bits(model: Switchable) -> int:
    levels = max((pair.levels for pair in model.pairs), default=256)
    return min(8, max(2, (levels - 1).bit_length()))
