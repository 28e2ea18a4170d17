import numpy as np
import pytest

from onnx_hyvit.errors import CalibrationError, ConfigError
from onnx_hyvit.numerics import (
    Histogram,
    MinMax,
    MovingAverage,
    QuantSpec,
    RangeMethod,
    fake_quantize,
    mse_range,
    qparams_from_range,
)


def observed(observer, values, parts=4):
    for part in np.array_split(values, parts):
        observer.update(part)
    return observer


@pytest.fixture
def heavy_tailed():
    return np.random.default_rng(3).standard_t(2.5, 40_000).astype(np.float32)


def squared_error(values, low, high, spec):
    return float(np.mean((fake_quantize(values, qparams_from_range(low, high, spec)) - values) ** 2))


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_min_max_is_exact(axis):
    values = np.random.default_rng(4).standard_normal((6, 3, 5)).astype(np.float32)
    observer = MinMax(axis)
    observer.update(values)
    observer.update(values * 0.5)
    others = None if axis is None else tuple(i for i in range(3) if i != axis % 3)
    low, high = observer.range()
    np.testing.assert_array_equal(low, values.min(axis=others))
    np.testing.assert_array_equal(high, values.max(axis=others))


def test_moving_average_follows_its_equation():
    observer = MovingAverage(momentum=0.25)
    for low, high in ((-4, 8), (0, 4), (-8, 0)):
        observer.update_range(np.float32(low), np.float32(high))
    # low: -4 -> -3 -> -4.25, high: 8 -> 7 -> 5.25
    assert observer.range() == (-4.25, 5.25)


def test_percentile_range_equals_numpy(heavy_tailed):
    histogram = observed(Histogram(), heavy_tailed)
    low, high = RangeMethod("percentile", percentile=99).range(histogram, QuantSpec())
    width = histogram.width[0]
    assert abs(low - np.percentile(heavy_tailed, 0.5)) <= 2 * width
    assert abs(high - np.percentile(heavy_tailed, 99.5)) <= 2 * width


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize(("signed", "symmetric"), [(False, False), (True, True)])
def test_mse_range_is_near_the_best_of_a_brute_force(heavy_tailed, bits, signed, symmetric):
    spec = QuantSpec(bits, signed, symmetric)
    histogram = observed(Histogram(), heavy_tailed)
    found = squared_error(heavy_tailed, *mse_range(histogram, spec), spec)
    low, high = heavy_tailed.min(), heavy_tailed.max()
    shrink = np.geomspace(1, 0.01, 40)
    grid = [(low * a, high * b) for a in shrink for b in shrink]
    if symmetric:
        grid = [(-end, end) for end in max(-low, high) * np.geomspace(1, 0.01, 200)]
    best = min(grid, key=lambda ends: squared_error(heavy_tailed[::8], *ends, spec))
    assert found <= squared_error(heavy_tailed, low, high, spec)
    assert found <= 1.1 * squared_error(heavy_tailed, *best, spec)


def test_mse_range_keeps_everything_where_nothing_is_gained():
    values = np.linspace(-1, 3, 4001).astype(np.float32)
    low, high = mse_range(observed(Histogram(), values), QuantSpec())
    assert low == pytest.approx(-1, abs=0.02)
    assert high == pytest.approx(3, abs=0.02)


def test_entropy_cuts_a_lone_outlier_but_not_a_uniform_distribution():
    rng = np.random.default_rng(5)
    bulk = rng.standard_normal(100_000).astype(np.float32)
    method, spec = RangeMethod("entropy"), QuantSpec()
    low, high = method.range(observed(Histogram(), np.append(bulk, np.float32(500))), spec)
    assert high < 250
    assert low == bulk.min()
    uniform = rng.uniform(-1, 1, 100_000).astype(np.float32)
    assert method.range(observed(Histogram(), uniform), spec)[1] > 0.95


@pytest.mark.parametrize("name", ["percentile", "mse", "entropy"])
def test_channels_are_treated_one_by_one(name, heavy_tailed):
    values = heavy_tailed.reshape(10, 4, 1000) * np.array([1, 10, 0.1, 0], np.float32)[:, None]
    method = RangeMethod(name, percentile=99.9, bins=1024)
    spec = QuantSpec(axis=1)
    together = method.qparams(observed(method.observer(1), values), spec)
    for channel in range(4):
        alone = method.qparams(observed(method.observer(), values[:, channel]), QuantSpec())
        assert together.scale[channel] == pytest.approx(float(alone.scale), rel=1e-6)
        assert together.zero_point[channel] == alone.zero_point


def test_a_histogram_serves_min_max_as_well(heavy_tailed):
    histogram = observed(Histogram(), heavy_tailed)
    assert RangeMethod("minmax").range(histogram, QuantSpec()) == (heavy_tailed.min(), heavy_tailed.max())


def test_errors():
    with pytest.raises(ConfigError, match="must be one of"):
        RangeMethod("median")
    with pytest.raises(ConfigError, match="above 50"):
        RangeMethod("percentile", percentile=0.1)
    with pytest.raises(ConfigError, match="momentum"):
        RangeMethod("average", momentum=0)
    with pytest.raises(ConfigError, match="needs a Histogram"):
        RangeMethod("mse").range(MinMax(), QuantSpec())
    with pytest.raises(ConfigError, match="axis"):
        RangeMethod().qparams(MinMax(), QuantSpec(axis=1))
    with pytest.raises(CalibrationError, match="no values"):
        MinMax().range()
    with pytest.raises(CalibrationError, match="NaN or Inf"):
        MinMax().update(np.array([np.nan], np.float32))
