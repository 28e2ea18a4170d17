"""All passes over every corpus graph: equal outputs, and one count of structures per architecture."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import onnx
import pytest
from exactness import assert_same

from onnx_hyvit.errors import ModelError
from onnx_hyvit.graph import load_model, model_to_proto
from onnx_hyvit.graph.recognise import find_activations, find_attentions, find_norms
from onnx_hyvit.passes import CANONICAL, LOWERING, run_passes

CORPUS = Path(__file__).parent.parent / "corpus"
INDEX = json.loads((CORPUS / "index.json").read_text())
FILES = [entry["file"] for entry in INDEX["models"]]
EDGE = sorted(path.name for path in (CORPUS / "edge").glob("*.onnx"))
REFUSED = {"already_quantized.onnx", "custom_domain.onnx"}
NOT_RUN_BY_ORT = {"duplicate_node_names.onnx"}

COUNTS: dict[str, dict[str, tuple[Counter, Counter, Counter]]] = defaultdict(dict)


def batches_of(proto: onnx.ModelProto) -> tuple[int, ...]:
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    return (1, 2) if dims and not dims[0].HasField("dim_value") else (1,)


@pytest.mark.parametrize("file", FILES)
def test_passes_are_exact(file: str) -> None:
    before = onnx.load(CORPUS / file)
    model = load_model(CORPUS / file)
    run_passes(model, CANONICAL)
    assert_same(before, model_to_proto(model, check=True), batches_of(before))
    entry = next(entry for entry in INDEX["models"] if entry["file"] == file)
    attentions = find_attentions(model.graph, model.opset)
    assert len(attentions) == entry["expected_attentions"]
    COUNTS[entry["architecture"]][file] = (
        Counter(attention.kind for attention in attentions),
        Counter(norm.kind for norm in find_norms(model.graph)),
        Counter(activation.kind for activation in find_activations(model.graph)),
    )
    run_passes(model, LOWERING)
    assert_same(before, model_to_proto(model, check=True), batches_of(before))


@pytest.mark.parametrize("architecture", sorted({entry["architecture"] for entry in INDEX["models"]}))
def test_every_exporter_gives_the_same_structures(architecture: str) -> None:
    counts = COUNTS[architecture]
    if not counts:
        pytest.skip("the graphs of this architecture were not selected")
    first = next(iter(counts))
    for file, found in counts.items():
        assert found == counts[first], f"{file} differs from {first}"


@pytest.mark.parametrize("file", EDGE)
def test_odd_graphs_survive(file: str) -> None:
    path = CORPUS / "edge" / file
    if file in REFUSED:
        with pytest.raises(ModelError):
            load_model(path)
        return
    model = load_model(path)
    run_passes(model, (*CANONICAL, *LOWERING))
    after = model_to_proto(model, check=True)
    if file not in NOT_RUN_BY_ORT:
        before = onnx.load(path)
        assert_same(before, after, batches_of(before))


def test_a_second_run_changes_nothing() -> None:
    model = load_model(CORPUS / "mobilevit_v1.torchscript-20.onnx")
    run_passes(model, CANONICAL)
    nodes = [(node.op, node.name) for node in model.graph.nodes]
    assert sum(result.count for result in run_passes(model, CANONICAL)) == 0
    assert [(node.op, node.name) for node in model.graph.nodes] == nodes
