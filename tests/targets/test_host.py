"""This machine's description, from made and real system files."""

import os
import sys
from dataclasses import replace

import pytest

from effdl.errors import BackendUnavailableError
from effdl.targets.host import (
    busy_ticks,
    describe_host,
    find_runtime,
    grade_noise,
    idlest_core,
    least_worked,
    read_noise,
)


def test_fingerprint_is_stable_and_sees_every_field():
    host = describe_host()
    assert host.fingerprint == describe_host().fingerprint
    assert len(host.fingerprint) == 16
    others = [
        replace(host, name="another"),
        replace(host, architecture="another"),
        replace(host, vendor="another"),
        replace(host, family_model_stepping="0-0-0"),
        replace(host, isa=("sse",)),
        replace(host, num_cores=host.num_cores + 1),
        replace(host, cache="1 KB"),
        replace(host, clock_policy="another"),
    ]
    assert len({host.fingerprint, *(other.fingerprint for other in others)}) == 9


def test_this_machine_has_a_name_and_cores():
    host = describe_host()
    assert host.name
    assert host.num_cores >= 1
    assert host.isa == tuple(sorted(host.isa))


def test_runtime_is_found_without_importing_it():
    runtime = find_runtime()
    assert str(runtime) == f"onnxruntime {runtime.version}"
    assert len(runtime.build) == 16
    if "onnxruntime" in sys.modules:
        assert sys.modules["onnxruntime"].__version__ == runtime.version


def test_missing_runtime_names_the_command():
    with pytest.raises(BackendUnavailableError, match="no-such-runtime is not installed") as caught:
        find_runtime("no-such-runtime")
    assert caught.value.hint == "pip install no-such-runtime"


@pytest.mark.parametrize(
    ("cpu", "memory", "load", "grade"),
    [
        (0.0, 0.0, 0.0, "A"),
        (5.0, 0.0, 9.0, "A"),
        (5.1, 0.0, 0.0, "B"),
        (25.0, 0.0, 0.0, "B"),
        (84.0, 0.0, 0.0, "C"),
        (0.0, 30.0, 0.0, "C"),
        (3.0, None, 0.0, "A"),
        (None, None, 0.5, "A"),
        (None, None, 0.7, "B"),
        (None, None, 2.0, "C"),
    ],
)
def test_noise_grades(cpu: float | None, memory: float | None, load: float, grade: str):
    assert grade_noise(cpu, memory, load) == grade


def test_noise_of_this_machine():
    noise = read_noise()
    assert noise.grade in "ABC"
    assert noise.load_per_core >= 0


def test_ticks_of_each_core_from_a_recorded_text():
    text = (
        "cpu  30 0 12 900 8 0 2 0 0 0\n"
        "cpu0 10 0 4 500 6 0 1 0 0 0\n"
        "cpu1 20 0 8 400 2 0 1 3 0 0\n"
        "intr 1234 5\n"
    )
    # User, nice, system, interrupts and what the host took; not idle, not waiting for a disk.
    assert busy_ticks(text) == {0: 15, 1: 32}
    assert busy_ticks("") == {}


def test_the_least_worked_core_wins_and_of_equals_the_last():
    before = {0: 100, 1: 5000, 2: 70}
    assert least_worked({0, 1, 2}, before, {0: 110, 1: 5001, 2: 75}) == 1
    assert least_worked({0, 2}, before, {0: 110, 1: 5001, 2: 75}) == 2
    assert least_worked({0, 1, 2}, before, {0: 103, 1: 5003, 2: 73}) == 2
    # Where the system tells nothing, it is as if nothing worked.
    assert least_worked({0, 1}, {}, {}) == 1


def test_the_idlest_core_is_one_of_those_allowed():
    cores = os.sched_getaffinity(0)
    assert idlest_core(cores) in cores
    assert idlest_core({min(cores)}) == min(cores)
