"""What a cluster adds: its workers die, its devices are declared, its versions differ."""

import importlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from effdl.distributed.dask_cluster import DaskExecutor, perform_on_worker
from effdl.distributed.executor import SerialExecutor
from effdl.distributed.task import Outcome, Task
from effdl.errors import (
    BackendUnavailableError,
    ConfigError,
    TargetUnavailableError,
    WorkerLostError,
)

ALLOWED = ("effdl.", "example_tasks:")


def lines(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture(scope="module")
def cluster(functions: ModuleType) -> Iterator[Any]:
    """A cluster that is not ours: one of its two workers has a phone."""
    dask = pytest.importorskip("distributed", reason="the extra `dask` is not installed")
    workers = {
        i: {
            "cls": dask.Nanny,
            "options": {"nthreads": 1, "host": "127.0.0.1", "resources": resources},
        }
        for i, resources in enumerate(({"device:phone": 1}, {}))
    }
    scheduler = {
        "cls": dask.Scheduler,
        "options": {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"},
    }
    with dask.SpecCluster(workers=workers, scheduler=scheduler, silence_logs=50) as made:
        yield made


@pytest.fixture(scope="module")
def there(cluster: Any) -> Iterator[DaskExecutor]:
    """An executor on that cluster."""
    with DaskExecutor(cluster.scheduler_address, timeout_s=20.0, allowed=ALLOWED) as executor:
        yield executor


def test_a_killed_dask_worker_costs_only_its_task(
    dask: DaskExecutor, serial: SerialExecutor, make, tmp_path: Path
) -> None:
    log, killed = tmp_path / "log", []
    tasks = [make("draw", number=i, seconds=1.5 if i == 3 else 0.02, log=log) for i in range(12)]

    def record(task: Task, result: bytes) -> None:
        begun = {number: int(pid) for number, pid in lines(log)}
        if not killed and "3" in begun and len(begun) > 5:
            # The parent of the process that does the task is Dask's worker.
            stat = Path(f"/proc/{begun['3']}/stat").read_text()
            killed.append(int(stat.rpartition(")")[2].split()[1]))
            os.kill(killed[0], signal.SIGKILL)

    results = dask.run(tasks, record=record)
    assert len(killed) == 1
    times = Counter(number for number, _ in lines(log))
    assert times.pop("3") == 2
    assert set(times.values()) == {1}
    assert results == serial.run([make("draw", number=i) for i in range(12)])


def test_a_task_that_always_kills_its_process_is_named(dask: DaskExecutor, make) -> None:
    kept: list[int] = []
    tasks = [make("die", number=i) for i in (0, 3, 4)]
    with pytest.raises(WorkerLostError, match=f"{tasks[1].key[:12]}.* ended its worker 3 times"):
        dask.run(tasks, record=lambda task, result: kept.append(int(result)))
    assert sorted(kept) == [0, 4]


def test_a_task_that_hangs_times_out(cluster: Any, make, tmp_path: Path) -> None:
    start = time.monotonic()
    with (
        DaskExecutor(cluster.scheduler_address, timeout_s=0.5, allowed=ALLOWED) as executor,
        pytest.raises(WorkerLostError, match=r"within 0.5 s"),
    ):
        executor.run([make("hog", log=tmp_path / "log")])
    assert time.monotonic() - start < 60


def test_a_cluster_of_our_own_listens_on_this_machine_only(dask: DaskExecutor, make) -> None:
    psutil = pytest.importorskip("psutil", reason="psutil comes with the extra `dask`")
    dask.run([make("nothing")])
    this = psutil.Process()
    listening = [
        connection.laddr.ip
        for process in [this, *this.children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == "LISTEN"
    ]
    assert len(listening) >= 3
    assert set(listening) == {"127.0.0.1"}


def test_declared_devices_lead_tasks_to_their_worker(
    there: DaskExecutor, make, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    tasks = [make("draw", number=i, log=log, seconds=0.05) for i in range(4)]
    tasks += [
        make("draw", number=i, log=log, seconds=0.05, resources={"phone"}) for i in range(4, 9)
    ]
    there.run(tasks)
    pids = {int(number): pid for number, pid in lines(log)}
    assert len(pids) == 9
    assert len({pids[i] for i in range(4, 9)}) == 1


def test_a_device_that_no_worker_has(
    there: DaskExecutor, make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("effdl.distributed.dask_cluster._PATIENCE_S", 0.5)
    with pytest.raises(TargetUnavailableError, match=r"wanted one with device:tablet=1") as caught:
        there.run([make("nothing", resources={"tablet"})])
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("dask worker tcp://127.0.0.1:")
    assert caught.value.hint.endswith(' --nthreads 1 --resources "device:tablet=1"')
    assert there.run([make("nothing", number=3)]) == [b"3"]


def test_no_scheduler_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="the extra `dask` is not installed")
    monkeypatch.setattr("effdl.distributed.dask_cluster._CONNECT_S", 0.5)
    with pytest.raises(TargetUnavailableError, match="no Dask scheduler answers at tcp://127"):
        DaskExecutor("tcp://127.0.0.1:9").run([Task(function="effdl.a:b", argument=b"{}")])


def test_another_version_is_refused() -> None:
    parcel = {
        "version": "0.0.1",
        "function": "effdl.a:b",
        "argument": {},
        "timeout_s": None,
        "max_retries": 0,
        "allowed": ["effdl."],
    }
    answer = perform_on_worker(msgspec.json.encode(parcel))
    failure = msgspec.json.decode(answer, type=Outcome).failure
    assert failure is not None
    assert failure.kind == "ConfigError"
    assert "wanted 0.0.1, got" in failure.message
    assert failure.hint == "pip install effdl==0.0.1 where the workers run"


def test_without_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("effdl.distributed.dask_cluster")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError) as caught:
        DaskExecutor()
    assert caught.value.hint == "pip install 'effdl[dask]'"


def test_settings_out_of_range() -> None:
    pytest.importorskip("distributed", reason="the extra `dask` is not installed")
    with pytest.raises(ConfigError, match="wanted at least 1 worker"):
        DaskExecutor(num_workers=0)


@pytest.mark.parametrize("address", ["", "nonsense", "http://127.0.0.1:8786", "tcp://host"])
def test_an_address_of_no_scheduler_is_refused_at_once(address: str) -> None:
    with pytest.raises(ConfigError, match="wanted a Dask scheduler's address"):
        DaskExecutor(address)
