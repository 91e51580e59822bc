"""How far whole networks that no profile has seen are from what is predicted of them.

    pytest bench/workflows/test_unseen_networks.py -s

Fifty random sub-networks of each width, measured in interleaved rounds with the table's
protocol and scaled to the machine's usual speed, against this machine's table (profiled
first, with the quick protocol, where there is none).
"""

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from effdl import load_space, load_target
from effdl.models.mobilenet_v3.onnx_graph import build_network
from effdl.targets.measure.onnxruntime import OnnxRuntime
from effdl.targets.measure.runtime import measure_on
from effdl.targets.timing import TABLE_PROTOCOL
from effdl.workflows.costs import SpaceCosts
from effdl.workflows.profile import load_host_latency_model, profile_space

_NUM_NETWORKS = 50
# The profile's own networks come from seed 0.
_SEED = 20261122


@pytest.mark.parametrize("space_name", ["ofa-mbv3-w1.0", "ofa-mbv3-w1.2"])
def test_predicted_against_measured(benchmark: BenchmarkFixture, space_name: str) -> None:
    space, runtime = load_space(space_name), OnnxRuntime()
    model = load_host_latency_model(space)
    if model is None:
        profile_space(load_target("cpu"), space, quick=True)
        model = load_host_latency_model(space)
    assert model is not None
    rows = space.search_space.sample(_NUM_NETWORKS, np.random.default_rng(_SEED))
    costs = SpaceCosts(space=space, batch_size=1, latency_model=model)
    models = [build_network(space, space.search_space.decode(row), 1) for row in rows]
    timings = benchmark.pedantic(
        lambda: measure_on(runtime, models, protocol=TABLE_PROTOCOL, budget_s=240.0),
        rounds=1,
        iterations=1,
    )
    usual_s = model.calibration.reference_s
    measured = np.array([t.median_ms * usual_s / t.reference_s for t in timings])
    predicted = costs.latency_ms(rows)
    errors = 100 * (predicted / measured - 1)
    ranks, measured_ranks = predicted.argsort().argsort(), measured.argsort().argsort()
    # Spearman's, without ties.
    squares = float(((ranks - measured_ranks) ** 2).sum())
    correlation = 1 - 6 * squares / (_NUM_NETWORKS * (_NUM_NETWORKS**2 - 1))
    figures = {
        "mape_percent": float(np.abs(errors).mean()),
        "worst_percent": float(np.abs(errors).max()),
        "mean_percent": float(errors.mean()),
        "spearman": correlation,
        "speed_of_the_moment": timings[0].reference_s / usual_s,
    }
    print(f"\n{space_name}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    benchmark.extra_info.update(figures)
    assert figures["mape_percent"] <= 3.0
    assert figures["worst_percent"] <= 10.0
    assert figures["spearman"] >= 0.99
