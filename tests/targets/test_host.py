"""This machine's description, from made and real system files."""

import sys
from dataclasses import replace

import pytest

from effdl.errors import BackendUnavailableError
from effdl.targets.host import describe_host, find_runtime, grade_noise, read_noise


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
