"""What workers cost and what they gain, beside the serial run in the same run.

Tasks of 0.1 to 1 s that need little of the processor, as those of a device that
answers by itself: two workers must be at least 1.8 times as fast, their start
included. A local task that does nothing may cost 2 ms.
"""

import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from effdl.distributed.dask_cluster import DaskExecutor
from effdl.distributed.executor import Executor, SerialExecutor
from effdl.distributed.local_processes import LocalProcessExecutor
from effdl.distributed.task import Task

HERE = Path(__file__).resolve().parent
ALLOWED = ("sleeping_tasks:",)
MIN_SPEED_UP = 1.8
MAX_OVERHEAD_MS = {"local": 2.0, "dask": 50.0}


@pytest.fixture(scope="module")
def functions() -> Iterator[ModuleType]:
    import importlib

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE))
        patch.syspath_prepend(HERE)
        yield importlib.import_module("sleeping_tasks")


def make_executor(form: str, num_workers: int) -> Executor:
    if form == "local":
        return LocalProcessExecutor(num_workers, allowed=ALLOWED)
    if find_spec("distributed") is None:
        pytest.skip("the extra `dask` is not installed")
    return DaskExecutor(num_workers=num_workers, allowed=ALLOWED)


def seconds_of(executor: Executor, tasks: list[Task]) -> float:
    start = time.perf_counter()
    executor.run(tasks)
    return time.perf_counter() - start


@pytest.mark.parametrize("form", ["local", "dask"])
def test_speed_up_on_two_workers(
    benchmark: BenchmarkFixture, functions: ModuleType, form: str
) -> None:
    lengths_s = [0.1, 0.2, 0.4, 0.7, 1.0, 0.3] * 5
    tasks = [
        Task.of(functions.sleep, functions.Nap(number=i, seconds=s))
        for i, s in enumerate(lengths_s)
    ]
    serial_s = seconds_of(SerialExecutor(allowed=ALLOWED), tasks)
    taken_s: list[float] = []

    def run() -> None:
        with make_executor(form, 2) as executor:
            # What starts with the first run is part of the time; a cluster stands already.
            if form == "dask":
                executor.run(tasks[:1])
            taken_s.append(seconds_of(executor, tasks))

    benchmark.pedantic(run, rounds=1)
    speed_up = serial_s / min(taken_s)
    benchmark.extra_info.update(serial_s=serial_s, workers_s=min(taken_s), speed_up=speed_up)
    print(f"\n{form}: serial {serial_s:.2f} s, two workers {min(taken_s):.2f} s, {speed_up:.3f} x")
    assert speed_up >= MIN_SPEED_UP


@pytest.mark.parametrize("form", ["local", "dask"])
def test_overhead_of_a_task(benchmark: BenchmarkFixture, functions: ModuleType, form: str) -> None:
    num = 2000 if form == "local" else 200
    tasks = [Task.of(functions.sleep, functions.Nap(number=i)) for i in range(num)]
    with make_executor(form, 1) as executor:
        executor.run(tasks[:1])
        taken_s: list[float] = []
        benchmark.pedantic(lambda: taken_s.append(seconds_of(executor, tasks)), rounds=3)
    overhead_ms = 1000 * sorted(taken_s)[1] / num
    benchmark.extra_info.update(overhead_ms=overhead_ms)
    print(f"\n{form}: {overhead_ms:.3f} ms a task")
    assert overhead_ms <= MAX_OVERHEAD_MS[form]


def test_start_of_workers(benchmark: BenchmarkFixture, functions: ModuleType) -> None:
    task = Task.of(functions.sleep, functions.Nap())

    def run() -> None:
        with LocalProcessExecutor(1, allowed=ALLOWED) as executor:
            executor.run([task])

    benchmark.pedantic(run, rounds=10, warmup_rounds=1)
