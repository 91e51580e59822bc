"""Stated uncertainty: it holds what it says, from ten measurements on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from effdl.data.ofa_latency import read_measured_networks
from effdl.errors import ConfigError
from effdl.models.mobilenet_v3.space import ofa_mbv3_w12
from effdl.targets.block_fit import Measurements, fit_blocks
from effdl.targets.block_model import BlockCoefficients
from effdl.targets.block_validation import (
    cross_validate,
    fit_best,
    predictive_interval_percent,
)
from effdl.workflows.build_reference_tables import GPU_COLUMNS
from effdl.workflows.fit_target import measurements_of
from effdl.workflows.space_operators import SpaceOperators

TRUTH = BlockCoefficients(
    launch_ms={"block": 0.08, "squeeze_excite": 0.03, "hswish": 0.01, "skip": 0.02},
    work_ms={"pointwise_macs": 0.01, "depthwise_macs": 0.03, "activation_elements": 0.2},
    exponent=3.0,
    offset_ms=0.5,
    offset_per_area_ms=0.9,
)


@pytest.fixture(scope="module")
def exact() -> Measurements:
    """400 random networks at three resolutions, timed by `TRUTH`."""
    space = ofa_mbv3_w12().with_resolutions((160, 192, 224))
    operators = SpaceOperators(space=space)
    codes = operators.codes(space.search_space.sample(400, np.random.default_rng(1)))
    made = Measurements(ops=operators.ops, codes=codes, latency_ms=np.ones(400))
    return replace(made, latency_ms=made.sum_over_slots(TRUTH.predict_op_ms(made.ops)))


def noisy(measured: Measurements, deviation: float, rng: np.random.Generator) -> Measurements:
    noise = np.exp(deviation * rng.normal(size=len(measured)))
    return replace(measured, latency_ms=measured.latency_ms * noise)


def covered(fit: BlockCoefficients, unknown: Measurements, interval_percent: float) -> float:
    """Fraction of the networks that lie within the interval of their prediction."""
    predicted = unknown.sum_over_slots(fit.predict_op_ms(unknown.ops))
    return float((100 * np.abs(unknown.latency_ms / predicted - 1) <= interval_percent).mean())


def draw(measured: Measurements, num: int, seed: int) -> tuple[Measurements, Measurements]:
    """So many networks at random, and the others."""
    rows = np.random.default_rng(seed).permutation(len(measured))
    return measured.take(rows[:num]), measured.take(rows[num:])


@pytest.mark.parametrize(("num", "deviation"), [(10, 0.05), (15, 0.02), (20, 0.02)])
def test_the_interval_covers_what_it_says(exact: Measurements, num: int, deviation: float) -> None:
    shares, widths = [], []
    for seed in range(20):
        measured = noisy(exact, deviation, np.random.default_rng(100 + seed))
        known, unknown = draw(measured, num, seed)
        interval = predictive_interval_percent(known, unknown.codes)
        shares.append(covered(fit_blocks(known), unknown, interval))
        widths.append(interval)
    assert 0.91 <= np.mean(shares) <= 0.99
    # No narrower than the noise that even the true model would be left with, and no
    # wider than an estimate from so few can need.
    assert 1.8 * 100 * deviation < np.median(widths) < 6 * 100 * deviation


def test_the_interval_follows_the_noise_and_the_number(exact: Measurements) -> None:
    def width(num: int, deviation: float) -> float:
        widths = []
        for seed in range(5):
            known, unknown = draw(
                noisy(exact, deviation, np.random.default_rng(seed)), num, 50 + seed
            )
            widths.append(predictive_interval_percent(known, unknown.codes))
        return float(np.median(widths))

    assert width(30, 0.04) == pytest.approx(2 * width(30, 0.02), rel=0.3)
    assert width(30, 0.02) < width(10, 0.02)


def test_one_disturbed_measurement_widens_the_interval(exact: Measurements) -> None:
    known, unknown = draw(noisy(exact, 0.01, np.random.default_rng(0)), 20, 0)
    latency_ms = known.latency_ms.copy()
    latency_ms[4] *= 1.5
    quiet = predictive_interval_percent(known, unknown.codes)
    disturbed = predictive_interval_percent(replace(known, latency_ms=latency_ms), unknown.codes)
    assert disturbed > 3 * quiet


def test_forty_measurements_speak_for_themselves(exact: Measurements) -> None:
    measured = noisy(exact, 0.03, np.random.default_rng(7))
    known, unknown = draw(measured, 60, 7)
    fit, validation = fit_best(known, unknown.codes)
    assert not fit.kinds
    # The mean absolute value of normal noise is 0.8 of its deviation.
    assert 2.0 < validation.mape_percent < 4.0
    assert 0.9 < validation.spearman <= 1.0
    assert validation == cross_validate(known)
    assert covered(fit, unknown, validation.interval_percent) > 0.9


def test_fewer_take_the_interval_of_the_posterior(exact: Measurements) -> None:
    known, unknown = draw(noisy(exact, 0.03, np.random.default_rng(8)), 10, 8)
    _, validation = fit_best(known, unknown.codes)
    crossed = cross_validate(known)
    assert validation[:2] == crossed[:2]
    assert validation.interval_percent == predictive_interval_percent(known, unknown.codes)
    assert validation.interval_percent != crossed.interval_percent


def test_nine_are_refused_by_each(exact: Measurements) -> None:
    known, unknown = draw(exact, 9, 0)
    with pytest.raises(ConfigError, match="at least 10 different networks, got 9"):
        fit_best(known, unknown.codes)
    with pytest.raises(ConfigError, match="at least 10 different networks, got 9"):
        predictive_interval_percent(known, unknown.codes)


def real(path: Path, column: str) -> Measurements:
    networks = read_measured_networks(path, latency_columns=(column,))
    latency_ms: list[float] = [network.latencies_ms[0] for network in networks]
    return measurements_of(ofa_mbv3_w12(), networks, latency_ms, path)


@pytest.mark.proof
@pytest.mark.reference_data
@pytest.mark.parametrize("num", [10, 15, 20])
@pytest.mark.parametrize("column", GPU_COLUMNS)
def test_the_interval_covers_real_gpus(column: str, num: int, reference_data: Path) -> None:
    measured = real(reference_data / "ofa" / "measured_gpu_latency.csv", column)
    shares: NDArray[np.float64] = np.empty(20)
    for seed in range(20):
        known, unknown = draw(measured, num, seed)
        interval = predictive_interval_percent(known, unknown.codes[:500])
        shares[seed] = covered(fit_blocks(known), unknown, interval)
    assert 0.90 <= shares.mean() <= 0.99
