"""Event timing on a made device: a queue of work whose length in time is known."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effdl.targets.measure.gpu_device import (
    GpuClock,
    GpuDevice,
    find_slowdowns,
    parse_driver_version,
)
from effdl.targets.measure.gpu_timing import (
    EventSampler,
    calls_per_graph,
    flush_bytes,
    launches_per_sample,
)


@dataclass
class Device:
    """A queue: work moves its end, and events remember where the end was."""

    end_s: float = 0.0
    synchronized_s: float = 0.0
    num_flushes: int = 0
    num_launches: int = 0
    cold: bool = False

    def work(self, warm_s: float, cold_s: float) -> Callable[[], None]:
        def launch() -> None:
            self.num_launches += 1
            self.end_s += cold_s if self.cold else warm_s
            self.cold = False

        return launch

    def flush(self) -> None:
        self.num_flushes += 1
        self.end_s += 1e-4
        self.cold = True

    def synchronize(self) -> None:
        self.synchronized_s = self.end_s


class Mark:
    def __init__(self, device: Device) -> None:
        self.device = device
        self.at_s = float("nan")

    def record(self) -> None:
        self.at_s = self.device.end_s

    def elapsed_time(self, end_event: "Mark") -> float:
        assert end_event.at_s <= self.device.synchronized_s, "read before the device got there"
        return 1000 * (end_event.at_s - self.at_s)


def sampler(device: Device, launch: Callable[[], None], **options: object) -> EventSampler:
    return EventSampler(
        launch,
        new_event=lambda: Mark(device),
        synchronize=device.synchronize,
        **options,  # pyright: ignore[reportArgumentType]
    )


def test_warm_samples_are_rows_of_launches_divided_by_their_number():
    device = Device()
    timed = sampler(device, device.work(3e-6, 9e-6), calls_per_launch=3)
    samples = timed.sample(5, 50e-6)
    assert samples.seconds == pytest.approx([1e-6] * 5)
    assert samples.interrupted == (False,) * 5
    before = device.num_launches
    timed.sample(5, 590e-6)
    # One launch to warm up, then five samples of at least 590 us in launches of 3 us.
    assert device.num_launches - before == 1 + 5 * 197


def test_short_samples_are_made_long_enough_for_the_events_resolution():
    device = Device()
    timed = sampler(device, device.work(11e-6, 11e-6))
    timed.sample(1, 0.0)
    before = device.num_launches
    timed.sample(4, 50e-6)
    assert device.num_launches - before == 1 + 4 * 19


def test_an_idle_device_is_warmed_up_once():
    device = Device()
    timed = sampler(device, device.work(1e-3, 1e-3))
    timed.sample(1, 0.0)
    # 1 + 2 + 4 + 8 + 16 ms are the first such row to pass 20 ms; then one more and the sample.
    assert device.num_launches == 31 + 1 + 1
    timed.sample(1, 0.0)
    assert device.num_launches == 33 + 2


def test_warming_up_ends_however_short_the_work():
    device = Device()
    sampler(device, device.work(0.0, 0.0)).sample(1, 0.0)
    assert device.num_launches <= 1023 + 2 * 1000


def test_cold_samples_count_the_cold_call_and_not_the_flush():
    device = Device()
    timed = sampler(device, device.work(2e-6, 20e-6), flush=device.flush)
    samples = timed.sample(6, 50e-6)
    assert samples.seconds == pytest.approx([20e-6] * 6)
    # One flush for the estimate, and three for each sample of 3 x 20 us.
    assert device.num_flushes == 1 + 6 * 3


def test_samples_of_a_slowed_device_are_marked():
    device = Device()
    slow = sampler(device, device.work(1e-5, 1e-5), slowed=lambda: True)
    assert slow.sample(3, 0.0).interrupted == (True,) * 3


@given(call_s=st.floats(1e-7, 1.0, allow_nan=False), wanted_s=st.floats(0.0, 0.01, allow_nan=False))
def test_samples_last_as_long_as_wanted_and_no_launch_longer(call_s: float, wanted_s: float):
    num = launches_per_sample(call_s, wanted_s)
    assert 1 <= num <= 1000
    assert num * call_s >= wanted_s * (1 - 1e-9) or num == 1000
    assert num == 1 or (num - 1) * call_s < wanted_s


def test_numbers_of_calls_and_bytes():
    assert calls_per_graph(1e-6) == 64
    assert calls_per_graph(50e-6) == 4
    assert calls_per_graph(1e-3) == 1
    assert calls_per_graph(0.0) == 64
    # A Titan Xp's 3 MiB and an H200's 60 MB; a future 256 MiB cache needs more.
    assert flush_bytes(3 * 2**20) == flush_bytes(60 * 10**6) == 256 * 2**20
    assert flush_bytes(256 * 2**20) == 512 * 2**20


def test_only_heat_and_power_failures_spoil_a_timing():
    assert find_slowdowns(0x01 | 0x02 | 0x04 | 0x10 | 0x100) == ()
    assert find_slowdowns(0x04 | 0x40 | 0x80) == ("hardware thermal slowdown", "power brake")


def test_gpus_that_differ_have_other_fingerprints():
    known: dict[str, object] = {
        "name": "NVIDIA H200",
        "compute_capability": "9.0",
        "num_multiprocessors": 132,
        "memory_gib": 140,
        "l2_cache_bytes": 62914560,
        "driver": "580.159.04",
    }

    def fingerprint(**changes: object) -> str:
        return GpuDevice(**{**known, **changes}).fingerprint  # pyright: ignore

    assert fingerprint() == fingerprint()
    assert len(fingerprint()) == 16
    changed = {fingerprint(driver="570.1"), fingerprint(memory_gib=80), fingerprint(name="H100")}
    assert len(changed | {fingerprint()}) == 4


def test_a_clock_that_cannot_be_read_is_unknown_and_never_slowed():
    clock = GpuClock("no such device")
    assert clock.describe_policy() == "unknown"
    assert not clock.is_slowed()


def test_the_drivers_own_file_tells_its_version():
    text = (
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\n"
        "GCC version:  gcc version 13.3.0\n"
    )
    assert parse_driver_version(text) == "580.159.04"
    assert parse_driver_version("") == "unknown"
