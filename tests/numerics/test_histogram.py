import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_hyvit.errors import CalibrationError, ConfigError
from onnx_hyvit.numerics import Histogram


def filled(parts, **options):
    histogram = Histogram(**options)
    for part in parts:
        histogram.update(part)
    return histogram


def counts_by_numpy(values, histogram, row=0):
    edges = (np.arange(histogram.bins + 1) - histogram.bins // 2) * histogram.width[row]
    return np.histogram(values.astype(np.float64), edges)[0]


def growing_parts(seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((2, 3, 50, 7)) * scale).astype(np.float32) for scale in (0.01, 1, 0.2, 900, 3)]


def test_counts_equal_a_second_pass_by_numpy():
    parts = growing_parts()
    histogram = filled(parts)
    values = np.concatenate([part.ravel() for part in parts])
    np.testing.assert_array_equal(histogram.counts[0], counts_by_numpy(values, histogram))
    assert histogram.range() == (values.min(), values.max())


def test_the_width_is_within_the_documented_resolution():
    histogram = filled(growing_parts(), bins=1024)
    largest = max(-histogram.low[0], histogram.high[0])
    assert largest / 512 <= histogram.width[0] <= 2 * largest / 512


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_channel_rows_equal_a_histogram_of_each_channel(axis):
    parts = growing_parts()
    both = filled(parts, bins=256, axis=axis)
    for channel in range(parts[0].shape[axis]):
        alone = filled([part.take(channel, axis) for part in parts], bins=256)
        np.testing.assert_array_equal(both.counts[channel], alone.counts[0])
        assert both.width[channel] == alone.width[0]
        assert (both.low[channel], both.high[channel]) == alone.range()


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(5)), st.integers(1, 9))
def test_order_and_batching_do_not_matter(order, pieces):
    parts = growing_parts()
    whole = filled(parts)
    shuffled = filled([piece for index in order for piece in np.array_split(parts[index].ravel(), pieces)])
    np.testing.assert_array_equal(whole.counts, shuffled.counts)
    np.testing.assert_array_equal(whole.exponent, shuffled.exponent)


def test_large_updates_are_cut_into_chunks_without_loss():
    values = np.random.default_rng(1).standard_normal(300_001).astype(np.float32)
    histogram = filled([values])
    np.testing.assert_array_equal(histogram.counts[0], counts_by_numpy(values, histogram))
    channels = values[:300_000].reshape(1, 4, 75_000)
    assert (filled([channels], axis=1, bins=64).counts.sum(axis=1) == 75_000).all()


@pytest.mark.parametrize("percent", [0, 0.1, 5, 50, 97, 99.99, 100])
def test_percentiles_agree_with_numpy_to_one_bin(percent):
    values = np.random.default_rng(2).gamma(2, 3, 50_000).astype(np.float32)
    histogram = filled(np.array_split(values, 7))
    expected = np.percentile(values, percent, method="inverted_cdf")
    assert abs(histogram.percentile(percent)[0] - expected) <= histogram.width[0]


@pytest.mark.parametrize("value", [0.0, -3.5, 1e-38, 3e38])
def test_constant_tensors(value):
    histogram = filled([np.full(10, value, np.float32)] * 2)
    assert histogram.counts.sum() == 20
    assert histogram.percentile(50)[0] == np.float32(value)


def test_memory_does_not_grow():
    histogram = Histogram(bins=512)
    for part in growing_parts() * 3:
        histogram.update(part)
    assert histogram.counts.shape == (1, 512)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_must_be_finite(bad):
    with pytest.raises(CalibrationError, match="NaN or Inf"):
        filled([np.array([1, bad], np.float32)])


def test_errors_of_use():
    with pytest.raises(ConfigError, match="power of two"):
        Histogram(bins=1000)
    with pytest.raises(CalibrationError, match="no values"):
        Histogram().range()
    with pytest.raises(CalibrationError, match="changed from 3 to 4"):
        filled([np.ones((1, 3)), np.ones((1, 4))], axis=1)
    with pytest.raises(CalibrationError, match="axis 2"):
        filled([np.ones((1, 3))], axis=2)
    with pytest.raises(ConfigError, match="0 to 100"):
        filled([np.ones(3)]).percentile(101)
