"""Networks that `effdl targets suggest` chooses against random ones, and the stated uncertainty.

5,000 sub-networks were measured on GPUs by others, 4,000 of them with every setting used
here. Each of 20 seeds chooses among its own random half of these; the fit sees the chosen
ones' latencies, and all others test it. 20 random draws stand against them. The ends are
the networks with the fewest and the most multiply-accumulates, 2 % each, where searches
with tight and loose limits look.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture
from scipy.stats import rankdata

from effdl.data.ofa_latency import read_measured_networks
from effdl.models.mobilenet_v3.space import ofa_mbv3_w12
from effdl.targets.block_design import choose_networks
from effdl.targets.block_fit import Measurements, fit_blocks
from effdl.targets.block_validation import predictive_interval_percent
from effdl.workflows.build_reference_tables import GPU_COLUMNS
from effdl.workflows.fit_target import measurements_of

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "data" / "ofa"
NUM_DRAWS = 20
NUM_UNSEEN = 500
END_SHARE = 0.02


class Errors(NamedTuple):
    """Of one fit on the networks it did not see, in percent but for the correlation."""

    mape: float
    ends_mape: float
    p95: float
    spearman: float
    interval: float
    covered: float


@pytest.fixture(scope="module")
def measured() -> dict[str, Measurements]:
    """The published latencies by column."""
    path = PUBLISHED / "measured_gpu_latency.csv"
    if not path.is_file():
        pytest.skip("the published figures are not beside this checkout")
    networks = read_measured_networks(path, latency_columns=tuple(GPU_COLUMNS))
    columns = np.array([network.latencies_ms for network in networks]).T
    every = measurements_of(ofa_mbv3_w12(), networks, columns[0].tolist(), path)
    return {n: replace(every, latency_ms=ms) for n, ms in zip(GPU_COLUMNS, columns, strict=True)}


def errors_of(measured: Measurements, rows: NDArray[np.intp]) -> Errors:
    others = np.setdiff1d(np.arange(len(measured)), rows)
    known, unknown = measured.take(rows), measured.take(others)
    fit = fit_blocks(known)
    predicted = unknown.sum_over_slots(fit.predict_op_ms(unknown.ops))
    error = 100 * np.abs(predicted / unknown.latency_ms - 1)
    interval = predictive_interval_percent(known, unknown.codes[:NUM_UNSEEN])
    return Errors(
        mape=float(error.mean()),
        ends_mape=float(error[ends(measured)[others]].mean()),
        p95=float(np.percentile(error, 95)),
        spearman=float(np.corrcoef(rankdata(predicted), rankdata(unknown.latency_ms))[0, 1]),
        interval=interval,
        covered=100 * float((100 * np.abs(unknown.latency_ms / predicted - 1) <= interval).mean()),
    )


def ends(measured: Measurements) -> NDArray[np.bool_]:
    """Which networks have the fewest or the most multiply-accumulates."""
    macs = measured.sum_over_slots(np.array([float(op.macs) for op in measured.ops]))
    low, high = np.percentile(macs, [100 * END_SHARE, 100 * (1 - END_SHARE)])
    return (macs < low) | (macs > high)


def suggested_rows(measured: Measurements, num: int, seed: int) -> NDArray[np.intp]:
    rng = np.random.default_rng(seed)
    candidates = rng.permutation(len(measured))[: len(measured) // 2]
    return candidates[choose_networks(measured.ops, measured.codes[candidates], num, rng)]


@pytest.mark.parametrize("num", [10, 15, 20])
def test_suggested_against_random(
    benchmark: BenchmarkFixture, measured: dict[str, Measurements], num: int
) -> None:
    some = next(iter(measured.values()))
    draws = {
        "random": [
            np.random.default_rng(seed).permutation(len(some))[:num] for seed in range(NUM_DRAWS)
        ],
        "suggested": [suggested_rows(some, num, seed) for seed in range(NUM_DRAWS)],
    }
    found: dict[str, NDArray[np.float64]] = {}

    def fit_every_draw() -> None:
        for how, rows in draws.items():
            found[how] = np.array([[errors_of(m, r) for r in rows] for m in measured.values()])

    benchmark.pedantic(fit_every_draw, rounds=1)
    random, suggested = found["random"], found["suggested"]
    print(f"\n{num} networks: mean (interval: median) of {NUM_DRAWS} draws, random / suggested")
    print(" " * 14 + "".join(f"{title:>17s}" for title in (*Errors._fields, "worst mape")))
    for i, name in enumerate(measured):
        # A single draw with hardly a degree of freedom left has an interval without bounds.
        pairs = [
            (middle(random[i, :, k]), middle(suggested[i, :, k]))
            for k, middle in enumerate([np.mean] * 4 + [np.median, np.mean])
        ]
        pairs.append((random[i, :, 0].max(), suggested[i, :, 0].max()))
        print(f"{name.removesuffix('_ms'):14s}" + "".join(f"{r:8.3f} /{s:7.3f}" for r, s in pairs))
    ratio = suggested.mean(axis=1) / random.mean(axis=1)
    mean_ratio = np.exp(np.log(ratio).mean(axis=0))
    worst_draws = suggested[:, :, 0].max(axis=1) / random[:, :, 0].max(axis=1)
    benchmark.extra_info.update(
        mape_ratio=float(mean_ratio[0]),
        ends_mape_ratio=float(mean_ratio[1]),
        p95_ratio=float(mean_ratio[2]),
        greatest_mape_ratio=float(ratio[:, 0].max()),
        worst_draw_ratio=float(np.exp(np.log(worst_draws).mean())),
        num_settings_won=int((ratio[:, 0] < 1).sum()),
        spearman_gain=float((suggested - random)[:, :, 3].mean()),
    )
    print(", ".join(f"{k} {v:.3f}" for k, v in benchmark.extra_info.items()))
    assert mean_ratio[0] < 1.0
    assert mean_ratio[1] < 0.9
    assert ratio[:, 0].max() < 1.15
    assert random[:, :, 5].mean(axis=1).min() >= 90.0
    assert suggested[:, :, 5].mean(axis=1).min() >= 90.0
