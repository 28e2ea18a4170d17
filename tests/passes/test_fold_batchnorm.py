from __future__ import annotations

import numpy as np
import pytest
from exactness import apply, count_of, ops, parse

from onnx_hyvit.passes import eliminate_noops, fold_batchnorm, fold_channel_scale

RNG = np.random.default_rng(1)


def affine(channels: int) -> dict[str, np.ndarray]:
    return {
        "g": RNG.uniform(0.5, 1.5, channels).astype(np.float32),
        "b": RNG.standard_normal(channels).astype(np.float32),
        "mu": RNG.standard_normal(channels).astype(np.float32),
        "var": RNG.uniform(0.2, 2.0, channels).astype(np.float32),
    }


def weight(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


BN = "y = BatchNormalization<epsilon = 0.01>(c, g, b, mu, var)"


@pytest.mark.parametrize("bias", ["", ", k"])
def test_conv(bias: str) -> None:
    text = f"agraph (float[N, 4, 6, 6] x) => (float[N, 8, 6, 6] y) {{ c = Conv<pads=[1,1,1,1]>(x, w{bias}) {BN} }}"
    model = apply(parse(text, weights={**affine(8), "w": weight(8, 4, 3, 3), "k": weight(8)}), fold_batchnorm.PASS)
    assert ops(model) == {"Conv": 1}


def test_grouped_conv_transpose() -> None:
    body = f"c = ConvTranspose<group=2, strides=[2,2]>(x, w) {BN}"
    text = f"agraph (float[1, 4, 3, 3] x) => (float[1, 6, 6, 6] y) {{ {body} }}"
    model = apply(parse(text, weights={**affine(6), "w": weight(4, 3, 2, 2)}), fold_batchnorm.PASS)
    assert ops(model) == {"ConvTranspose": 1}


@pytest.mark.parametrize("trans", [0, 1])
def test_gemm_with_alpha_and_beta(trans: int) -> None:
    text = (
        f"agraph (float[3, 5] x) => (float[3, 8] y) {{ c = Gemm<alpha=0.5, beta=2.0, transB={trans}>(x, w, k) {BN} }}"
    )
    shape = (8, 5) if trans else (5, 8)
    model = apply(parse(text, weights={**affine(8), "w": weight(*shape), "k": weight(8)}), fold_batchnorm.PASS)
    assert ops(model) == {"Gemm": 1}


def test_matmul_gets_a_bias_add() -> None:
    text = f"agraph (float[3, 5] x) => (float[3, 8] y) {{ c = MatMul(x, w) {BN} }}"
    model = apply(parse(text, weights={**affine(8), "w": weight(5, 8)}), fold_batchnorm.PASS)
    assert ops(model) == {"MatMul": 1, "Add": 1}


@pytest.mark.parametrize("flatten", ["c = Flatten<axis=2>(p)", "c = Reshape(p, rows)"])
def test_matmul_seen_through_flattening_of_tokens(flatten: str) -> None:
    text = f"agraph (float[2, 7, 5] x) => (float[14, 8] y) {{ p = MatMul(x, w) {flatten} {BN} }}"
    weights = {**affine(8), "w": weight(5, 8), "rows": np.array([-1, 8], np.int64)}
    model = apply(parse(text, weights=weights), fold_batchnorm.PASS)
    assert ops(model)["BatchNormalization"] == ops(model)["Mul"] == 0


def test_tokens_on_axis_one_are_not_channels() -> None:
    text = f"agraph (float[2, 8, 5] x) => (float[2, 8, 8] y) {{ c = MatMul(x, w) {BN} }}"
    model = apply(parse(text, weights={**affine(8), "w": weight(5, 8)}), fold_batchnorm.PASS)
    assert ops(model) == {"MatMul": 1, "Mul": 1, "Add": 1}


def test_shared_conv_output_is_not_folded() -> None:
    head = "agraph (float[1, 4, 6, 6] x) => (float[1, 8, 6, 6] y, float[1, 8, 6, 6] r) {"
    text = f"{head} c = Conv(x, w) r = Relu(c) {BN} }}"
    model = apply(parse(text, weights={**affine(8), "w": weight(8, 4, 1, 1)}), fold_batchnorm.PASS)
    assert ops(model) == {"Conv": 1, "Relu": 1, "Mul": 1, "Add": 1}


def test_weights_shared_with_another_conv_are_not_changed_there() -> None:
    head = "agraph (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] y, float[1, 4, 6, 6] z) {"
    text = f"{head} c = Conv(x, w) {BN} z = Conv(y, w) }}"
    model = apply(parse(text, weights={**affine(4), "w": weight(4, 4, 1, 1)}), fold_batchnorm.PASS)
    assert ops(model) == {"Conv": 2}


def test_alone_it_becomes_mul_and_add_and_folds_into_the_next_conv() -> None:
    text = f"agraph (float[N, 4, 6, 6] c) => (float[N, 8, 6, 6] z) {{ {BN} z = Conv(y, w) }}"
    proto = parse(text, weights={**affine(4), "w": weight(8, 4, 3, 3)})
    proto.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 4
    proto.graph.output[0].type.tensor_type.shape.dim[3].dim_value = 4
    model = apply(proto, fold_batchnorm.PASS, fold_channel_scale.PASS, eliminate_noops.PASS, batches=(1, 2))
    assert ops(model) == {"Conv": 1}


def test_computed_statistics_are_left_alone() -> None:
    text = (
        "agraph (float[2, 4, 6, 6] c, float[4] g) => (float[2, 4, 6, 6] y) { y = BatchNormalization(c, g, b, mu, var) }"
    )
    weights = {name: value for name, value in affine(4).items() if name != "g"}
    assert count_of(parse(text, weights=weights), fold_batchnorm.PASS) == 0
