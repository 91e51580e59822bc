"""Planning and resuming, on a made clock."""

from pathlib import Path

import pytest

from effdl.errors import MissingEntryError
from effdl.opspec import OpSpec
from effdl.targets.profiler import (
    estimate_round_s,
    interpolate_missing,
    profile_items,
    spread_indices,
)
from effdl.targets.sampler import HostSampler, Opener
from effdl.targets.store import MeasurementStore, Setting
from effdl.targets.timing import Instruments, Protocol

_SETTING = Setting(
    runtime="r", runtime_version="1", runtime_build="b", device="d",
    num_threads=1, batch_size=1, protocol="short",
)  # fmt: skip
_PROTOCOL = Protocol(name="short", min_rounds=3, max_rounds=5, samples_per_round=2, min_span_s=0)


class World:
    """A clock that work moves; counts calls, and can be unplugged."""

    def __init__(self, *, dies_after: int | None = None) -> None:
        self.now, self.calls, self.dies_after = 0.0, 0, dies_after

    def work(self, seconds: float, *, counts: bool = True) -> Opener:
        def run() -> None:
            self.calls += counts
            if self.dies_after is not None and self.calls > self.dies_after:
                raise KeyboardInterrupt
            self.now += seconds

        return lambda: HostSampler(run, clock=lambda: self.now, switches=lambda: 0)

    def instruments(self) -> Instruments:
        return Instruments(
            reference=self.work(0.001, counts=False),
            clock=lambda: self.now,
        )

    def profile(self, store: MeasurementStore, num: int = 4):
        return profile_items(
            {f"item {i}": self.work(0.2 * (1 + i)) for i in range(num)},
            store=store,
            setting=_SETTING,
            protocol=_PROTOCOL,
            instruments=self.instruments(),
            budget_s=1e9,
        )


def test_what_is_stored_is_not_measured_again(tmp_path: Path):
    with MeasurementStore(tmp_path / "s") as store:
        first = World().profile(store)
        again = World()
        second = again.profile(store, num=5)
    assert first.num_cached == 0
    assert second.num_cached == 4
    assert {k: second.timings[k] for k in first.timings} == first.timings
    assert second.timings["item 4"].p20_ms == pytest.approx(1000.0)
    # Only the new item ran: once more to size a sample, then warm-up and two samples a round.
    assert again.calls == 1 + 3 * 3


def test_a_stopped_profile_goes_on_where_it_stopped(tmp_path: Path):
    whole = World()
    with MeasurementStore(tmp_path / "whole") as store:
        wanted = whole.profile(store)
    stopped = World(dies_after=30)
    with MeasurementStore(tmp_path / "s") as store, pytest.raises(KeyboardInterrupt):
        stopped.profile(store)
    resumed = World()
    with MeasurementStore(tmp_path / "s") as store:
        kept = sum(map(len, store.read_rounds(_SETTING, list(wanted.timings))))
        timings = resumed.profile(store).timings
    assert kept >= 5
    assert {k: t.p20_ms for k, t in timings.items()} == pytest.approx(
        {k: t.p20_ms for k, t in wanted.timings.items()}
    )
    assert all(t.num_rounds == 3 for t in timings.values())
    # Every item sizes its sample anew (one more call), and only the missing rounds are run.
    assert resumed.calls == 4 + (4 * 3 - kept) * 3


def test_items_cut_short_by_the_budget_are_continued(tmp_path: Path):
    with MeasurementStore(tmp_path / "s") as store:
        world = World()
        short = profile_items(
            {"a": world.work(1.0)},
            store=store,
            setting=_SETTING,
            protocol=_PROTOCOL,
            instruments=world.instruments(),
            budget_s=0.5,
        )
        assert short.timings["a"].num_rounds == 1
        assert short.timings["a"].unstable
        later = World()
        full = profile_items(
            {"a": later.work(1.0)},
            store=store,
            setting=_SETTING,
            protocol=_PROTOCOL,
            instruments=later.instruments(),
            budget_s=1e9,
        )
    assert full.num_cached == 0
    assert full.timings["a"].num_rounds == 3
    assert not full.timings["a"].unstable


def test_the_time_of_a_round_is_estimated_from_a_sample():
    world = World()
    openers = [world.work(0.01 * (1 + i % 3)) for i in range(300)]
    estimate = estimate_round_s(openers, _PROTOCOL, num_probes=30, clock=lambda: world.now)
    # 300 items of 20 ms in the mean, each opened, warmed twice and sampled twice.
    assert estimate == pytest.approx(300 * 0.02 * 4, rel=0.1)
    assert estimate_round_s([], _PROTOCOL) == 0.0


@pytest.mark.parametrize(
    ("num", "wanted", "indices"),
    [(5, 9, [0, 1, 2, 3, 4]), (17, 2, [0, 16]), (17, 5, [0, 4, 8, 12, 16]), (9, 1, [4])],
)
def test_spread_indices(num: int, wanted: int, indices: list[int]):
    assert spread_indices(num, wanted) == indices


def _op(size: int) -> OpSpec:
    return OpSpec(
        key=f"op {size}",
        num_params=0,
        macs=0,
        bytes_moved=100 + 8 * size * size,
        peak_memory_bytes=1,
        features={},
        build=lambda batch_size: b"",
    )


def test_missing_sizes_are_interpolated_in_pixels():
    line = [_op(size) for size in (10, 12, 14, 16)]
    filled = interpolate_missing([line], {"op 10": 1.0, "op 16": 2.56})
    # A time proportional to pixels comes out exactly.
    assert filled == pytest.approx({"op 12": 1.44, "op 14": 1.96})
    assert interpolate_missing([line[:1]], {"op 10": 1.0}) == {}


def test_sizes_beyond_the_measured_ones_are_refused():
    with pytest.raises(MissingEntryError, match="op 20"):
        interpolate_missing([[_op(10), _op(20)]], {"op 10": 1.0})
    with pytest.raises(MissingEntryError, match="op 10"):
        interpolate_missing([[_op(10)]], {})
