"""Workers that die, hang, talk and outlive: what they do costs only their own task."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from effdl.distributed.executor import SerialExecutor
from effdl.distributed.task import Task
from effdl.errors import ConfigError, WorkerLostError

HERE = Path(__file__).resolve().parent

PARENT = """
import sys
import example_tasks as e
from effdl.distributed.local_processes import LocalProcessExecutor
from effdl.distributed.task import Task
tasks = [Task.of(getattr(e, name), e.Work(number=i, log=sys.argv[1]))
         for i, name in enumerate(("breed", "hog"))]
LocalProcessExecutor(2, allowed=("example_tasks:",)).run(tasks)
"""


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits to be reaped does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def lines(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(condition, seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_a_killed_worker_costs_only_its_task(
    local, serial: SerialExecutor, make, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    tasks = [make("draw", number=i, seconds=1.0 if i == 3 else 0.02, log=log) for i in range(20)]
    killed: list[int] = []

    def record(task: Task, result: bytes) -> None:
        begun = {number: int(pid) for number, pid in lines(log)}
        if len(killed) == 0 and "3" in begun and len(begun) > 5:
            killed.append(begun["3"])
            os.kill(begun["3"], signal.SIGKILL)

    results = local().run(tasks, record=record)
    times = Counter(number for number, _ in lines(log))
    assert len(killed) == 1
    assert times.pop("3") == 2
    assert set(times.values()) == {1}
    assert len(times) == 19
    without_log = [make("draw", number=i) for i in range(20)]
    assert results == serial.run(without_log)


def test_a_task_that_always_kills_its_worker_is_named(local, make, tmp_path: Path) -> None:
    log, kept = tmp_path / "log", []
    tasks = [make("die", number=i, log=log) for i in (0, 2, 3, 4, 6)]
    with pytest.raises(WorkerLostError) as caught:
        local().run(tasks, record=lambda task, result: kept.append(int(result)))
    assert caught.value.message == (
        f"task {tasks[2].name} ended its worker 3 times of 3, last by signal SIGKILL"
    )
    assert caught.value.exit_code == 4
    assert sorted(kept) == [0, 2, 4, 6]
    assert Counter(n for (n,) in lines(log)) == {"0": 1, "2": 1, "3": 3, "4": 1, "6": 1}


@pytest.mark.parametrize(
    ("name", "ending"), [("crash", "signal SIGSEGV"), ("leave", "exit status 7")]
)
def test_how_a_worker_ended_is_told(local, make, name: str, ending: str) -> None:
    with pytest.raises(WorkerLostError, match=f"1 times of 1, last by {ending}"):
        local(1, max_retries=0).run([make(name)])


def test_a_task_may_succeed_on_a_later_worker(local, make, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert local(1).run([make("flaky", number=5, log=log)]) == [b"5"]
    assert len(lines(log)) == 2


@pytest.mark.parametrize("name", ["sleep", "hog"])
def test_a_task_that_hangs_times_out(local, make, tmp_path: Path, name: str) -> None:
    log, kept = tmp_path / "log", []
    hanging = make(name, number=1, seconds=300.0, log=log)
    start = time.monotonic()
    with pytest.raises(WorkerLostError, match=f"{hanging.key[:12]}.* within 0.5 s"):
        local(timeout_s=0.5).run(
            [hanging, make("nothing", number=2)], record=lambda task, result: kept.append(result)
        )
    assert time.monotonic() - start < 60
    assert kept == [b"2"]


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_its_parent(functions, tmp_path: Path, ending: int) -> None:
    """Neither one that waits for a child of its own, nor one that holds the interpreter."""
    log = tmp_path / "log"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(log)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(HERE)},
        # A test run in the background ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert wait_for(lambda: len(lines(log)) == 2)
        pids = [int(pid) for _, *pids in lines(log) for pid in pids]
        assert len(pids) == 3
        assert all(map(is_alive, pids))
        parent.send_signal(ending)
        assert wait_for(lambda: not any(map(is_alive, pids)), 2.0)
    finally:
        parent.kill()
        parent.wait(10)


def test_closing_ends_the_workers_and_what_they_started(local, make, tmp_path: Path) -> None:
    log = tmp_path / "log"
    executor = local(1, timeout_s=1.0)
    with pytest.raises(WorkerLostError):
        executor.run([make("breed", log=log)])
    assert not any(is_alive(int(pid)) for pid in lines(log)[0][1:])
    with executor:
        executor.run([make("draw", log=log)])
        pid = int(lines(log)[1][1])
        assert is_alive(pid)
    assert not is_alive(pid)


def test_workers_stay_for_the_next_run(local, make, tmp_path: Path) -> None:
    log, executor = tmp_path / "log", local(1)
    for number in range(3):
        executor.run([make("draw", number=number, log=log)])
    assert len({pid for _, pid in lines(log)}) == 1


def test_an_idle_worker_that_died_costs_nothing(local, make, tmp_path: Path) -> None:
    log, executor = tmp_path / "log", local(1, max_retries=1)
    executor.run([make("draw", number=1, log=log)])
    os.kill(int(lines(log)[0][1]), signal.SIGKILL)
    assert len(executor.run([make("draw", number=2, log=log)])) == 1
    assert [number for number, _ in lines(log)] == ["1", "2"]


def test_prints_do_not_disturb(local, make, capfd: pytest.CaptureFixture[str]) -> None:
    with local(1) as executor:
        assert executor.run([make("speak", number=7), make("nothing", number=1)]) == [b'""', b"1"]
    out, err = capfd.readouterr()
    assert out == ""
    assert "printed 7" in err
    assert "child" in err


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin")
def test_each_worker_has_a_core_and_one_thread(local, make) -> None:
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("there is one core only")
    tasks = [make("place", number=i, seconds=0.3) for i in range(2)]
    places = [msgspec.json.decode(result) for result in local(2).run(tasks)]
    assert {threads for _, threads, _ in places} == {"1"}
    # The machine is described as it is, not as the worker may use it.
    assert {num for _, _, num in places} == {len(cores)}
    (first,), (second,) = places[0][0], places[1][0]
    assert first != second
    (crowd,) = local(len(cores) + 1).run([make("place")])
    assert set(msgspec.json.decode(crowd)[0]) == cores


def test_workers_are_light() -> None:
    code = (
        "import sys, effdl.distributed.worker, effdl.distributed.local_processes; sys.exit(bool("
        "{'torch', 'onnx', 'onnxruntime', 'numpy', 'distributed'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_no_descriptor_is_left_open(local, make, tmp_path: Path) -> None:
    def num_open() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def run() -> None:
        with local(1) as executor:
            executor.run([make("flaky", log=tmp_path / str(time.monotonic_ns()))])

    run()
    before = num_open()
    run()
    assert num_open() == before


@pytest.mark.parametrize(
    ("num_workers", "settings"), [(0, {}), (1, {"timeout_s": 0.0}), (1, {"max_retries": -1})]
)
def test_settings_out_of_range(local, num_workers: int, settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="wanted at least 1 worker"):
        local(num_workers, **settings)
