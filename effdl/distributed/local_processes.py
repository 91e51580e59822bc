"""Tasks spread over worker processes of this machine."""

import math
import os
import selectors
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from effdl.distributed.executor import Ledger, Progress, Record
from effdl.distributed.task import ALLOWED, Failure, Outcome, Task
from effdl.distributed.worker_process import WorkerProcess
from effdl.errors import BackendUnavailableError, ConfigError, WorkerLostError

__all__ = ["LocalProcessExecutor", "check_settings"]

_START_LIMIT_S = 120.0
_MAX_FAILED_STARTS = 3
# A worker whose end no pipe tells (its child may hold the pipe) is found this soon.
_LOOK_S = 1.0
_ENDING_S = 0.5


class LocalProcessExecutor:
    """Tasks spread over worker processes of this machine, as an `Executor`.

    Workers are started when there are tasks for them, and stay until `close`. Each
    leads a process group of its own, keeps its libraries to one thread, and has a
    core to itself where there are enough. One that dies costs only its task, which
    another worker does again. Two timings at the same time disturb each other even
    on cores of their own (caches, memory, clock frequency): tasks that measure name
    the device ``"cpu"``, and run one at a time.

    Args:
        num_workers: Processes at most.
        timeout_s: Seconds a task may take; its worker is then ended and the task
            has failed.
        max_retries: How often a task is done again whose worker died.
        allowed: What the name of a task's function must begin with.
        pin: Give each worker a core of its own where there are enough.

    Raises:
        ConfigError: A number is out of range.
    """

    def __init__(
        self,
        num_workers: int,
        *,
        timeout_s: float = math.inf,
        max_retries: int = 2,
        allowed: tuple[str, ...] = ALLOWED,
        pin: bool = True,
    ) -> None:
        check_settings(num_workers, timeout_s, max_retries)
        self._num_workers, self._timeout_s, self._max_retries = num_workers, timeout_s, max_retries
        self._allowed = allowed
        self._free_cores = _cores(num_workers if pin else 0) or [None] * num_workers
        self._workers: list[WorkerProcess] = []
        self._selector = selectors.DefaultSelector()
        self._num_failed_starts = 0
        self._num_losses: dict[str, int] = {}

    def run(
        self,
        tasks: Sequence[Task],
        *,
        known: Mapping[str, bytes] | None = None,
        record: Record | None = None,
        progress: Progress | None = None,
    ) -> list[bytes]:
        """`Executor.run`; an interrupt ends all workers.

        Raises:
            BackendUnavailableError: Worker processes do not start.
        """
        ledger = Ledger(tasks, known=known, record=record, progress=progress)
        self.work(ledger)
        return ledger.results()

    def work(self, ledger: Ledger) -> None:
        """Do what a ledger has to do."""
        self._num_losses.clear()
        try:
            while not ledger.is_finished:
                self._hand_out(ledger)
                self._listen(ledger)
                self._end_late_ones(ledger)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the workers and all they started."""
        for worker in list(self._workers):
            self._drop(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        self._selector.close()

    def _hand_out(self, ledger: Ledger) -> None:
        """Give tasks to idle workers, and start workers for tasks that could run now."""
        now_s = time.monotonic()
        in_use = {name for w in self._workers if w.task is not None for name in w.task.resources}
        idle = [w for w in self._workers if w.is_ready and w.task is None]
        num_starting = sum(not w.is_ready for w in self._workers)
        for task in ledger.runnable(in_use):
            if idle:
                worker = idle.pop()
                del ledger.pending[task.key]
                worker.give(task, now_s)
                self._watch_for_room(worker)
            elif num_starting:
                num_starting -= 1
            elif self._free_cores:
                self._start(now_s)
            else:
                break

    def _start(self, now_s: float) -> None:
        worker = WorkerProcess(core=self._free_cores.pop(), allowed=self._allowed, now_s=now_s)
        self._workers.append(worker)
        self._selector.register(worker.answers, selectors.EVENT_READ, worker)

    def _watch_for_room(self, worker: WorkerProcess) -> None:
        """Wait for room in a worker's pipe while, and only while, it has something unsent."""
        watched = worker.questions in self._selector.get_map()
        if worker.has_unsent and not watched:
            self._selector.register(worker.questions, selectors.EVENT_WRITE, worker)
        elif watched and not worker.has_unsent:
            self._selector.unregister(worker.questions)

    def _listen(self, ledger: Ledger) -> None:
        """Wait for something to happen, and take it in."""

        def answered(worker: WorkerProcess, outcome: Outcome) -> None:
            task, worker.task = worker.task, None
            assert task is not None
            ledger.finish(task, outcome)

        deadline_s = min(self._deadline_s(w) for w in self._workers)
        timeout_s = max(0.0, min(_LOOK_S, deadline_s - time.monotonic()))
        events = self._selector.select(timeout_s)
        for key, event in events:
            worker: WorkerProcess = key.data
            if worker not in self._workers:
                continue
            if event & selectors.EVENT_WRITE:
                worker.send()
                self._watch_for_room(worker)
            else:
                was_ready = worker.is_ready
                if not worker.receive(answered):
                    self._lose(worker, ledger)
                elif worker.is_ready and not was_ready:
                    self._num_failed_starts = 0
        if not events:
            for worker in [w for w in self._workers if w.has_ended]:
                self._lose(worker, ledger)

    def _deadline_s(self, worker: WorkerProcess) -> float:
        if worker.task is not None:
            return worker.since_s + self._timeout_s
        return math.inf if worker.is_ready else worker.since_s + _START_LIMIT_S

    def _end_late_ones(self, ledger: Ledger) -> None:
        now_s = time.monotonic()
        for worker in [w for w in self._workers if now_s > self._deadline_s(w)]:
            task = worker.task
            if task is None:
                self._lose(worker, ledger)
                continue
            self._drop(worker)
            message = f"task {task.name} did not end within {self._timeout_s:g} s"
            ledger.finish(task, _lost(message, "give it more time, or less to do"))

    def _lose(self, worker: WorkerProcess, ledger: Ledger) -> None:
        """A worker ended by itself: its task is pending again, unless it ended too many."""
        task, was_ready = worker.task, worker.is_ready
        ending = self._drop(worker, patience_s=_ENDING_S)
        if task is not None:
            num = self._num_losses[task.key] = self._num_losses.get(task.key, 0) + 1
            if num <= self._max_retries:
                ledger.pending[task.key] = task
                return
            message = f"task {task.name} ended its worker {num} times of {num}, last by {ending}"
            hint = "SIGKILL may mean that memory ran out (dmesg says so): use fewer workers"
            ledger.finish(task, _lost(message, hint))
        elif not was_ready:
            self._num_failed_starts += 1
            if self._num_failed_starts >= _MAX_FAILED_STARTS:
                raise BackendUnavailableError(
                    f"worker processes do not start: {self._num_failed_starts} in a row ended "
                    f"before they took a task, last by {ending}",
                    hint="what they wrote stands above",
                )

    def _drop(self, worker: WorkerProcess, *, patience_s: float = 0.0) -> str:
        self._workers.remove(worker)
        self._free_cores.append(worker.core)
        self._selector.unregister(worker.answers)
        if worker.questions in self._selector.get_map():
            self._selector.unregister(worker.questions)
        return worker.kill(patience_s=patience_s)


def check_settings(num_workers: int, timeout_s: float, max_retries: int) -> None:
    """Refuse numbers that make no sense.

    Raises:
        ConfigError: One of them is out of range.
    """
    if num_workers < 1 or not timeout_s > 0 or max_retries < 0:
        raise ConfigError(
            "wanted at least 1 worker, a time-out above 0 s and at least 0 retries, "
            f"got {num_workers}, {timeout_s:g} s and {max_retries}"
        )


def _lost(message: str, hint: str) -> Outcome:
    failure = Failure(kind=WorkerLostError.__name__, message=message, hint=hint)
    return Outcome(failure=failure)


def _cores(num: int) -> list[int | None]:
    """The last cores, as the first one takes most interrupts; none if there are fewer."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return [*cores[-num:]] if 0 < num <= len(cores) else []
