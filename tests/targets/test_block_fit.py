"""Fits: known coefficients are found again, noise and outliers do not spoil them."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import rankdata

from effdl.data.ofa_latency import read_measured_networks
from effdl.errors import ConfigError
from effdl.models.mobilenet_v3.space import ofa_mbv3_w12
from effdl.targets.block_fit import Measurements, fit_blocks
from effdl.targets.block_model import BlockCoefficients, BlockKind, BlockModel, block_kind
from effdl.targets.block_validation import cross_validate, fit_best
from effdl.targets.target import shipped_tables_folder
from effdl.workflows.build_reference_tables import GPU_COLUMNS
from effdl.workflows.fit_target import measurements_of

TRUTH = BlockCoefficients(
    launch_ms={"block": 0.08, "squeeze_excite": 0.03, "hswish": 0.01, "skip": 0.02},
    work_ms={"pointwise_macs": 0.01, "depthwise_macs": 0.03, "activation_elements": 0.2},
    exponent=3.0,
    offset_ms=0.5,
    offset_per_area_ms=0.9,
)


@cache
def made_measurements(num: int) -> Measurements:
    """Random networks of the default space at three resolutions, timed by `TRUTH`."""
    space = ofa_mbv3_w12().with_resolutions((160, 192, 224))
    ops = tuple({op.key: op for slot in space.slots for op in slot.ops}.values())
    number = {op.key: i for i, op in enumerate(ops)}
    rows = space.search_space.sample(num, np.random.default_rng(1))
    codes = np.full((num, len(space.slots)), len(ops), dtype=np.intp)
    for i, row in enumerate(rows):
        keys = [shape.spec().key for _, shape in space.shapes(space.search_space.decode(row))]
        codes[i, : len(keys)] = [number[key] for key in keys]
    made = Measurements(ops=ops, codes=codes, latency_ms=np.ones(num))
    return retimed(made, made.sum_over_slots(TRUTH.predict_op_ms(ops)))


def retimed(measured: Measurements, latency_ms: NDArray[np.float64]) -> Measurements:
    return Measurements(ops=measured.ops, codes=measured.codes, latency_ms=latency_ms)


def split(measured: Measurements, num: int) -> tuple[Measurements, Measurements]:
    """The first so many networks, and the others."""
    rows = np.arange(len(measured))
    return measured.take(rows[:num]), measured.take(rows[num:])


def errors_percent(fit: BlockCoefficients, measured: Measurements) -> NDArray[np.float64]:
    predicted = measured.sum_over_slots(fit.predict_op_ms(measured.ops))
    return 100 * np.abs(predicted / measured.latency_ms - 1)


def rank_correlation(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    return float(np.corrcoef(rankdata(left), rankdata(right))[0, 1])


def test_sums_over_slots_leave_empty_ones_out() -> None:
    measured = made_measurements(40)
    ops_per_network = measured.sum_over_slots(np.ones(len(measured.ops)))
    assert ops_per_network.tolist() == (measured.codes < len(measured.ops)).sum(axis=1).tolist()
    assert ops_per_network.min() >= 2 + 10 + 4
    assert measured.sum_over_slots(np.ones((len(measured.ops), 3))).shape == (40, 3)


def test_finds_the_model_that_made_the_latencies() -> None:
    known, unknown = split(made_measurements(400), 60)
    fit = fit_blocks(known)
    assert errors_percent(fit, unknown).max() < 0.1
    assert fit.exponent == pytest.approx(TRUTH.exponent, rel=0.1)


def test_twenty_noisy_measurements_are_enough() -> None:
    known, unknown = split(made_measurements(400), 20)
    noise = np.exp(0.01 * np.random.default_rng(2).normal(size=20))
    fit = fit_blocks(retimed(known, known.latency_ms * noise))
    assert errors_percent(fit, unknown).mean() < 1.5


def test_disturbed_measurements_do_not_spoil_the_fit() -> None:
    known, unknown = split(made_measurements(400), 60)
    disturbed = known.latency_ms.copy()
    disturbed[::10] *= 1.5
    assert errors_percent(fit_blocks(retimed(known, disturbed)), unknown).mean() < 1.0


def test_same_seed_same_fit() -> None:
    known, _ = split(made_measurements(400), 30)
    assert fit_blocks(known, seed=3) == fit_blocks(known, seed=3)
    assert cross_validate(known, seed=3) == cross_validate(known, seed=3)


def test_corrections_are_used_where_they_help() -> None:
    measured = made_measurements(400)
    kinds = {block_kind(op.key) for op in measured.ops if op.features["block"]}
    rng = np.random.default_rng(5)
    uneven = msgspec.structs.replace(
        TRUTH,
        kinds={kind: BlockKind(scale=rng.uniform(0.8, 1.2), offset_ms=0) for kind in sorted(kinds)},
        resolution_offset_ms={160: 0.1, 192: -0.1, 224: 0.0},
    )
    latency_ms = measured.sum_over_slots(uneven.predict_op_ms(measured.ops))
    known, unknown = split(retimed(measured, latency_ms), 300)
    fit, validation = fit_best(known, unknown.codes)
    assert fit.kinds
    assert set(fit.resolution_offset_ms) == {160, 192, 224}
    plain = errors_percent(fit_blocks(known), unknown).mean()
    corrected = errors_percent(fit, unknown).mean()
    assert corrected < 0.7 * plain
    assert validation.mape_percent == pytest.approx(corrected, rel=0.5)


def test_too_few_measurements() -> None:
    known, _ = split(made_measurements(400), 9)
    with pytest.raises(ConfigError, match=r"at least 10 different networks, got 9$"):
        fit_blocks(known)
    repeated = known.take(np.arange(9).repeat(5))
    with pytest.raises(ConfigError, match="at least 10 different networks, got 9 in 45 rows"):
        fit_blocks(repeated)


def test_a_clock_that_stands_still() -> None:
    known, _ = split(made_measurements(400), 20)
    with pytest.raises(ConfigError, match=r"all 20 networks have the same latency: .* 7 ms"):
        fit_blocks(retimed(known, np.full(20, 7.0)))


def test_repeats_count_once_at_their_median() -> None:
    known, _ = split(made_measurements(400), 12)
    rows = np.array([3, 0, 3, 5, 3, 0])
    repeated = replace(
        known, codes=known.codes[rows], latency_ms=np.array([1.0, 4.0, 9.0, 7.0, 2.0, 6.0])
    )
    merged = repeated.merge_repeats()
    assert merged.latency_ms.tolist() == [2.0, 5.0, 7.0]
    assert merged.codes.tolist() == known.codes[[3, 0, 5]].tolist()


@cache
def published(path: Path) -> dict[str, Measurements]:
    networks = read_measured_networks(path, latency_columns=tuple(GPU_COLUMNS))
    columns = np.array([network.latencies_ms for network in networks]).T
    measured = measurements_of(ofa_mbv3_w12(), networks, columns[0].tolist(), path)
    return {name: retimed(measured, ms) for name, ms in zip(GPU_COLUMNS, columns, strict=True)}


SHIPPED = {
    # Cross-validated error in percent, rank correlation.
    "titan_rtx_1_ms": (3.0, 0.85),
    "titan_rtx_32_ms": (0.35, 0.999),
    "titan_rtx_64_ms": (0.25, 0.999),
    "v100_1_ms": (4.5, 0.85),
    "v100_64_ms": (0.45, 0.999),
    "2080ti_32_ms": (8.0, 0.80),
    "2080ti_64_ms": (2.2, 0.95),
    "titan_xp_1_ms": (6.0, 0.75),
}


def shipped(column: str) -> BlockModel:
    name, batch_size = GPU_COLUMNS[column]
    return BlockModel.read(shipped_tables_folder() / f"{name}-b{batch_size}.json")


@pytest.mark.parametrize("column", SHIPPED)
def test_shipped_models_say_how_good_they_are(column: str) -> None:
    model, (mape_percent, spearman) = shipped(column), SHIPPED[column]
    assert model.num_samples == 4000
    assert model.cv_mape_percent < mape_percent
    assert model.cv_spearman > spearman
    assert model.interval_percent > model.cv_mape_percent
    assert (model.licence, "HELP" in model.origin) == ("MIT", True)


@pytest.mark.reference_data
@pytest.mark.parametrize("column", SHIPPED)
def test_shipped_models_against_the_measurements(column: str, reference_data: Path) -> None:
    measured = published(reference_data / "ofa" / "measured_gpu_latency.csv")[column]
    model = shipped(column)
    predicted = measured.sum_over_slots(model.predict_op_ms(measured.ops))
    errors = 100 * np.abs(predicted / measured.latency_ms - 1)
    assert errors.mean() < 1.05 * model.cv_mape_percent
    outside = 100 * np.abs(measured.latency_ms / predicted - 1) > model.interval_percent
    assert outside.mean() < 0.06
    rank = rank_correlation(predicted, measured.latency_ms)
    assert rank == pytest.approx(model.cv_spearman, abs=0.02)


@pytest.mark.reference_data
def test_batch_one_ranks_by_launches_where_macs_do_not(reference_data: Path) -> None:
    measured = published(reference_data / "ofa" / "measured_gpu_latency.csv")["v100_1_ms"]
    macs = measured.sum_over_slots(np.array([float(op.macs) for op in measured.ops]))
    assert rank_correlation(macs, measured.latency_ms) < 0.35
    known, unknown = split(measured, 3000)
    predicted = unknown.sum_over_slots(fit_blocks(known).predict_op_ms(unknown.ops))
    assert rank_correlation(predicted, unknown.latency_ms) > 0.80


@pytest.mark.reference_data
@pytest.mark.parametrize("column", ["titan_rtx_32_ms", "titan_rtx_64_ms", "v100_64_ms"])
def test_twenty_measurements_of_a_real_gpu(column: str, reference_data: Path) -> None:
    measured = published(reference_data / "ofa" / "measured_gpu_latency.csv")[column]
    errors = []
    for draw in range(5):
        rows = np.random.default_rng(draw).permutation(len(measured))
        fit = fit_blocks(measured.take(rows[:20]))
        errors.append(errors_percent(fit, measured.take(rows[20:])).mean())
    assert np.mean(errors) < 1.5


@pytest.mark.reference_data
@pytest.mark.parametrize(
    ("column", "limit"),
    [
        ("titan_rtx_32_ms", 1.0),
        ("titan_rtx_64_ms", 1.0),
        ("v100_64_ms", 1.0),
        ("2080ti_64_ms", 3.5),
    ],
)
def test_held_out_networks_of_a_real_gpu(column: str, limit: float, reference_data: Path) -> None:
    measured = published(reference_data / "ofa" / "measured_gpu_latency.csv")[column]
    known, unknown = split(measured, 3200)
    assert errors_percent(fit_blocks(known, corrections=True), unknown).mean() < limit
