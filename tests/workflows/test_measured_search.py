"""Searching until the clock agrees, on made searches and a made clock."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effdl.errors import InfeasibleConstraintError, UnstableMeasurementError
from effdl.search.candidate import Candidate
from effdl.search.result import SearchResult
from effdl.search.space import SubnetConfig
from effdl.targets.timing import Timing
from effdl.workflows.measured_search import (
    FastestMissedError,
    MeasuredSearch,
    search_and_measure,
)

_FASTEST_MS = 2.0


def _timing(median_ms: float) -> Timing:
    return Timing(
        p20_ms=median_ms, median_ms=median_ms, p95_ms=median_ms, interval_percent=0.1,
        num_samples=80, num_dropped=0, num_rounds=8, reference_s=1e-4, unstable=False,
    )  # fmt: skip


def _candidate(predicted_ms: float) -> Candidate:
    """A network that is the more accurate the slower it is."""
    return Candidate(
        row=np.frombuffer(np.float64(predicted_ms).tobytes(), dtype=np.uint8).copy(),
        config=SubnetConfig({"resolution": (224,)}),
        objective=predicted_ms,
        costs={"latency_ms": predicted_ms},
    )


@dataclass
class World:
    """Networks of every latency above 2 ms; the clock turns a prediction into a median."""

    clock: Callable[[float], float]
    searched: list[float] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)

    def search(self, limit_ms: float) -> SearchResult:
        self.searched.append(limit_ms)
        if limit_ms < _FASTEST_MS:
            raise InfeasibleConstraintError("too tight", fastest_latency_ms=_FASTEST_MS)
        slowest = max(limit_ms * 0.999, _FASTEST_MS)
        best = tuple(_candidate(max(slowest * (1 - 0.002 * i), _FASTEST_MS)) for i in range(5))
        return SearchResult(
            best=best, pareto_front=best, num_evaluations=5, num_unique=5,
            history=np.zeros(5), cpu_seconds=0.0, wall_seconds=0.0,
        )  # fmt: skip

    def measure(self, candidates: Sequence[Candidate]) -> list[Timing]:
        found = [self.clock(c.costs["latency_ms"]) for c in candidates]
        self.measured += found
        return [_timing(ms) for ms in found]

    def run(self, limit_ms: float, num_wanted: int = 1) -> MeasuredSearch:
        return search_and_measure(
            self.search, self.measure,
            limit_ms=limit_ms, first_limit_ms=limit_ms, fastest_ms=_FASTEST_MS,
            num_wanted=num_wanted,
        )  # fmt: skip


def test_a_table_that_is_right_is_searched_once():
    world = World(clock=lambda ms: ms * 0.99)
    done = world.run(10.0)
    assert world.searched == [10.0]
    assert done.met[0].candidate.costs["latency_ms"] == pytest.approx(9.99)
    assert done.limit_ms == 10.0
    assert len(done.attempts) == 1


def test_a_slower_machine_is_searched_again_with_the_ratio():
    world = World(clock=lambda ms: ms * 1.05)
    done = world.run(10.0)
    # Predicted 9.99, measured 10.4895, with 0.7 % for a second measurement: 10.5629.
    assert world.searched == pytest.approx([10.0, 10.0 / (1.05 * 1.007) * 0.996])
    assert done.met[0].timing.median_ms == pytest.approx(10.0 / 1.007 * 0.996 * 0.999)
    assert done.limit_ms == world.searched[1]
    assert [a.limit_ms for a in done.attempts] == world.searched


def test_a_faster_machine_is_searched_again_for_more_accuracy():
    world = World(clock=lambda ms: ms * 0.9)
    done = world.run(10.0)
    assert len(world.searched) == 2
    assert 9.9 < done.met[0].timing.median_ms < 10.0
    assert done.met[0].candidate.objective > 11.0


def test_one_disturbed_measurement_is_not_believed():
    bursts = iter([2.0])
    world = World(clock=lambda ms: ms * next(bursts, 0.99))
    done = world.run(10.0)
    assert world.searched == [10.0]
    assert len(world.measured) == 4  # Three networks, and the disturbed one again.
    assert done.met[0].timing.median_ms == pytest.approx(9.99 * 0.99)


def test_a_machine_twice_as_slow_is_followed_step_by_step():
    world = World(clock=lambda ms: ms * 2.0)
    done = world.run(10.0)
    assert done.met[0].timing.median_ms <= 10.0
    assert 4.5 < done.limit_ms < 5.0
    steps = np.array(world.searched[1:]) / np.array(world.searched[:-1])
    assert (steps > 0.84).all()


def test_a_limit_that_the_fastest_misses_by_the_clock_is_refused():
    world = World(clock=lambda ms: ms * 1.05)
    with pytest.raises(FastestMissedError) as caught:
        world.run(2.05)
    assert caught.value.fastest.predicted_ms == _FASTEST_MS
    assert caught.value.fastest.timing.median_ms == pytest.approx(2.1)
    assert world.searched[-1] == _FASTEST_MS


def test_a_limit_that_only_the_fastest_meets_is_met():
    world = World(clock=lambda ms: ms * 1.05)
    done = world.run(2.12)
    assert done.met[0].predicted_ms < 2.01
    assert done.met[0].timing.median_ms < 2.12


def test_a_clock_that_never_agrees_ends_with_an_error():
    rising = iter(1.1 * 1.2**i for i in range(1000))
    world = World(clock=lambda ms: ms * next(rising))
    with pytest.raises((UnstableMeasurementError, FastestMissedError)):
        world.run(100.0)
    assert len(world.searched) <= 9


def test_as_many_networks_as_are_wanted_meet_the_limit():
    done = World(clock=lambda ms: ms * 1.03).run(10.0, num_wanted=5)
    assert len(done.met) >= 5
    accuracies = [met.candidate.objective for met in done.met]
    assert accuracies == sorted(accuracies, reverse=True)
    assert all(met.timing.median_ms < 10.0 for met in done.met)


@given(ratio=st.floats(0.6, 1.9), noise=st.floats(0.0, 0.02), seed=st.integers(0, 2**32 - 1))
def test_what_is_returned_meets_the_limit_by_the_clock(ratio: float, noise: float, seed: int):
    rng = np.random.default_rng(seed)
    world = World(clock=lambda ms: ms * ratio * float(1 + noise * rng.uniform(-1, 1)))
    done = world.run(10.0)
    assert done.met
    for met in done.met:
        assert met.timing.median_ms < 10.0
    # Not needlessly small either: 4 % for the noise, 1 % for another measurement.
    assert done.met[0].predicted_ms * ratio > 10.0 * 0.94
