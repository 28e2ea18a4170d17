"""Blocks over the corpus: bridges counted by hand, the same blocks whichever exporter, a partition that can be cut."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from corpus_files import REPRESENTATIVES, quick_or_slow

from onnx_hyvit.blocks import KINDS, Structure, find_structure
from onnx_hyvit.graph import Model, load_model, model_to_proto
from onnx_hyvit.graph.io import infer_shapes
from onnx_hyvit.graph.region import extract_region
from onnx_hyvit.passes import CANONICAL, run_passes
from onnx_hyvit.runtime import observe_shapes

CORPUS = Path(__file__).parents[1] / "corpus"
ENTRIES = {entry["file"]: entry for entry in json.loads((CORPUS / "index.json").read_text())["models"]}
FILES = sorted(ENTRIES)
RAW, PREPARED = "raw", "canonical"
CASES = [(file, PREPARED) for file in FILES] + [(file, RAW) for file in FILES if file in REPRESENTATIVES]
SAME_RESOLUTION = {"caformer": 1}
"""The reduced CAFormer has no down-sampling between its two attention stages: one run, so one bridge."""


@cache
def _load(file: str, form: str) -> tuple[Model, onnx.ModelProto, dict[str, tuple[int, ...]], Structure]:
    model = load_model(CORPUS / file)
    if form == PREPARED:
        run_passes(model, CANONICAL)
    proto = model_to_proto(model)
    shapes = observe_shapes(proto)
    return model, proto, shapes, find_structure(model, shapes)


@pytest.mark.parametrize(("file", "form"), CASES)
def test_bridges_and_attentions_are_those_counted_by_hand(file: str, form: str) -> None:
    structure = _load(file, form)[3]
    entry = ENTRIES[file]
    bridges = SAME_RESOLUTION.get(entry["architecture"], entry["expected_bridges"])
    assert len(structure.blocks_of_kind("bridge")) == bridges
    assert len(structure.attentions) == ENTRIES[file]["expected_attentions"]


@pytest.mark.parametrize("architecture", sorted({entry["architecture"] for entry in ENTRIES.values()}))
def test_same_kinds_whichever_exporter_and_with_or_without_passes(architecture: str) -> None:
    found = {
        (file, form): [block.kind for block in _load(file, form)[3].blocks]
        for file, form in CASES
        if ENTRIES[file]["architecture"] == architecture
    }
    reference = next(iter(found.values()))
    different = {key: kinds for key, kinds in found.items() if kinds != reference}
    assert not different, reference


@pytest.mark.parametrize(("file", "form"), CASES)
def test_blocks_partition_all_nodes_in_topological_order(file: str, form: str) -> None:
    model, _, _, structure = _load(file, form)
    number = {node: index for index, block in enumerate(structure.blocks) for node in block.nodes}
    listed = [node for block in structure.blocks for node in block.nodes]
    assert sorted(listed) == sorted(node.name for node in model.graph.nodes)
    assert all(block.kind in KINDS for block in structure.blocks)
    for node in model.graph.nodes:
        for tensor in node.inputs:
            for source in tensor.inputs:
                # block numbers never fall along an edge, which makes every block convex
                assert number[source.name] <= number[node.name], (source.name, node.name)


@pytest.mark.parametrize("file", FILES)
def test_blocks_are_connected(file: str) -> None:
    model, _, _, structure = _load(file, PREPARED)
    nodes = {node.name: node for node in model.graph.nodes}
    for block in structure.blocks:
        joined: list[set[str]] = []
        for name in block.nodes:
            tensors = {
                t.name for t in [*nodes[name].inputs, *nodes[name].outputs] if t.inputs or t in nodes[name].outputs
            }
            tensors |= {t.name for t in nodes[name].inputs if t in model.graph.inputs}
            touching = [group for group in joined if group & tensors]
            joined = [group for group in joined if not group & tensors] + [tensors.union(*touching)]
        assert len(joined) == 1, (block.name, block.nodes)


@pytest.mark.parametrize("file", quick_or_slow(FILES))
def test_every_block_is_cut_out_checks_and_computes_what_the_whole_model_computes(file: str) -> None:
    _, proto, shapes, structure = _load(file, PREPARED)
    typed = infer_shapes(proto)
    values = _all_values(typed, shapes)
    for block in structure.blocks:
        region = extract_region(typed, block.inputs, block.outputs)
        onnx.checker.check_model(region)
        assert {node.name for node in region.graph.node} <= set(block.nodes) | _constants(typed)
        produced = _run(region, {name: values[name] for name in block.inputs})
        for name, value in produced.items():
            np.testing.assert_allclose(value, values[name], rtol=1e-3, atol=1e-4 * max(1.0, np.abs(values[name]).max()))


@pytest.mark.parametrize("file", quick_or_slow(file for file in FILES if ENTRIES[file]["expected_bridges"]))
def test_onnx_extractor_cuts_bridges(file: str) -> None:
    _, proto, _, structure = _load(file, PREPARED)
    extractor = onnx.utils.Extractor(infer_shapes(proto))
    for block in structure.blocks_of_kind("bridge"):
        part = extractor.extract_model(list(block.inputs), list(block.outputs))
        onnx.checker.check_model(part)
        assert {node.name for node in part.graph.node} <= set(block.nodes) | _constants(proto)


@pytest.mark.parametrize("file", [file for file in FILES if ENTRIES[file]["expected_bridges"]])
def test_bridges_hold_a_linear_operator_and_transitions_name_bridges(file: str) -> None:
    model, _, _, structure = _load(file, PREPARED)
    ops = {node.name: node.op for node in model.graph.nodes}
    bridges = structure.blocks_of_kind("bridge")
    for block in bridges:
        assert {"Conv", "MatMul", "Gemm", "Einsum"} & {ops[node] for node in block.nodes}, block.name
    assert {transition.block for transition in structure.transitions} == {block.name for block in bridges}


def _constants(proto: onnx.ModelProto) -> set[str]:
    return {node.name for node in proto.graph.node if node.op_type == "Constant"}


def _run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _all_values(proto: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    exposed = onnx.ModelProto()
    exposed.CopyFrom(proto)
    del exposed.graph.output[:]
    types = {value.name: value for value in [*proto.graph.value_info, *proto.graph.output]}
    exposed.graph.output.extend(types[name] for node in proto.graph.node for name in node.output if name in types)
    generator = np.random.default_rng(0)
    feeds = {value.name: generator.random(shapes[value.name], dtype=np.float32) for value in proto.graph.input}
    return {**feeds, **_run(exposed, feeds)}
