"""The runner, on a made clock: nothing here depends on how busy the machine is."""

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from effdl.targets.sampler import HostSampler, Opener
from effdl.targets.timing import (
    Instruments,
    Protocol,
    Round,
    measure_interleaved,
    summarise,
)

_SHORT = Protocol(name="short", min_rounds=6, max_rounds=20, min_span_s=0.0)


@dataclass
class World:
    """A clock that work moves, at a speed the test sets."""

    now: float = 0.0
    switches: int = 0
    slowness: Callable[[float], float] = lambda now: 1.0
    calls: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)

    def work(self, name: str, seconds: float | Callable[[], float]) -> Opener:
        def opener() -> HostSampler:
            self.opened.append(name)

            def run() -> None:
                self.calls.append(name)
                took = seconds() if callable(seconds) else seconds
                self.now += took * self.slowness(self.now)

            return HostSampler(run, clock=lambda: self.now, switches=lambda: self.switches)

        return opener

    def instruments(self) -> Instruments:
        return Instruments(
            reference=self.work("reference", 1e-4),
            clock=lambda: self.now,
        )


def test_figures_of_known_samples():
    rounds = [
        Round(
            seconds=(0.001, 0.002, 0.003, 0.004, 0.005), interrupted=(False,) * 5, reference_s=1.0
        )
        for _ in range(6)
    ]
    timing = summarise(rounds, reference_s=1.0, limit_percent=1.0)
    # 30 samples, six of each value: ranks 5.8, 14.5 and 27.55.
    assert timing.p20_ms == pytest.approx(1.8)
    assert timing.median_ms == pytest.approx(3.0)
    assert timing.p95_ms == pytest.approx(5.0)
    assert (timing.num_samples, timing.num_dropped, timing.num_rounds) == (30, 0, 6)
    assert timing.interval_percent == 0.0
    assert not timing.unstable


def test_rounds_are_scaled_by_the_reference():
    slow = Round(seconds=(0.002,) * 4, interrupted=(False,) * 4, reference_s=2.0)
    fast = Round(seconds=(0.001,) * 4, interrupted=(False,) * 4, reference_s=1.0)
    timing = summarise([slow, fast, slow], reference_s=1.0, limit_percent=1.0)
    assert timing.p20_ms == timing.p95_ms == pytest.approx(1.0)


def test_one_round_says_nothing_of_its_spread():
    one = Round(seconds=(0.001,) * 4, interrupted=(False,) * 4, reference_s=1.0)
    timing = summarise([one], reference_s=1.0, limit_percent=1.0)
    assert timing.interval_percent is None
    assert timing.unstable


def test_steady_items_take_the_least_rounds_and_are_exact():
    world = World()
    timings = measure_interleaved(
        [world.work("a", 0.001), world.work("b", 0.004)],
        instruments=world.instruments(),
        protocol=_SHORT,
    )
    assert [t.p20_ms for t in timings] == pytest.approx([1.0, 4.0])
    assert [t.num_rounds for t in timings] == [6, 6]
    assert [t.num_samples for t in timings] == [60, 60]
    assert not any(t.unstable for t in timings)


def test_items_take_turns_in_changing_order():
    world, names = World(), ["a", "b", "c", "d"]
    measure_interleaved(
        [world.work(name, 0.001) for name in names],
        instruments=world.instruments(),
        protocol=_SHORT,
    )
    turns = [
        name
        for name, before in zip(world.calls, [None, *world.calls], strict=False)
        if name != before and name != "reference"
    ]
    rounds = [tuple(turns[i : i + 4]) for i in range(0, len(turns), 4)]
    assert len(rounds) == 6
    assert all(sorted(one) == names for one in rounds)
    assert len(set(rounds)) > 1


def test_a_machine_that_changes_speed_does_not_change_the_figures():
    """Ten percent slower for stretches of three seconds, as was seen on a real machine."""
    world = World(slowness=lambda now: 1.1 if int(now / 3.0) % 2 else 1.0)
    seconds = [0.01 * (1 + i) for i in range(4)]
    protocol = Protocol(name="x", min_rounds=12, max_rounds=12)
    timings = measure_interleaved(
        [world.work(str(i), s) for i, s in enumerate(seconds)],
        instruments=world.instruments(),
        protocol=protocol,
        reference_s=1e-4,
    )
    for timing, wanted in zip(timings, seconds, strict=True):
        assert timing.p20_ms == pytest.approx(1000 * wanted, rel=0.02)


def test_a_burst_of_noise_does_not_move_the_20th_percentile():
    rng = np.random.default_rng(0)
    world = World()
    noisy = world.work("noisy", lambda: 0.001 * (5.0 if rng.random() < 0.3 else 1.0))
    (timing,) = measure_interleaved([noisy], instruments=world.instruments(), protocol=_SHORT)
    assert timing.p20_ms == pytest.approx(1.0)
    assert timing.p95_ms == pytest.approx(5.0)


def test_what_does_not_settle_is_marked_after_the_last_round():
    rng = np.random.default_rng(0)
    world = World()
    wild = world.work("wild", lambda: float(rng.lognormal(-7, 1.0)))
    timings = measure_interleaved(
        [wild, world.work("calm", 0.001)], instruments=world.instruments(), protocol=_SHORT
    )
    assert [t.unstable for t in timings] == [True, False]
    assert [t.num_rounds for t in timings] == [20, 6]


def test_samples_with_context_switches_are_dropped():
    world = World()
    turn = iter(range(10_000))

    def sometimes_switched() -> float:
        if next(turn) % 4 == 0:
            world.switches += 1
            return 0.01
        return 0.001

    (timing,) = measure_interleaved(
        [world.work("x", sometimes_switched)], instruments=world.instruments(), protocol=_SHORT
    )
    assert timing.num_dropped > 0
    assert timing.num_dropped + timing.num_samples == 60
    assert timing.p95_ms == pytest.approx(1.0)


def test_short_work_is_repeated_within_a_sample():
    world = World()
    protocol = Protocol(
        name="x", min_rounds=2, max_rounds=2, samples_per_round=3, min_sample_s=50e-6, min_span_s=0
    )
    (timing,) = measure_interleaved(
        [world.work("tiny", 10e-6)], instruments=world.instruments(), protocol=protocol
    )
    assert timing.p20_ms == pytest.approx(0.010)
    # One more call to find out how many a sample needs, then one to warm and 3 x 5 a round.
    assert world.calls.count("tiny") == 1 + 2 * (1 + 3 * 5)


def test_the_budget_ends_it_and_every_item_has_a_round():
    world = World()
    timings = measure_interleaved(
        [world.work(str(i), 0.1) for i in range(5)],
        instruments=world.instruments(),
        protocol=_SHORT,
        budget_s=0.5,
    )
    assert [t.num_rounds for t in timings] == [1] * 5
    assert all(t.unstable for t in timings)


def test_rounds_go_on_until_they_span_long_enough():
    world = World()
    protocol = Protocol(name="x", min_rounds=6, max_rounds=1000, min_span_s=1.0)
    (timing,) = measure_interleaved(
        [world.work("x", 0.001)], instruments=world.instruments(), protocol=protocol
    )
    assert timing.num_rounds > 50
    assert world.now >= 1.0


def test_earlier_rounds_are_not_measured_again():
    first = World()
    recorded: list[list[Round]] = [[], []]
    works = [first.work("a", 0.001), first.work("b", 0.002)]
    measure_interleaved(
        works,
        instruments=first.instruments(),
        protocol=_SHORT,
        record=lambda i, r: recorded[i].append(r),
    )
    assert [len(rounds) for rounds in recorded] == [6, 6]
    second = World()
    timings = measure_interleaved(
        [second.work("a", 0.001), second.work("b", 0.002)],
        instruments=second.instruments(),
        protocol=_SHORT,
        earlier=[recorded[0], recorded[1][:4]],
    )
    assert "a" not in second.calls
    assert [t.num_rounds for t in timings] == [6, 6]


def test_few_runs_are_alive_at_once():
    world = World()
    measure_interleaved(
        [world.work(str(i), 0.001) for i in range(6)],
        instruments=world.instruments(),
        protocol=_SHORT,
        max_open=4,
    )
    assert world.opened.count("3") == 6
    kept = World()
    measure_interleaved(
        [kept.work(str(i), 0.001) for i in range(4)],
        instruments=kept.instruments(),
        protocol=_SHORT,
        max_open=4,
    )
    assert kept.opened.count("3") == 1


def test_progress_reaches_the_total():
    world, seen = World(), []
    measure_interleaved(
        [world.work(str(i), 0.001) for i in range(3)],
        instruments=world.instruments(),
        protocol=_SHORT,
        progress=lambda done, total, text: seen.append((done, total)),
    )
    assert seen[0] == (1, 18)
    assert seen[-1] == (18, 18)


def test_nothing_to_measure():
    assert measure_interleaved([], instruments=World().instruments()) == []


def test_the_thread_is_freed_again():
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    world = World()

    def fail() -> float:
        assert not gc.isenabled()
        raise RuntimeError("the work fails")

    with pytest.raises(RuntimeError, match="the work fails"):
        measure_interleaved([world.work("x", fail)], instruments=world.instruments())
    assert gc.isenabled()
    assert cores is None or os.sched_getaffinity(0) == cores
