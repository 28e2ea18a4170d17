"""Every family of the corpus: rewritten, planned, quantized from one random batch; valid, and int8 where planned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from qdq_graphs import ORT, feeds_of, minmax, plan_of

from onnx_hyvit.graph import load_model, model_to_proto
from onnx_hyvit.insert_qdq import insert_qdq
from onnx_hyvit.kernel_audit import audit
from onnx_hyvit.passes import CANONICAL, LOWERING, run_passes
from onnx_hyvit.placement.weighted import is_quantizable
from onnx_hyvit.targets import check_target
from onnx_hyvit.validate import validate

CORPUS = Path(__file__).parent.parent / "corpus"
FILES = sorted(CORPUS.glob("*.onnx"))
FAST = {sorted(CORPUS.glob(f"{family}.*.onnx"))[-1] for family in {path.name.split(".")[0] for path in FILES}}


@pytest.mark.parametrize(
    "path",
    [path if path in FAST else pytest.param(path, marks=pytest.mark.slow) for path in FILES],
    ids=lambda p: p.name,
)
def test_the_quantized_model_is_valid_and_int8_where_planned(path):
    model = load_model(path)
    run_passes(model, (*CANONICAL, *LOWERING))
    plan, feeds = plan_of(model), feeds_of(model)
    layers = {node.name for node in model.graph.nodes if is_quantizable(node)}
    proto = model_to_proto(insert_qdq(model, plan, minmax(model, plan, feeds)))
    assert plan.int8_nodes and all(plan.float_nodes[name] for name in layers - set(plan.int8_nodes))
    findings = validate(proto, model_to_proto(model), feeds)
    assert not [finding for finding in findings if finding.kind not in ("drift", "saturation")]
    report = audit(proto)
    assert not [kernel.node for kernel in report.float if kernel.node in layers & set(plan.int8_nodes)]
    assert layers & set(plan.int8_nodes) <= {kernel.node for kernel in report.int8}
    assert check_target(proto, ORT) == []
    assert all(np.isfinite(value).all() for value in feeds.values())
