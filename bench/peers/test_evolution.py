"""100 x 500 evolution against Once-for-All's own, one thread, interleaved in one run."""

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from effdl import load_space, load_target
from effdl.models.mobilenet_v3.pretrained import load_accuracy_predictor
from effdl.search.constraint import Constraint
from effdl.search.evolution import ofa_evolution
from effdl.search.loop import run_search
from effdl.search.problem import SearchProblem
from effdl.search.result import SearchResult
from effdl.targets.latency_model import load_latency_model
from effdl.workflows.costs import SpaceCosts

RESOLUTIONS = (160, 176, 192, 208, 224)
ROUNDS = 3


def our_problem(limit_ms: float) -> SearchProblem:
    space = load_space("ofa-mbv3-w1.2").with_resolutions(RESOLUTIONS)
    model = load_latency_model(load_target("mobile-note10"))
    costs = SpaceCosts(space=space, batch_size=1, latency_model=model)
    predictor = load_accuracy_predictor(space)
    assert predictor is not None
    return SearchProblem(
        space=space.search_space,
        objective=predictor.predict_raw,
        constraints=(Constraint(name="latency", limit=limit_ms, cost=costs.latency_ms),),
    )


@pytest.mark.parametrize("limit_ms", [15.0, 25.0, 35.0])
def test_evolution_against_the_peer(
    benchmark: BenchmarkFixture, peer_finder: Callable[[float], Any], limit_ms: float
) -> None:
    """CPU seconds of 50,100 evaluations, and the accuracy each found by the peer's predictor."""
    torch.set_num_threads(1)
    finder, problem = peer_finder(limit_ms), our_problem(limit_ms)
    peer_seconds: list[float] = []
    peer_raw: list[float] = []
    our_seconds: list[float] = []
    our_raw: list[float] = []

    def peer_round() -> tuple[tuple[int], dict[str, object]]:
        seed = len(peer_seconds)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the peer draws from the global generator
        start = time.process_time()
        _, best = finder.run_evolution_search()
        peer_seconds.append(time.process_time() - start)
        peer_raw.append(best[0])
        return (seed,), {}

    def our_round(seed: int) -> SearchResult:
        start = time.process_time()
        result = run_search(problem, ofa_evolution(), rng=np.random.default_rng(seed))
        our_seconds.append(time.process_time() - start)
        config = problem.space.decode(result.best[0].row)
        sample = {"ks": list(config.ints("kernel_size")), "e": list(config.ints("expand_ratio"))}
        sample |= {"d": list(config.ints("depth")), "r": [int(config.ints("resolution")[0])]}
        our_raw.append(float(finder.accuracy_predictor.predict_accuracy([sample])[0]))
        assert result.num_unique == 50_100
        return result

    benchmark.pedantic(our_round, setup=peer_round, rounds=ROUNDS)
    ours, peers = np.array(our_seconds), np.array(peer_seconds)
    benchmark.extra_info.update(
        our_cpu_seconds=float(np.median(ours)),
        peer_cpu_seconds=float(np.median(peers)),
        ratio=float(np.median(peers / ours)),
        our_us_per_candidate=float(np.median(ours) / 50_100 * 1e6),
        our_raw_by_the_peers_predictor=float(np.mean(our_raw)),
        peer_raw=float(np.mean(peer_raw)),
    )
    print("\n" + ", ".join(f"{k} {v:.4g}" for k, v in benchmark.extra_info.items()))
