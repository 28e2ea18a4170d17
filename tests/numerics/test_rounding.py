"""GPTQ, scale search, ridge and bias correction against brute force and independent formulas."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from onnx_hyvit.errors import CalibrationError, ConfigError
from onnx_hyvit.numerics import QuantSpec
from onnx_hyvit.numerics.moments import ConvGeometry, GramAccumulator, weight_rows
from onnx_hyvit.numerics.ridge import bias_shift, ridge_correct
from onnx_hyvit.numerics.rounding import _inverse_factor, descend, gptq_round, nearest_codes, output_error, search_scale

INT4 = QuantSpec(bits=4, signed=True, symmetric=True, axis=0)
INT3 = QuantSpec(bits=3, signed=True, symmetric=True, axis=0)


def _layer(seed: int, out: int, width: int, samples: int = 200, groups: int | None = None):
    """Weight, inputs and Gram matrix with correlated inputs."""
    rng = np.random.default_rng(seed)
    lead = () if groups is None else (groups,)
    weight = rng.normal(size=(*lead, out, width))
    x = rng.normal(size=(*lead, samples, width)) @ rng.normal(size=(*lead, width, width))
    gram = np.swapaxes(x, -1, -2) @ x / samples
    return weight, x, gram


def _scale(weight: np.ndarray, spec: QuantSpec) -> np.ndarray:
    return np.abs(weight).max(axis=-1) / spec.qmax


def _errors(weight, codes, scale, gram) -> np.ndarray:
    return output_error(codes.astype(np.float64) * scale[..., None] - weight, gram)


def _obq_in_order(weight: np.ndarray, gram: np.ndarray, scale: np.ndarray, spec: QuantSpec) -> np.ndarray:
    """OBQ with a fixed order, by explicit inverses: after each rounding the free weights are solved for anew."""
    width = weight.shape[1]
    codes = np.zeros_like(weight)
    for row in range(len(weight)):
        w = weight[row].copy()
        for column in range(width):
            code = np.clip(np.rint(w[column] / scale[row]), spec.qmin, spec.qmax)
            codes[row, column] = code
            error = code * scale[row] - w[column]
            w[column] += error
            free = np.arange(column + 1, width)
            if len(free):  # min over d_free of the quadratic with d_column fixed
                w[free] -= np.linalg.solve(gram[np.ix_(free, free)], gram[free, column] * error)
    return codes


def test_output_error_is_the_mean_squared_error_of_the_layer() -> None:
    weight, x, gram = _layer(0, 3, 5)
    other = weight + np.random.default_rng(1).normal(size=weight.shape)
    expected = np.square(x @ (other - weight).T).mean(axis=0)
    np.testing.assert_allclose(output_error(other - weight, gram), expected, rtol=1e-10)


@pytest.mark.parametrize("width", [1, 2, 3, 7])
@pytest.mark.parametrize("block", [1, 2, 128])
def test_gptq_is_obq_in_a_fixed_order(width: int, block: int) -> None:
    weight, _, gram = _layer(width, 6, width)
    scale = _scale(weight, INT3)
    codes = gptq_round(weight, gram, scale, INT3, damping=0.0, block=block, act_order=False, sweeps=0, keep_best=False)
    np.testing.assert_array_equal(codes, _obq_in_order(weight, gram, scale, INT3))
    assert codes.dtype == np.int8


def test_act_order_is_gptq_on_sorted_columns() -> None:
    weight, _, gram = _layer(3, 4, 8)
    scale = _scale(weight, INT4)
    order = np.argsort(-np.diag(gram))
    plain = {"damping": 0.01, "sweeps": 0, "keep_best": False}
    expected = np.empty(weight.shape)
    expected[:, order] = gptq_round(weight[:, order], gram[np.ix_(order, order)], scale, INT4, act_order=False, **plain)
    np.testing.assert_array_equal(gptq_round(weight, gram, scale, INT4, act_order=True, **plain), expected)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("act_order", [False, True])
def test_rounding_is_never_worse_than_nearest_and_better_on_correlated_inputs(seed: int, act_order: bool) -> None:
    weight, _, gram = _layer(seed, 16, 24)
    scale = _scale(weight, INT4)
    nearest = _errors(weight, nearest_codes(weight, scale, INT4), scale, gram)
    found = _errors(weight, gptq_round(weight, gram, scale, INT4, act_order=act_order), scale, gram)
    assert (found <= nearest * (1 + 1e-9)).all()
    assert found.sum() < 0.65 * nearest.sum()


def test_rounding_comes_close_to_brute_force() -> None:
    spec = QuantSpec(bits=2, signed=True, symmetric=True, axis=0)
    weight, _, gram = _layer(11, 20, 4)
    scale = _scale(weight, spec) / 1.5
    codes = np.asarray(list(itertools.product(range(spec.qmin, spec.qmax + 1), repeat=4)), np.float64)
    best = np.asarray([
        output_error(codes * scale[row] - weight[row], gram).min() for row in range(len(weight))
    ])  # fmt: skip
    found = _errors(weight, gptq_round(weight, gram, scale, spec, sweeps=3), scale, gram)
    assert (found >= best * (1 - 1e-9)).all()
    assert np.isclose(found, best, rtol=1e-9).mean() >= 0.6
    assert found.sum() <= 1.3 * best.sum()


def test_a_sweep_of_descent_never_raises_the_error_and_ends_at_a_fixed_point() -> None:
    weight, _, gram = _layer(5, 8, 12)
    scale = _scale(weight, INT4)
    codes = nearest_codes(weight, scale, INT4)
    errors = [_errors(weight, codes, scale, gram)]
    for _ in range(30):
        codes = descend(weight, codes, gram, scale, INT4)
        errors.append(_errors(weight, codes, scale, gram))
        assert (errors[-1] <= errors[-2] * (1 + 1e-9)).all()
    np.testing.assert_array_equal(descend(weight, codes, gram, scale, INT4), codes)
    for column, step in itertools.product(range(12), (-1, 1)):  # no single code can be improved
        moved = codes.copy()
        moved[:, column] = np.clip(moved[:, column] + step, INT4.qmin, INT4.qmax)
        assert (_errors(weight, moved, scale, gram) >= errors[-1] * (1 - 1e-9)).all()


def test_groups_are_rounded_on_their_own() -> None:
    weight, _, gram = _layer(2, 3, 9, groups=5)
    scale = _scale(weight, INT4)
    whole = gptq_round(weight, gram, scale, INT4)
    for group in range(5):
        np.testing.assert_array_equal(whole[group], gptq_round(weight[group], gram[group], scale[group], INT4))


def test_weighting_output_channels_changes_nothing() -> None:
    weight, _, gram = _layer(4, 6, 10)
    scale = _scale(weight, INT4)
    once = gptq_round(weight[None], gram[None], scale[None], INT4)[0]
    scaled = [gptq_round(weight[i : i + 1], gram * (i + 0.5), scale[i : i + 1], INT4)[0] for i in range(6)]
    np.testing.assert_array_equal(once, scaled)


def test_zero_points_and_unsigned_codes() -> None:
    spec = QuantSpec(bits=4, signed=False, axis=0)
    weight, _, gram = _layer(8, 5, 6)
    low, high = weight.min(axis=1), weight.max(axis=1)
    scale = (high - low) / 15
    zero = np.rint(-low / scale)
    codes = gptq_round(weight, gram, scale, spec, zero_point=zero)
    nearest = nearest_codes(weight, scale, spec, zero)
    errors = [output_error((c.astype(float) - zero[:, None]) * scale[:, None] - weight, gram) for c in (codes, nearest)]
    assert (errors[0] <= errors[1] * (1 + 1e-9)).all()
    assert codes.dtype == np.uint8
    assert codes.max() <= 15


def test_inputs_never_seen_are_rounded_to_nearest() -> None:
    weight, _, gram = _layer(6, 4, 6)
    gram[2, :] = gram[:, 2] = 0.0
    scale = _scale(weight, INT4)
    codes = gptq_round(weight, gram, scale, INT4, sweeps=2)
    np.testing.assert_array_equal(codes[:, 2], nearest_codes(weight, scale, INT4)[:, 2])
    np.testing.assert_array_equal(gptq_round(weight, np.zeros((6, 6)), scale, INT4), nearest_codes(weight, scale, INT4))


def test_a_singular_gram_matrix_is_damped() -> None:
    weight, x, _ = _layer(7, 4, 16, samples=3)
    gram = x.T @ x / 3
    scale = _scale(weight, INT4)
    for damping in (0.0, 0.01):
        codes = gptq_round(weight, gram, scale, INT4, damping=damping)
        assert (
            _errors(weight, codes, scale, gram).sum()
            <= _errors(weight, nearest_codes(weight, scale, INT4), scale, gram).sum()
        )


def test_bad_shapes_and_values_are_refused() -> None:
    weight, _, gram = _layer(0, 3, 5)
    with pytest.raises(ConfigError, match="do not fit"):
        gptq_round(weight, gram[:4, :4], np.ones(3), INT4)
    with pytest.raises(ConfigError, match="NaN or Inf"):
        gptq_round(weight, gram * np.nan, np.ones(3), INT4)
    with pytest.raises(ConfigError, match="signed symmetric"):
        search_scale(weight, gram, np.ones(3), QuantSpec())


def test_scale_search_finds_what_an_exhaustive_search_finds() -> None:
    weight, _, gram = _layer(1, 12, 10)
    base = _scale(weight, INT3)
    factors = np.linspace(0.01, 1.2, 101)
    table = np.asarray([
        _errors(weight, nearest_codes(weight, a * base, INT3), a * base, gram) for a in (*factors, 1.0)
    ])  # fmt: skip
    full = search_scale(weight, gram, base, INT3, stride=1)
    np.testing.assert_allclose(_errors(weight, nearest_codes(weight, full, INT3), full, gram), table.min(axis=0))
    coarse = search_scale(weight, gram, base, INT3)
    error = _errors(weight, nearest_codes(weight, coarse, INT3), coarse, gram)
    assert (error <= table[-1]).all()
    assert error.sum() <= 1.1 * table.min(axis=0).sum()


def test_a_shared_scale_keeps_the_ratio_of_the_base() -> None:
    weight, _, gram = _layer(1, 12, 10)
    base = np.full(12, _scale(weight, INT3).max())
    found = search_scale(weight, gram, base, INT3, shared=True)
    assert np.ptp(found) == 0.0
    error = [_errors(weight, nearest_codes(weight, s, INT3), s, gram).sum() for s in (found, base)]
    assert error[0] < error[1]


@pytest.mark.parametrize(
    ("shape", "geometry"),
    [
        ((2, 3, 6, 5), ConvGeometry((3, 3), (1, 1), (1, 1, 1, 1), (1, 1))),
        ((1, 4, 7, 8), ConvGeometry((3, 2), (2, 3), (0, 1, 2, 0), (2, 1), group=2)),
        ((2, 4, 5, 5), ConvGeometry((3, 3), (2, 2), (1, 1, 1, 1), (1, 1), group=4)),
        ((2, 3, 9), ConvGeometry((4,), (2,), (2, 1), (1,))),
    ],
)
def test_unfolded_inputs_reproduce_the_convolution(shape, geometry: ConvGeometry) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=shape), rng.normal(size=(8, shape[1] // geometry.group, *geometry.kernel))
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], strides=geometry.strides, pads=geometry.pads, dilations=geometry.dilations,
        group=geometry.group,
    )  # fmt: skip
    infos = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in "xwy"]
    model = helper.make_model(helper.make_graph([node], "conv", infos[:2], infos[2:]))
    (y,) = ReferenceEvaluator(model).run(None, {"x": x, "w": weight})

    accumulator = GramAccumulator(geometry)
    for sample in x:
        accumulator.update(sample[None])
    moments = accumulator.result()
    rows = weight_rows(weight, geometry.group)
    power = np.square(y).mean(axis=(0, *range(2, y.ndim)))
    np.testing.assert_allclose(output_error(rows, moments.gram).reshape(-1), power, rtol=1e-9)
    mean = np.einsum("poi,pi->po", rows, moments.mean).reshape(-1)
    np.testing.assert_allclose(mean, y.mean(axis=(0, *range(2, y.ndim))), rtol=1e-9, atol=1e-12)
    assert moments.weight == y.size / y.shape[1]


def test_moments_do_not_depend_on_the_batches() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 7, 5))
    noisy = x + rng.normal(size=x.shape) * 0.1
    weights = rng.uniform(size=(6, 7))
    whole, parts = GramAccumulator(), GramAccumulator()
    whole.update(x, noisy, weights)
    for i in range(6):
        parts.update(x[i : i + 1], noisy[i : i + 1], weights[i : i + 1])
    flat, hat, w = x.reshape(-1, 5), noisy.reshape(-1, 5), weights.reshape(-1, 1)
    for moments in (whole.result(), parts.result()):
        np.testing.assert_allclose(moments.gram[0], hat.T @ (w * hat) / w.sum())
        np.testing.assert_allclose(moments.cross[0], (hat - flat).T @ (w * hat) / w.sum())
        np.testing.assert_allclose(moments.mean[0], (w * flat).sum(axis=0) / w.sum())
        np.testing.assert_allclose(moments.mean_quantized[0], (w * hat).sum(axis=0) / w.sum())


def test_a_subsample_is_seeded_and_close() -> None:
    x = np.random.default_rng(0).normal(size=(4, 3, 20, 20))
    geometry = ConvGeometry((3, 3), (1, 1), (1, 1, 1, 1), (1, 1))

    def gram(limit: int | None, seed: int) -> np.ndarray:
        accumulator = GramAccumulator(geometry, max_positions=limit, seed=seed)
        accumulator.update(x)
        return accumulator.result().gram

    np.testing.assert_array_equal(gram(300, 1), gram(300, 1))
    assert (gram(300, 1) != gram(300, 2)).any()
    assert np.abs(gram(800, 1) - gram(None, 0)).max() < 0.2


def test_ridge_is_least_squares_on_the_quantized_inputs() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(1, 4, 6))
    x = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) + 1.0
    noisy = np.rint(x * 2) / 2 + 0.3
    accumulator = GramAccumulator()
    accumulator.update(x, noisy)
    moments = accumulator.result()
    target = x @ weight[0].T

    plain = ridge_correct(weight, moments, 0.0, centred=False)
    np.testing.assert_allclose(plain[0], np.linalg.lstsq(noisy, target, rcond=None)[0].T, rtol=1e-6, atol=1e-8)

    centred = ridge_correct(weight, moments, 0.0)
    with_one = np.hstack([noisy, np.ones((500, 1))])
    solution = np.linalg.lstsq(with_one, target, rcond=None)[0].T
    np.testing.assert_allclose(centred[0], solution[:, :6], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(bias_shift(weight, centred, moments), solution[:, 6], rtol=1e-6, atol=1e-8)

    np.testing.assert_allclose(ridge_correct(weight, moments, 1e9), weight, rtol=1e-6)
    with pytest.raises(ConfigError):
        ridge_correct(weight, moments, -1.0)


def test_ridge_with_exact_inputs_changes_nothing() -> None:
    accumulator = GramAccumulator()
    accumulator.update(np.random.default_rng(0).normal(size=(50, 6)))
    weight = np.random.default_rng(1).normal(size=(1, 4, 6))
    np.testing.assert_array_equal(ridge_correct(weight, accumulator.result()), weight)


def test_bias_shift_keeps_the_mean_output() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 6, 6)) + 0.7
    noisy = np.rint(x * 2) / 2
    geometry = ConvGeometry((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), group=2)
    accumulator = GramAccumulator(geometry)
    accumulator.update(x, noisy)
    moments = accumulator.result()
    rows = weight_rows(rng.normal(size=(6, 2, 3, 3)), 2)
    rounded = np.rint(rows * 3) / 3
    shift = bias_shift(rows, rounded, moments).reshape(2, 3)
    before = np.einsum("poi,pi->po", rows, moments.mean)
    after = np.einsum("poi,pi->po", rounded, moments.mean_quantized) + shift
    np.testing.assert_allclose(after, before, rtol=1e-12)


def test_the_whole_chain_lowers_the_error_at_the_output() -> None:
    rng = np.random.default_rng(3)
    mixing = rng.normal(size=(16, 16))
    x, fresh = (rng.normal(size=(2000, 16)) @ mixing + 0.5 for _ in range(2))
    step = 1.0
    weight = rng.normal(size=(1, 8, 16))
    accumulator = GramAccumulator()
    accumulator.update(x, np.rint(x / step) * step)
    moments = accumulator.result()

    def error(rows: np.ndarray, bias: np.ndarray) -> float:
        quantized = np.rint(fresh / step) * step
        return float(np.square(quantized @ rows[0].T + bias - fresh @ weight[0].T).mean())

    base = _scale(weight, INT4)
    plain = nearest_codes(weight, base, INT4) * base[..., None]
    errors = [error(plain, np.zeros(8)), error(plain, bias_shift(weight, plain, moments))]
    corrected = ridge_correct(weight, moments)
    scale = search_scale(corrected, moments.centred_gram, _scale(corrected, INT4), INT4)
    rounded = gptq_round(corrected, moments.centred_gram, scale, INT4) * scale[..., None]
    errors.append(error(rounded, bias_shift(weight, rounded, moments)))
    assert errors[0] > errors[1] > 1.3 * errors[2]


def test_nothing_collected_and_shapes_that_differ_are_refused() -> None:
    accumulator = GramAccumulator()
    with pytest.raises(CalibrationError, match="no inputs"):
        accumulator.result()
    with pytest.raises(CalibrationError, match="differ in shape"):
        accumulator.update(np.zeros((3, 4)), np.zeros((2, 4)))
    with pytest.raises(CalibrationError, match="position weights"):
        accumulator.update(np.zeros((3, 4)), position_weight=np.zeros(4))


def test_moments_of_float32_inputs_keep_a_small_variance_beside_a_large_mean() -> None:
    rng = np.random.default_rng(0)
    x = (100 + 0.1 * rng.normal(size=(20_000, 4)) @ rng.normal(size=(4, 4))).astype(np.float32)
    noisy = x + np.float32(0.01) * rng.normal(size=x.shape).astype(np.float32)
    accumulator = GramAccumulator()
    for start in range(0, len(x), 6_000):
        accumulator.update(x[start : start + 6_000], noisy[start : start + 6_000])
    moments = accumulator.result()
    wide = [values.astype(np.float64) for values in (x, noisy)]
    expected = np.cov(wide[1].T, bias=True)
    np.testing.assert_allclose(moments.centred_gram[0], expected, rtol=1e-4, atol=1e-5 * expected.max())
    change = (wide[1] - wide[0]) - (wide[1] - wide[0]).mean(0)
    cross = change.T @ (wide[1] - wide[1].mean(0)) / len(x)
    np.testing.assert_allclose(moments.centred_cross[0], cross, rtol=1e-3, atol=1e-4 * np.abs(cross).max())
    np.testing.assert_allclose(moments.mean[0], wide[0].mean(0), rtol=1e-7)


@pytest.mark.parametrize("size", [1, 5, 64, 65, 200])
def test_the_factor_of_the_inverse_is_upper_and_squares_to_it(size: int) -> None:
    rng = np.random.default_rng(size)
    x = rng.normal(size=(2, size, 2 * size))
    gram = x @ x.swapaxes(-1, -2) / (2 * size)
    factor = _inverse_factor(gram, 0.01)
    damped = gram + 0.01 * np.diagonal(gram, axis1=-2, axis2=-1).mean(-1)[:, None, None] * np.eye(size)
    np.testing.assert_allclose(
        factor.swapaxes(-1, -2) @ factor @ damped, np.broadcast_to(np.eye(size), gram.shape), atol=1e-8
    )
    np.testing.assert_array_equal(factor, np.triu(factor))
