"""Tasks spread over the workers of a Dask cluster.

Dask carries bytes and chooses the machine. On it, a worker process of ours does the
task, so that time-outs, crashes and stray output are dealt with as they are locally.
A device is declared where it is plugged in, by starting that Dask worker with
``--resources "device:NAME=1"``; several workers that declare one name are a pool of
equal devices. Dask's own parts talk in pickles: connect only to a scheduler that you
trust, over a network that you trust or with TLS.
"""

import contextlib
import importlib
import logging
import math
import queue
import re
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

import effdl
from effdl.distributed.executor import Ledger, Progress, Record
from effdl.distributed.local_processes import LocalProcessExecutor, check_settings
from effdl.distributed.task import ALLOWED, Failure, Outcome, Task
from effdl.errors import (
    BackendUnavailableError,
    ConfigError,
    TargetUnavailableError,
    WorkerLostError,
)

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["DaskExecutor", "perform_on_worker"]

_ADDRESS = re.compile(
    r"(tcp|tls|ucx|ws|wss)://[^/\s:]+:\d{1,5}|(tcp|tls)://\[[0-9a-fA-F:]+\]:\d{1,5}"
)
_LOOPBACK = "127.0.0.1"
_CONNECT_S = 10.0
_LOOK_S = 1.0
_POLL_S = 0.1
# A worker that died may come back, and one that starts may not be there yet.
_PATIENCE_S = 30.0


class _Parcel(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent: a task, how to treat it, and the version that both sides must have.

    A time-out of None stands for none, as JSON has no infinity.
    """

    version: str
    function: str
    argument: msgspec.Raw
    timeout_s: float | None
    max_retries: int
    allowed: tuple[str, ...]


_of_thread = threading.local()


def perform_on_worker(parcel: bytes) -> bytes:
    """Do one task in a process beside this one, kept for the next; called by Dask.

    Args:
        parcel: JSON that a `DaskExecutor` made.

    Returns:
        JSON of an `Outcome`.
    """
    asked = msgspec.json.decode(parcel, type=_Parcel)
    if asked.version != effdl.__version__:
        failure = Failure(
            kind=ConfigError.__name__,
            message=f"a Dask worker has another version of effdl: wanted {asked.version}, "
            f"got {effdl.__version__}",
            hint=f"pip install effdl=={asked.version} where the workers run",
        )
        return msgspec.json.encode(Outcome(failure=failure))
    settings = (asked.timeout_s, asked.max_retries, asked.allowed)
    if getattr(_of_thread, "settings", None) != settings:
        if hasattr(_of_thread, "executor"):
            _of_thread.executor.close()
        _of_thread.settings = settings
        # Not pinned: workers beside this one know nothing of each other's cores.
        _of_thread.executor = LocalProcessExecutor(
            1,
            timeout_s=math.inf if asked.timeout_s is None else asked.timeout_s,
            max_retries=asked.max_retries,
            allowed=asked.allowed,
            pin=False,
        )
    ledger = Ledger([Task(function=asked.function, argument=bytes(asked.argument))])
    _of_thread.executor.work(ledger)
    (outcome,) = ledger.outcomes.values()
    return msgspec.json.encode(outcome)


class DaskExecutor:
    """Tasks spread over a Dask cluster, as an `Executor`.

    Args:
        address: The scheduler's, such as ``"tcp://10.0.0.5:8786"``; None: a cluster
            of this machine's own, that listens on 127.0.0.1 only, ends with this
            executor, and where no device is used twice at once.
        num_workers: Workers of a cluster of this machine's own.
        timeout_s: Seconds a task may take; the process doing it is then ended and
            the task has failed.
        max_retries: How often a task is done again whose process died. How often
            one is done again whose Dask worker died is the scheduler's setting.
        allowed: What the name of a task's function must begin with.

    Raises:
        BackendUnavailableError: Dask is not installed.
        ConfigError: A number is out of range.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        num_workers: int = 2,
        timeout_s: float = math.inf,
        max_retries: int = 2,
        allowed: tuple[str, ...] = ALLOWED,
    ) -> None:
        if find_spec("distributed") is None:
            raise BackendUnavailableError("Dask is not installed", hint="pip install 'effdl[dask]'")
        if address is not None and not _ADDRESS.fullmatch(address):
            raise ConfigError(
                f"wanted a Dask scheduler's address, such as tcp://10.0.0.5:8786, got {address!r}",
                hint="dask scheduler says its address when it starts",
            )
        check_settings(num_workers, timeout_s, max_retries)
        self._address, self._num_workers = address, num_workers
        self._timeout_s, self._max_retries, self._allowed = timeout_s, max_retries, allowed
        self._client: Client | None = None
        self._opened = ExitStack()

    def run(
        self,
        tasks: Sequence[Task],
        *,
        known: Mapping[str, bytes] | None = None,
        record: Record | None = None,
        progress: Progress | None = None,
    ) -> list[bytes]:
        """`Executor.run`; a task's key is its key in Dask, so equal ones are done once.

        Raises:
            TargetUnavailableError: The scheduler does not answer, has no workers, or
                no worker has the devices that a task needs.
        """
        ledger = Ledger(tasks, known=known, record=record, progress=progress)
        if not ledger.is_finished:
            _Run(self._connect(), ledger, self._parcel, is_own=self._address is None).work()
        return ledger.results()

    def close(self) -> None:
        """Leave the cluster; one of this machine's own is ended."""
        self._client = None
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _connect(self) -> "Client":
        if self._client is not None:
            return self._client
        dask: Any = importlib.import_module("distributed")
        config: Any = importlib.import_module("dask.config")
        address = self._address
        try:
            if address is None:
                settings = {"distributed.scheduler.allowed-failures": self._max_retries}
                with config.set(settings):
                    cluster = dask.LocalCluster(
                        n_workers=self._num_workers,
                        threads_per_worker=1,
                        host=_LOOPBACK,
                        dashboard_address=f"{_LOOPBACK}:0",
                        scheduler_kwargs={"dashboard": False},
                        memory_limit=0,
                        silence_logs=logging.CRITICAL,
                    )
                address = self._opened.enter_context(cluster).scheduler_address
            client = dask.Client(address, timeout=_CONNECT_S, set_as_default=False)
            self._client = self._opened.enter_context(client)
        except (OSError, ValueError) as error:
            self.close()
            raise TargetUnavailableError(
                f"no Dask scheduler answers at {address}: {error}",
                hint=f"dask scheduler starts one; dask worker {address} --nthreads 1 "
                '--resources "device:cpu=1" a worker of it',
            ) from error
        return self._client

    def _parcel(self, task: Task) -> bytes:
        parcel = _Parcel(
            version=effdl.__version__,
            function=task.function,
            argument=msgspec.Raw(task.argument),
            timeout_s=self._timeout_s if math.isfinite(self._timeout_s) else None,
            max_retries=self._max_retries,
            allowed=self._allowed,
        )
        return msgspec.json.encode(parcel)


class _Run:
    """One run on a cluster.

    No more tasks are handed over than can begin at once: Dask blames every task that
    waits on a worker for that worker's death.
    """

    def __init__(
        self, client: "Client", ledger: Ledger, pack: Callable[[Task], bytes], *, is_own: bool
    ) -> None:
        self._client, self._ledger, self._pack, self._is_own = client, ledger, pack, is_own
        self._given: dict[Future[bytes], Task] = {}
        self._done: queue.SimpleQueue[Future[bytes]] = queue.SimpleQueue()
        # Of each worker: how many of each device it declares.
        self._workers: list[Counter[str]] = []
        self._num_threads, self._looked_at_s, self._stuck_since_s = 0, -math.inf, math.inf

    def work(self) -> None:
        """Do what the ledger has to do."""
        try:
            while not self._ledger.is_finished:
                if time.monotonic() - self._looked_at_s > _LOOK_S:
                    self._look()
                self._hand_out()
                if not self._given:
                    time.sleep(_POLL_S)
                    continue
                with contextlib.suppress(queue.Empty):
                    future = self._done.get(timeout=_LOOK_S)
                    task = self._given.pop(future)
                    self._ledger.finish(task, _outcome(future, task))
                    future.release()
        finally:
            if self._given:
                self._client.cancel(list(self._given), force=True)

    def _look(self) -> None:
        """See what the cluster has now; refuse what it could not do for a while."""
        workers = self._client.scheduler_info()["workers"].values()
        self._looked_at_s = time.monotonic()
        self._num_threads = sum(worker["nthreads"] for worker in workers)
        self._workers = [Counter(worker["resources"]) for worker in workers]
        waiting = [*self._given.values(), *self._ledger.pending.values()]
        stuck = next((task for task in waiting if not self._can_do(task)), None)
        if stuck is None:
            self._stuck_since_s = math.inf
            return
        self._stuck_since_s = min(self._stuck_since_s, self._looked_at_s)
        if self._looked_at_s - self._stuck_since_s > _PATIENCE_S:
            needs = " ".join(f"{name}=1" for name in _devices(stuck))
            raise TargetUnavailableError(
                f"no Dask worker can do {stuck.name}: wanted one with {needs or 'a thread'}, got "
                f"{len(workers)} without",
                hint=f"dask worker {self._client.scheduler_info()['address']} --nthreads 1"
                + (f' --resources "{needs}"' if needs else ""),
            )

    def _can_do(self, task: Task) -> bool:
        names = () if self._is_own else _devices(task)
        return any(all(worker[name] >= 1 for name in names) for worker in self._workers)

    def _hand_out(self) -> None:
        in_use = Counter(name for task in self._given.values() for name in _devices(task))
        there = sum(self._workers, Counter[str]())
        for task in list(self._ledger.pending.values()):
            if len(self._given) >= self._num_threads:
                return
            names = _devices(task)
            if all(in_use[name] < (1 if self._is_own else there[name]) for name in names):
                in_use.update(names)
                self._give(task, names)

    def _give(self, task: Task, names: list[str]) -> None:
        config: Any = importlib.import_module("dask.config")
        del self._ledger.pending[task.key]
        # Models are large on purpose.
        with config.set({"distributed.admin.large-graph-warning-threshold": "1GB"}):
            future: Future[bytes] = self._client.submit(
                perform_on_worker,
                self._pack(task),
                key=f"effdl-{task.key}",
                resources=None if self._is_own else dict.fromkeys(names, 1.0) or None,
            )
        self._given[future] = task
        future.add_done_callback(self._done.put)


def _devices(task: Task) -> list[str]:
    return [f"device:{name}" for name in sorted(task.resources)]


def _outcome(future: "Future[bytes]", task: Task) -> Outcome:
    if future.status == "finished":
        return msgspec.json.decode(future.result(), type=Outcome)
    if future.status == "cancelled":
        failure = Failure(
            kind=WorkerLostError.__name__,
            message=f"task {task.name} was cancelled by the Dask scheduler",
            hint="run it again: what was done is kept",
        )
        return Outcome(failure=failure)
    error: Any = future.exception()
    if type(error).__name__ == "KilledWorker":
        failure = Failure(
            kind=WorkerLostError.__name__,
            message=f"task {task.name} ended its Dask worker each time: {error}",
            hint="the log of that worker says more",
        )
    else:
        report = "".join(traceback.format_exception(error))
        failure = Failure(kind="", message=f"{type(error).__name__}: {error}", report=report)
    return Outcome(failure=failure)
