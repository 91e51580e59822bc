"""Percentiles, dropped samples and intervals, against hand-computed values."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from effdl.targets.timing_statistics import (
    drop_interrupted,
    interval_half_width,
    paired_ratio,
    row_percentile,
)


def test_percentile_interpolates_between_samples():
    samples = np.array([[5.0, 1.0, 4.0, 2.0, 3.0], [10.0, 20.0, 30.0, 40.0, 50.0]])
    assert row_percentile(samples, 20).tolist() == pytest.approx([1.8, 18.0])
    assert row_percentile(samples, 50).tolist() == [3.0, 30.0]
    assert row_percentile(samples, 100).tolist() == [5.0, 50.0]


def test_percentile_ignores_dropped_samples():
    samples = np.array([[math.nan, 1.0, math.nan, 3.0], [7.0, math.nan, math.nan, math.nan]])
    assert row_percentile(samples, 50).tolist() == [2.0, 7.0]


@given(
    arrays.arrays(np.float64, (3, 7), elements=st.floats(1e-6, 1e3)),
    st.floats(0, 100),
)
def test_percentile_agrees_with_numpy(samples: np.ndarray, percent: float):
    wanted = np.percentile(samples, percent, axis=1)
    np.testing.assert_allclose(row_percentile(samples, percent), wanted, rtol=1e-9)


def test_equal_rounds_have_no_interval():
    assert interval_half_width(np.full((6, 10), 2.0), 20) == 0.0


def test_interval_sees_rounds_not_samples():
    """Two levels that change by round are uncertain; the same samples mixed are not."""
    by_round = np.repeat([[1.0], [2.0]] * 3, 10, axis=1)
    mixed = np.tile([1.0, 2.0], (6, 5))
    assert interval_half_width(by_round, 50) == pytest.approx(0.5, abs=0.01)
    assert interval_half_width(mixed, 20) == 0.0


def test_interval_covers_the_truth():
    """The 95 % interval of a median holds it in about 95 of 100 repetitions."""
    rng, covered = np.random.default_rng(5), 0
    for _ in range(200):
        samples = rng.normal(10.0, 1.0, size=(12, 10)) + rng.normal(0, 1.0, size=(12, 1))
        middle = row_percentile(samples.reshape(1, -1), 50)[0]
        covered += abs(middle - 10.0) <= interval_half_width(samples, 50)
    assert 170 <= covered <= 200


def test_interrupted_samples_are_dropped_while_half_remain():
    samples = np.array([[1.0, 9.0], [1.0, 1.0]])
    interrupted = np.array([[False, True], [False, False]])
    kept = drop_interrupted(samples, interrupted)
    assert np.isnan(kept).tolist() == [[False, True], [False, False]]
    mostly = np.array([[True, True], [True, False]])
    assert drop_interrupted(samples, mostly) is samples


def test_a_round_interrupted_throughout_keeps_its_samples():
    samples = np.arange(8.0).reshape(2, 4)
    interrupted = np.array([[True] * 4, [False] * 4])
    np.testing.assert_array_equal(drop_interrupted(samples, interrupted), samples)


def test_paired_ratio_cancels_noise_of_whole_rounds():
    rng = np.random.default_rng(0)
    mood = rng.uniform(1.0, 3.0, size=(20, 1))
    first = mood * (1 + 0.001 * rng.random((20, 10)))
    value, low, high = paired_ratio(first, 1.04 * first, 20)
    assert value == pytest.approx(1.04)
    assert 1.03 < low <= high < 1.05
    _, low, high = paired_ratio(first, first[rng.permutation(20)], 20)
    assert low <= 1.0 <= high
