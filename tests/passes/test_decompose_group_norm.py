from __future__ import annotations

import numpy as np
import pytest
from exactness import apply, count_of, ops, parse

from onnx_hyvit.graph.recognise import find_group_norms
from onnx_hyvit.passes import decompose_group_norm

RNG = np.random.default_rng(8)
PASS = decompose_group_norm.PASS
W = {
    "g": RNG.uniform(0.5, 2, 8).astype(np.float32),
    "b": RNG.standard_normal(8).astype(np.float32),
}


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_one_parameter_per_channel(groups: int) -> None:
    text = f"""agraph (float[N, 8, 4, 4] x) => (float[N, 8, 4, 4] y) {{
        y = GroupNormalization<num_groups = {groups}, epsilon = 0.01>(x, g, b) }}"""
    model = apply(parse(text, 21, W), PASS, batches=(1, 3))
    assert ops(model) == {"Reshape": 2, "InstanceNormalization": 1, "Mul": 1, "Add": 1}
    (found,) = find_group_norms(model.graph)
    assert found.groups == groups and found.eps == pytest.approx(0.01)


def test_free_spatial_axes() -> None:
    text = "agraph (float[N, 8, H, W] x) => (float[N, 8, H, W] y) { y = GroupNormalization<num_groups = 2>(x, g, b) }"
    model = apply(parse(text, 21, W), PASS, batches=(1, 2))
    assert ops(model)["Shape"] == 1


def test_computed_scale_is_left_alone() -> None:
    text = """agraph (float[N, 8, 4, 4] x, float[8] s) => (float[N, 8, 4, 4] y) {
        y = GroupNormalization<num_groups = 2>(x, s, b) }"""
    assert count_of(parse(text, 21, W), PASS, 21) == 0
