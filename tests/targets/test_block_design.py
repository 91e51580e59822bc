"""The choice of networks to measure: what it minimises, and that it beats chance."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from effdl.data.ofa_latency import read_measured_networks
from effdl.models.mobilenet_v3.space import ofa_mbv3_w12
from effdl.targets.block_design import NUM_DESIGNED, choose_networks
from effdl.targets.block_fit import Measurements, fit_blocks
from effdl.targets.block_model import BlockCoefficients, op_features, sum_over_slots
from effdl.workflows.fit_target import measurements_of
from effdl.workflows.space_operators import SpaceOperators

# One device bound by launches, one by work.
DEVICES = {
    "launches": BlockCoefficients(
        launch_ms={"block": 0.2, "squeeze_excite": 0.15, "hswish": 0.04, "skip": 0.05},
        work_ms={"pointwise_macs": 0.001, "depthwise_macs": 0.004, "activation_elements": 0.01},
        exponent=2.0,
        offset_ms=0.9,
        offset_per_area_ms=0.1,
    ),
    "work": BlockCoefficients(
        launch_ms={"block": 0.02, "squeeze_excite": 0.01, "hswish": 0.003, "skip": 0.03},
        work_ms={"pointwise_macs": 0.05, "depthwise_macs": 0.1, "activation_elements": 1.1},
        exponent=1.3,
        offset_ms=0.7,
        offset_per_area_ms=2.0,
    ),
}


@pytest.fixture(scope="module")
def candidates() -> Measurements:
    """1,000 random networks, not timed."""
    space = ofa_mbv3_w12().with_resolutions((160, 176, 192, 208, 224))
    operators = SpaceOperators(space=space)
    codes = operators.codes(space.search_space.sample(1000, np.random.default_rng(3)))
    return Measurements(ops=operators.ops, codes=codes, latency_ms=np.ones(1000))


def choose(candidates: Measurements, num: int, seed: int) -> NDArray[np.intp]:
    rng = np.random.default_rng(seed)
    return choose_networks(candidates.ops, candidates.codes, num, rng)


def random_rows(candidates: Measurements, num: int, seed: int) -> NDArray[np.intp]:
    return np.random.default_rng(seed).permutation(len(candidates))[:num]


@pytest.mark.parametrize("num", [1, 2, 10, NUM_DESIGNED, NUM_DESIGNED + 1, 150, 1000])
def test_as_many_different_networks_as_asked_for(candidates: Measurements, num: int) -> None:
    rows = choose(candidates, num, seed=0)
    assert len(rows) == len(set(rows.tolist())) == num
    assert rows.min() >= 0
    assert rows.max() < 1000
    assert rows.tolist() == choose(candidates, num, seed=0).tolist()


def test_seeds_choose_differently(candidates: Measurements) -> None:
    assert set(choose(candidates, 10, seed=0)) != set(choose(candidates, 10, seed=1))


def test_beyond_the_designed_ones_the_rest_is_random(candidates: Measurements) -> None:
    few, many = choose(candidates, NUM_DESIGNED, seed=4), choose(candidates, 300, seed=4)
    assert many[:NUM_DESIGNED].tolist() == few.tolist()
    macs = candidates.sum_over_slots(np.array([float(op.macs) for op in candidates.ops]))
    rest = macs[many[NUM_DESIGNED:]]
    assert rest.mean() == pytest.approx(macs.mean(), rel=0.05)
    assert rest.std() == pytest.approx(macs.std(), rel=0.15)


@pytest.mark.parametrize("num", [10, 20])
def test_tells_more_of_a_linear_model_than_random_networks(
    candidates: Measurements, num: int
) -> None:
    """Variance of least squares on the cost features themselves, averaged over the networks."""
    features = sum_over_slots(candidates.codes, op_features(candidates.ops))
    features /= features.std(axis=0) + (features.std(axis=0) == 0)

    def mean_variance(rows: NDArray[np.intp]) -> float:
        inverse = np.linalg.pinv(features[rows].T @ features[rows], hermitian=True)
        return float(np.einsum("ni,ij,nj->n", features, inverse, features).mean())

    suggested = [mean_variance(choose(candidates, num, seed)) for seed in range(4)]
    random = [mean_variance(random_rows(candidates, num, seed)) for seed in range(40)]
    assert max(suggested) < np.percentile(random, 10)


@pytest.mark.parametrize("device", DEVICES)
def test_beats_the_median_random_draw_on_made_devices(
    candidates: Measurements, device: str
) -> None:
    exact_ms = candidates.sum_over_slots(DEVICES[device].predict_op_ms(candidates.ops))

    def error_percent(rows: NDArray[np.intp], seed: int) -> float:
        # Noise of its own for every draw: draws that share it are no independent trials.
        noise = np.exp(0.01 * np.random.default_rng(1000 + seed).normal(size=len(exact_ms)))
        fit = fit_blocks(replace(candidates, latency_ms=exact_ms * noise).take(rows))
        predicted = candidates.sum_over_slots(fit.predict_op_ms(candidates.ops))
        return 100 * float(np.abs(predicted / exact_ms - 1).mean())

    seeds = range(20)
    suggested = [error_percent(choose(candidates, 10, seed), seed) for seed in seeds]
    random = [error_percent(random_rows(candidates, 10, 500 + seed), seed) for seed in seeds]
    assert np.median(suggested) < 0.9 * np.median(random)
    assert max(suggested) < max(random)


@pytest.mark.reference_data
@pytest.mark.parametrize("column", ["titan_rtx_32_ms", "titan_rtx_64_ms"])
def test_beats_the_median_random_draw_on_real_gpus(column: str, reference_data: Path) -> None:
    path = reference_data / "ofa" / "measured_gpu_latency.csv"
    networks = read_measured_networks(path, latency_columns=(column,))
    latency_ms: list[float] = [network.latencies_ms[0] for network in networks]
    measured = measurements_of(ofa_mbv3_w12(), networks, latency_ms, path)

    def error_percent(rows: NDArray[np.intp]) -> float:
        fit = fit_blocks(measured.take(rows))
        predicted = measured.sum_over_slots(fit.predict_op_ms(measured.ops))
        return 100 * float(np.abs(predicted / measured.latency_ms - 1).mean())

    suggested = [error_percent(choose(measured, 10, seed)) for seed in range(5)]
    random = [error_percent(random_rows(measured, 10, seed)) for seed in range(11)]
    assert np.median(suggested) < np.median(random)
    assert max(suggested) < max(random)
