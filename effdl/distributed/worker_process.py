"""A worker process as its parent sees it."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import msgspec

from effdl.distributed.frames import FrameReader, Question, Settings, frame
from effdl.distributed.task import Outcome, Task
from effdl.errors import BackendUnavailableError, CorruptFileError

__all__ = ["WorkerProcess"]

_PIECE_BYTES = 1 << 20
_KILL_WAIT_S = 10.0
# Libraries read these when they are loaded; a worker is one thread on one core.
_ENVIRONMENT = {
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "OPENBLAS_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
}


class WorkerProcess:
    """One worker: its process, its pipes, and the task it has.

    Args:
        core: Core it keeps to; None: any.
        allowed: What the name of a task's function must begin with.
        now_s: When it is started.

    Raises:
        BackendUnavailableError: The system has no room for another process.

    Attributes:
        core: Core it keeps to.
        task: What it does now, if anything.
        since_s: When it was started, or given its task.
        is_ready: It has said that it takes tasks.
        questions: Its stdin, which never blocks.
        answers: Its stdout, which never blocks.
    """

    def __init__(self, *, core: int | None, allowed: tuple[str, ...], now_s: float) -> None:
        # Never written to: its other end closes when this process ends, however it does.
        life, self._life = os.pipe()
        settings = Settings(life=life, core=core, allowed=allowed)
        self.core, self.since_s, self.is_ready = core, now_s, False
        self.task: Task | None = None
        # -P: a worker looks for modules where programs do, not in the current folder.
        command = [sys.executable, "-P", "-m", "effdl.distributed.worker"]
        try:
            self._process = subprocess.Popen(  # noqa: S603
                [*command, msgspec.json.encode(settings).decode()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **_ENVIRONMENT},
                start_new_session=True,
                pass_fds=[life],
                bufsize=0,
            )
        except OSError as error:
            os.close(self._life)
            raise BackendUnavailableError(
                f"a worker process cannot be started: {error.strerror or error}",
                hint="use fewer workers",
            ) from error
        finally:
            os.close(life)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.questions, self.answers = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self.questions, False)
        os.set_blocking(self.answers, False)
        self._reader, self._unsent = FrameReader(), memoryview(b"")

    @property
    def has_unsent(self) -> bool:
        """Whether part of its task waits for room in the pipe."""
        return bool(self._unsent)

    def give(self, task: Task, now_s: float) -> None:
        """Hand it a task."""
        self.task, self.since_s = task, now_s
        question = Question(function=task.function, argument=msgspec.Raw(task.argument))
        self._unsent = memoryview(frame(question))
        self.send()

    def send(self) -> None:
        """Write as much as the pipe takes; a worker that is gone shows when it is read from."""
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self.questions, self._unsent) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._unsent = memoryview(b"")

    def receive(self, answered: Callable[["WorkerProcess", Outcome], None]) -> bool:
        """Read what it wrote.

        Args:
            answered: Called with the outcome of its task, which it then has no more.

        Returns:
            Whether the worker is still there.
        """
        while True:
            try:
                piece = os.read(self.answers, _PIECE_BYTES)
            except BlockingIOError:
                return True
            if not piece:
                return False
            try:
                messages = self._reader.add(piece)
                outcomes = [msgspec.json.decode(m, type=Outcome | None) for m in messages]
            except (CorruptFileError, msgspec.MsgspecError):
                return False
            for outcome in outcomes:
                self.is_ready = True
                if outcome is not None:
                    answered(self, outcome)

    @property
    def has_ended(self) -> bool:
        """Whether its process is no more."""
        return self._process.poll() is not None

    def kill(self, *, patience_s: float = 0.0) -> str:
        """End it and all it started.

        Args:
            patience_s: How long a worker that closed its pipes may take to end by itself.

        Returns:
            How it ended.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILL_WAIT_S)
        os.close(self._life)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        status = self._process.returncode
        if status is None:
            return "cannot be ended"
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
