"""Scales, ranges and integers, by hand and by brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from effdl.errors import ConfigError
from effdl.quantization.calibration import (
    Histogram,
    RangeMethod,
    activation_scale,
    choose_range,
    quantize_bias,
    quantize_weight,
)

FINITE = st.floats(-1e4, 1e4, width=32)


def histogram_of(values: NDArray[np.float32]) -> Histogram:
    histogram = Histogram(low=float(values.min()), high=float(values.max()))
    histogram.add(values)
    return histogram


def test_scale_by_hand() -> None:
    scale = activation_scale(-1.0, 3.0)
    assert scale.scale == pytest.approx(4 / 255)
    assert scale.zero_point == 64
    np.testing.assert_allclose(
        scale.round(np.array([0.0, 0.01, 10.0, -10.0])),
        [0.0, 4 / 255, 191 * 4 / 255, -64 * 4 / 255],
        rtol=1e-6,
    )


@pytest.mark.parametrize(("low", "high", "zero_point"), [(0, 6, 0), (-6, 0, 255), (2, 6, 0)])
def test_zero_is_always_among_the_bytes(low: float, high: float, zero_point: int) -> None:
    scale = activation_scale(low, high)
    assert scale.zero_point == zero_point
    assert scale.scale == pytest.approx(6 / 255)


@given(low=FINITE, high=FINITE, values=st.lists(FINITE, min_size=1, max_size=20))
def test_rounding_is_within_half_a_step(low: float, high: float, values: list[float]) -> None:
    scale = activation_scale(min(low, high), max(low, high))
    given_values = np.array(values, dtype=np.float32)
    inside = np.clip(given_values, scale.low, scale.high)
    rounded = scale.round(given_values)
    span = max(abs(scale.low), abs(scale.high))
    assert np.abs(rounded - inside).max() <= 0.5 * scale.scale + 1e-6 * span
    np.testing.assert_array_equal(scale.round(rounded), rounded)
    assert scale.round(np.zeros(1))[0] == 0.0
    assert 0 <= scale.zero_point <= 255


@pytest.mark.parametrize(("low", "high"), [(np.nan, 1.0), (0.0, np.inf), (2.0, 1.0)])
def test_what_is_no_range(low: float, high: float) -> None:
    with pytest.raises(ConfigError, match="range"):
        activation_scale(low, high)


def test_histogram_counts_all_batches_and_clips() -> None:
    histogram = Histogram(low=0.0, high=2.0, counts=np.zeros(4, dtype=np.int64))
    histogram.add(np.array([[0.0, 0.6], [1.1, 2.0]]))
    histogram.add(np.array([-5.0, 7.0]))
    assert histogram.counts.tolist() == [2, 1, 1, 2]
    assert histogram.centers.tolist() == [0.25, 0.75, 1.25, 1.75]


def test_ranges_of_a_far_outlier() -> None:
    values = np.append(np.random.default_rng(0).standard_normal(100_000), 1000.0)
    histogram = histogram_of(values.astype(np.float32))
    assert choose_range(histogram, "minmax")[1] == pytest.approx(1000.0)
    low, high = choose_range(histogram, "percentile")
    assert -6 < low < -3
    assert 3 < high < 6


@pytest.mark.parametrize("tail", [1, 3, 10])
def test_least_square_error_beats_the_others(tail: int) -> None:
    rng = np.random.default_rng(tail)
    values = (rng.standard_normal(50_000) * rng.choice([1.0, tail], 50_000)).astype(np.float32)
    histogram = histogram_of(values)

    def error(method: RangeMethod) -> float:
        rounded = activation_scale(*choose_range(histogram, method)).round(values)
        return float(((rounded - values) ** 2).mean())

    assert error("mse") <= 1.02 * min(error("minmax"), error("percentile"))


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_a_constant_keeps_its_value(method: RangeMethod, value: float) -> None:
    values = np.full(100, value, dtype=np.float32)
    scale = activation_scale(*choose_range(histogram_of(values), method))
    np.testing.assert_allclose(scale.round(values), values, atol=1e-6)


def test_weights_by_hand() -> None:
    weight = np.array([[127.0, -63.5, 0.4], [0.0, 0.0, 0.0], [-2.54, 1.27, 0.0]])
    steps, scales = quantize_weight(weight, axis=0)
    np.testing.assert_allclose(scales, [1.0, 1.0, 0.02])
    # Half to even: -63.5 becomes -64, 63.5 becomes 64.
    assert steps.tolist() == [[127, -64, 0], [0, 0, 0], [-127, 64, 0]]
    turned, same = quantize_weight(weight.T, axis=1)
    np.testing.assert_array_equal(turned, steps.T)
    np.testing.assert_array_equal(same, scales)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=12, max_size=12))
def test_weights_are_within_half_a_step(values: list[float]) -> None:
    weight = np.array(values, dtype=np.float32).reshape(3, 2, 2)
    steps, scales = quantize_weight(weight, axis=0)
    assert np.abs(steps.astype(int)).max() <= 127
    error = np.abs(steps * scales[:, None, None] - weight)
    assert (error <= 0.5001 * scales[:, None, None] + 1e-30).all()


def test_bias_by_hand() -> None:
    bias = quantize_bias(
        np.array([1.0, -0.26, 1e12]), 0.5, np.array([0.25, 0.04, 1e-3], dtype=np.float32)
    )
    assert bias.dtype == np.int32
    assert bias.tolist() == [8, -13, 2**31 - 1]
