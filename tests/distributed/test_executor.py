"""What every form of executor promises, and what each is measured by: the serial one."""

import itertools
from collections import defaultdict
from pathlib import Path

import msgspec
import pytest

from effdl.distributed.executor import Executor, SerialExecutor
from effdl.distributed.task import Task
from effdl.errors import ConfigError, InfeasibleConstraintError


def test_results_are_those_of_the_serial_run(
    executor: Executor, serial: SerialExecutor, make
) -> None:
    tasks = [make("draw", number=i, seconds=0.03 * (i % 3)) for i in range(12)]
    results = executor.run(tasks)
    assert results == serial.run(tasks)
    assert len(set(results)) == 12
    assert all(len(msgspec.json.decode(result, type=list[float])) == 50 for result in results)


def test_no_tasks(executor: Executor) -> None:
    assert executor.run([]) == []


def test_equal_tasks_are_done_once(executor: Executor, make, tmp_path: Path) -> None:
    log = tmp_path / "log"
    tasks = [make("draw", number=i % 2, log=log) for i in range(6)]
    results = executor.run(tasks)
    assert results == [results[0], results[1]] * 3
    assert sorted(line.split()[0] for line in log.read_text().splitlines()) == ["0", "1"]


def test_a_second_run_does_only_what_is_not_known(executor: Executor, make, tmp_path: Path) -> None:
    log, known, done = tmp_path / "log", {}, []

    def record(task: Task, result: bytes) -> None:
        known[task.key] = result

    tasks = [make("draw", number=i, log=log) for i in range(4)]
    first = executor.run(tasks, record=record)
    assert executor.run(tasks, known=known, progress=lambda *told: done.append(told)) == first
    assert len(log.read_text().splitlines()) == 4
    assert done == []
    more = [make("draw", number=4, log=log), *tasks]
    assert executor.run(more, known=known, record=record)[1:] == first
    assert [line.split()[0] for line in log.read_text().splitlines()][4:] == ["4"]
    assert len(known) == 5


def test_progress_counts_to_the_end(executor: Executor, make) -> None:
    told: list[tuple[int, int]] = []
    tasks = [make("nothing", number=i) for i in range(5)]
    executor.run(tasks, progress=lambda done, total, what: told.append((done, total)))
    assert told == [(i, 5) for i in range(1, 6)]


def test_a_device_is_never_used_twice_at_once(executor: Executor, make, tmp_path: Path) -> None:
    log, devices = tmp_path / "log", {}
    for i in range(12):
        devices[i] = ({"phone"}, {"gpu"}, {"phone", "gpu"}, set())[i % 4]
    executor.run(
        [make("sleep", number=i, seconds=0.05, log=log, resources=d) for i, d in devices.items()]
    )
    used = defaultdict(list)
    for line in log.read_text().splitlines():
        number, start, end = line.split()
        for device in devices[int(number)]:
            used[device].append((float(start), float(end)))
    assert {device: len(spans) for device, spans in used.items()} == {"phone": 6, "gpu": 6}
    for spans in used.values():
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(sorted(spans)))
    if not isinstance(executor, SerialExecutor):
        both = sorted(used["phone"] + used["gpu"])
        assert any(a[1] > b[0] for a, b in itertools.pairwise(both))


def test_the_first_failure_is_raised_after_all_were_tried(executor: Executor, make) -> None:
    kept: list[bytes] = []
    tasks = [make("nothing", number=0), make("fail", kind="fastest"), make("fail", kind="config")]
    tasks += [make("nothing", number=i) for i in range(1, 4)]
    with pytest.raises(InfeasibleConstraintError, match="too tight") as caught:
        executor.run(tasks, record=lambda task, result: kept.append(result))
    assert caught.value.fastest_latency_ms == 12.5
    assert caught.value.hint == "15ms"
    assert "2 of 6 tasks failed" in caught.value.__notes__
    assert sorted(kept) == [b"0", b"1", b"2", b"3"]
    assert executor.run(tasks[:1]) == [b"0"]


def test_a_defect_names_its_task(executor: Executor, make) -> None:
    task = make("fail", kind="defect")
    with pytest.raises(RuntimeError, match=task.key[:12]) as caught:
        executor.run([task])
    assert "ZeroDivisionError: by zero" in str(caught.value)
    assert any("Traceback" in note and "in fail" in note for note in caught.value.__notes__)


def test_functions_outside_the_list_are_refused(executor: Executor) -> None:
    with pytest.raises(ConfigError, match="got 'os:getpid'"):
        executor.run([Task(function="os:getpid", argument=b"{}")])


def test_an_error_while_recording_ends_the_run(executor: Executor, make) -> None:
    def record(task: Task, result: bytes) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        executor.run([make("nothing", number=i) for i in range(8)], record=record)
    assert executor.run([make("nothing", number=9)]) == [b"9"]


def test_large_arguments_and_results(executor: Executor, make) -> None:
    (result,) = executor.run([make("size", data="x" * 12_000_000)])
    assert len(result) == len('[12000000,""]') + 12_000_000


def test_arguments_too_large_to_send(
    executor: Executor, make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("effdl.distributed.executor.MAX_MESSAGE_BYTES", 1000)
    with pytest.raises(ConfigError, match="wanted at most 1000 bytes, got"):
        executor.run([make("size", data="x" * 1000)])
