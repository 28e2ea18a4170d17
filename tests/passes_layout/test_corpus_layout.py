"""The layout passes over every corpus graph: equal outputs, and the rewrites that each family should get."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import onnx
import pytest
from corpus_files import quick_or_slow
from exactness import assert_same

from onnx_hyvit.graph import load_model, model_to_proto
from onnx_hyvit.passes import CANONICAL, LOWERING, run_passes
from onnx_hyvit.passes.layout import LAYOUT

CORPUS = Path(__file__).parent.parent / "corpus"
INDEX = json.loads((CORPUS / "index.json").read_text())["models"]
FILES = [entry["file"] for entry in INDEX]


@pytest.mark.parametrize("file", quick_or_slow(FILES))
def test_layout_is_exact(file: str) -> None:
    before = onnx.load(CORPUS / file)
    free = not before.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
    model = load_model(CORPUS / file)
    run_passes(model, CANONICAL)
    run_passes(model, LAYOUT)
    assert_same(before, model_to_proto(model, check=True), (1, 2) if free else (1,))
    run_passes(model, LOWERING)
    assert_same(before, model_to_proto(model, check=True), (1, 2) if free else (1,))


@pytest.mark.parametrize("exporter", ["torchscript-13", "torchscript-17", "torchscript-20", "dynamo-18", "dynamo-20"])
def test_separable_attention_is_computed_channels_last(exporter: str) -> None:
    model = load_model(CORPUS / f"mobilevit_v2.{exporter}.onnx")
    run_passes(model, CANONICAL)
    counts = {result.name: result.count for result in run_passes(model, LAYOUT)}
    assert counts["channels_last_region"] > 0
    assert counts["channels_last_region"] * 2 == counts["compose_movement"]


@pytest.mark.parametrize("exporter", ["torchscript-13", "torchscript-17", "torchscript-20", "dynamo-18", "dynamo-20"])
def test_unfolding_moves_the_channels_first(exporter: str) -> None:
    model = load_model(CORPUS / f"mobilevit_v1.{exporter}.onnx")
    run_passes(model, CANONICAL)
    assert Counter(result.name for result in run_passes(model, LAYOUT) if result.count)["compose_movement"] == 1
    perms = [tuple(node.attrs["perm"]) for node in model.graph.nodes if node.op == "Transpose"]
    assert (0, 2, 3, 1) in perms and (0, 3, 1, 2) in perms
