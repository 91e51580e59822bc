"""The correction from operators to networks, on made networks whose truth is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.optimize import nnls

from effdl.errors import ConfigError
from effdl.opspec import OpSpec
from effdl.targets.calibration import (
    Calibration,
    fit_calibration,
    network_features,
    nonnegative_least_squares,
)


def _op(key: str, **features: float) -> OpSpec:
    return OpSpec(
        key=key,
        num_params=0,
        macs=0,
        bytes_moved=1,
        peak_memory_bytes=1,
        features=features,
        build=lambda batch_size: b"",
    )


STEM = _op("stem", image_pixels=100.0)
PLAIN = _op("plain", block=1.0, squeeze_excite=0.0)
GATED = _op("gated", block=1.0, squeeze_excite=1.0)
HEAD = _op("head")


def _networks(num: int, seed: int = 0) -> list[tuple[list[OpSpec], np.ndarray]]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(num):
        blocks = [PLAIN] * int(rng.integers(4, 9)) + [GATED] * int(rng.integers(4, 9))
        ops = [STEM, *blocks, HEAD]
        made.append((ops, rng.uniform(0.1, 0.5, size=len(ops))))
    return made


def _truth(ops: list[OpSpec], op_ms: np.ndarray) -> float:
    total = 0.2
    for op, ms in zip(ops, op_ms, strict=True):
        if op is PLAIN:
            total += 0.9 * ms + 0.02
        elif op is GATED:
            total += 1.1 * ms + 0.02 + 0.03
        else:
            total += 0.8 * ms
    return total


def _fit(num: int, noise: float = 0.0) -> Calibration:
    networks = _networks(num)
    truth = np.array([_truth(*network) for network in networks])
    truth *= 1 + noise * np.random.default_rng(1).standard_normal(num)
    return fit_calibration(
        np.array([network_features(*network) for network in networks]),
        truth,
        1.03 * truth,
        reference_s=1e-4,
        resolutions=(160, 224),
    )


def test_features_by_hand():
    ops = [STEM, PLAIN, GATED, PLAIN, HEAD]
    features = network_features(ops, np.array([1.0, 2.0, 4.0, 8.0, 16.0]))
    assert features.tolist() == [10.0, 4.0, 17.0, 3.0, 1.0, 1.0]


def test_corrected_operators_by_hand():
    fit = Calibration(
        scales=(0.5, 2.0, 1.0),
        per_block_ms=0.1,
        per_squeeze_excite_ms=0.01,
        offset_ms=3.0,
        median_ratio=2.0,
        reference_s=1.0,
        num_networks=4,
        mape_percent=0.0,
        worst_percent=0.0,
        interval_percent=0.0,
        resolutions=(1, 2),
    )
    corrected = fit.correct([STEM, PLAIN, GATED, HEAD], np.array([1.0, 1.0, 1.0, 1.0]))
    assert corrected.tolist() == pytest.approx([8.0, 1.2, 4.22, 2.0])


def test_unseen_networks_are_predicted():
    fit = _fit(40)
    errors = []
    for ops, op_ms in _networks(50, seed=9):
        predicted = fit.correct(ops, op_ms).sum()
        errors.append(abs(predicted / (1.03 * _truth(ops, op_ms)) - 1))
    plain = [abs(op_ms.sum() / _truth(ops, op_ms) - 1) for ops, op_ms in _networks(50, seed=9)]
    assert np.mean(errors) < 0.01
    assert np.mean(plain) > 3 * np.mean(errors)


def test_the_stated_error_is_the_error_on_networks_left_out():
    fit = _fit(40, noise=0.03)
    # A perfect fit of normal noise of 3 % errs by 3 % x sqrt(2 / pi) in the mean.
    assert 1.8 < fit.mape_percent < 3.5
    assert fit.mape_percent < fit.worst_percent
    assert 4.0 < fit.interval_percent < 9.0
    assert fit.num_networks == 40
    assert fit.median_ratio == pytest.approx(1.03)


def test_no_operator_is_corrected_below_zero():
    rng = np.random.default_rng(0)
    networks = _networks(20)
    fit = fit_calibration(
        np.array([network_features(*network) for network in networks]),
        rng.uniform(1.0, 2.0, size=20),
        rng.uniform(1.0, 2.0, size=20),
        reference_s=1e-4,
        resolutions=(160, 224),
    )
    ops, op_ms = networks[0]
    assert (fit.correct(ops, op_ms) >= 0).all()


def test_too_few_networks():
    with pytest.raises(ConfigError, match="at least 4 networks"):
        _fit(3)


@given(
    arrays.arrays(np.float64, (12, 4), elements=st.floats(-10, 10).map(lambda x: round(x, 3))),
    arrays.arrays(np.float64, (12,), elements=st.floats(-10, 10).map(lambda x: round(x, 3))),
)
def test_nonnegative_least_squares_is_as_good_as_scipys(matrix: np.ndarray, target: np.ndarray):
    ours = nonnegative_least_squares(matrix, target)
    assert (ours >= 0).all()
    _, theirs = nnls(matrix, target)
    assert np.linalg.norm(matrix @ ours - target) <= theirs * (1 + 1e-6) + 1e-6
