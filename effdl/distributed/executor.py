"""Doing many tasks: the protocol, its simplest form, and the book that all forms keep.

Every form gives the same results in the order of the tasks, byte for byte. A task
that fails does not stop the others: when all have been tried, the error of the first
one is raised, and what the others gave has been recorded.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

from effdl.distributed.task import ALLOWED, MAX_MESSAGE_BYTES, Outcome, Task, as_error, perform
from effdl.errors import ConfigError

__all__ = ["Executor", "Ledger", "Progress", "Record", "SerialExecutor"]

Progress = Callable[[int, int, str], None]
"""Called with (tasks done, tasks, what is going on)."""

Record = Callable[[Task, bytes], None]
"""Called with a task and its result as soon as there is one, in this thread."""


class Executor(Protocol):
    """Does tasks somewhere; a context manager that lets go of the workers at its end."""

    def run(
        self,
        tasks: Sequence[Task],
        *,
        known: Mapping[str, bytes] | None = None,
        record: Record | None = None,
        progress: Progress | None = None,
    ) -> list[bytes]:
        """Do tasks, equal ones once; two that name the same device never at once.

        Args:
            tasks: What to do.
            known: Results of earlier runs by a task's key: these are not done again.
            record: Keeps a result, so that a later run knows it.
            progress: Told how many tasks are done.

        Returns:
            Results as JSON, in the order of the tasks.

        Raises:
            EffdlError: What the first task that failed raised, in its own class.
            WorkerLostError: A task ended its worker, or did not end in time.
            RuntimeError: A task failed in a way that is a defect; its note holds the
                worker's traceback.
        """
        ...

    def close(self) -> None:
        """End the workers."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Ledger:
    """Which tasks of a run are to be done, and what came of the others.

    Args:
        tasks: As `Executor.run` takes them, and so on.

    Raises:
        ConfigError: A task is too large to be sent.

    Attributes:
        pending: Tasks that no worker has, by key, in order.
        outcomes: Of tasks that are done, by key.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        known: Mapping[str, bytes] | None = None,
        record: Record | None = None,
        progress: Progress | None = None,
    ) -> None:
        for task in tasks:
            if len(task.argument) > MAX_MESSAGE_BYTES:
                raise ConfigError(
                    f"the argument of task {task.name} is too large: wanted at most "
                    f"{MAX_MESSAGE_BYTES} bytes, got {len(task.argument)}"
                )
        known = known or {}
        self._tasks = list(tasks)
        self._record, self._progress = record, progress
        self._results = {t.key: known[t.key] for t in tasks if t.key in known}
        self.pending = {t.key: t for t in tasks if t.key not in known}
        self.outcomes: dict[str, Outcome] = {}
        self._num_to_do = len(self.pending)

    @property
    def is_finished(self) -> bool:
        """Whether something came of every task."""
        return len(self.outcomes) == self._num_to_do

    def runnable(self, in_use: frozenset[str] | set[str]) -> Iterator[Task]:
        """Pending tasks that could run at once, in order, beside what uses devices now."""
        taken = set(in_use)
        for task in list(self.pending.values()):
            if taken.isdisjoint(task.resources):
                taken |= task.resources
                yield task

    def finish(self, task: Task, outcome: Outcome) -> None:
        """Note what came of a task."""
        self.pending.pop(task.key, None)
        self.outcomes[task.key] = outcome
        if outcome.failure is None:
            result = self._results[task.key] = bytes(outcome.result)
            if self._record is not None:
                self._record(task, result)
        if self._progress is not None:
            left = self._num_to_do - len(self.outcomes)
            self._progress(len(self.outcomes), self._num_to_do, f"{left} tasks to do")

    def results(self) -> list[bytes]:
        """Results in the order of the tasks; raises what the first failed one raised."""
        failed = [t for t in self._tasks if t.key not in self._results]
        if failed:
            failure = self.outcomes[failed[0].key].failure
            assert failure is not None
            error = as_error(failure, failed[0])
            if len(failed) > 1:
                error.add_note(f"{len(failed)} of {len(self._tasks)} tasks failed")
            raise error
        return [self._results[task.key] for task in self._tasks]


class SerialExecutor:
    """One task after another, in this process: what the others are compared with.

    Args:
        allowed: What the name of a task's function must begin with.
    """

    def __init__(self, *, allowed: tuple[str, ...] = ALLOWED) -> None:
        self._allowed = allowed

    def run(
        self,
        tasks: Sequence[Task],
        *,
        known: Mapping[str, bytes] | None = None,
        record: Record | None = None,
        progress: Progress | None = None,
    ) -> list[bytes]:
        """`Executor.run`; nothing protects this process from what a task does to it."""
        ledger = Ledger(tasks, known=known, record=record, progress=progress)
        for task in list(ledger.pending.values()):
            ledger.finish(task, perform(task.function, task.argument, self._allowed))
        return ledger.results()

    def close(self) -> None:
        """There is nothing to end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
