"""TVM in a child process, so that a crash or a hung board ends the child and not the caller.

TVM's client reads its socket without a time limit, and its compiler can end the process;
here every request has a time limit, and what overruns it is killed with its whole process
group. Requests and answers are lines of JSON; models, libraries and arrays are files.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from effdl.errors import CorruptFileError, EffdlError, TargetUnavailableError
from effdl.targets.measure.tvm_target import TvmTarget, find_linker, find_tvm

__all__ = [
    "Answer",
    "Compile",
    "Connect",
    "Load",
    "Request",
    "Run",
    "Time",
    "TvmWorker",
    "compile_model",
]

_START_LIMIT_S = 60.0
_COMPILE_LIMIT_S = 300.0
_MAX_ERROR_CHARACTERS = 400


class Compile(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Compile the ONNX model in a file, with a batch of ``batch_size`` where that is free."""

    model: str
    library: str
    batch_size: int
    target: dict[str, Any]
    linker: tuple[str, ...]


class Connect(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Open a session on a board; later libraries are loaded there."""

    host: str
    port: int
    key: str
    session_s: int
    num_threads: int


class Load(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Load a library, on the board or here where none is connected."""

    library: str


class Run(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Run a library on the arrays in a file, and write its outputs to another."""

    handle: int
    inputs: str
    outputs: str


class Time(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Time a library that has been run, on the inputs of that run."""

    handle: int
    number: int
    repeat: int


Request = Compile | Connect | Load | Run | Time


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """A request, and the libraries to let go of before it."""

    request: Request
    released: tuple[int, ...]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a request.

    Attributes:
        handle: Of a loaded library.
        seconds: Of one call, one value a repeat.
        description: What the board says of itself; None where it says nothing.
    """

    handle: int = 0
    seconds: tuple[float, ...] = ()
    description: str | None = None


class TvmWorker:
    """The child process; it starts at once, and ends with `close` or with this object.

    Raises:
        BackendUnavailableError: TVM is not installed, or in a wrong version.
        TargetUnavailableError: The process does not come up.
    """

    def __init__(self) -> None:
        find_tvm()
        self._folder = tempfile.TemporaryDirectory(prefix="effdl-tvm-")
        self.folder = Path(self._folder.name)
        self._errors = (self.folder / "stderr").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "effdl.targets.measure.tvm_worker_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TVM_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self._released: deque[int] = deque()
        self._num_files = 0
        self._pending = b""
        self._finalizer = weakref.finalize(
            self, _end, self._process, self._errors.close, self._folder.cleanup
        )
        self._receive("TVM", _START_LIMIT_S, TargetUnavailableError)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, its session on the board, and its files."""
        self._finalizer()

    def compile(self, model: bytes, target: TvmTarget, *, batch_size: int = 1) -> Path:
        """A model as a shared library, in this worker's folder.

        Args:
            model: A serialised ONNX model.
            target: The processor.
            batch_size: Size of a first dimension that is not fixed.

        Raises:
            BackendUnavailableError: There is nothing to link with.
            CorruptFileError: TVM cannot compile the model.
        """
        linker = find_linker(target.triple)
        source, library = self.new_file(".onnx"), self.new_file(".so")
        source.write_bytes(model)
        request = Compile(
            model=str(source),
            library=str(library),
            batch_size=batch_size,
            target=target.to_tvm(),
            linker=linker,
        )
        self.ask(request, who="TVM's compiler", limit_s=_COMPILE_LIMIT_S, error=CorruptFileError)
        source.unlink()
        return library

    def run(
        self, handle: int, inputs: Sequence[NDArray[Any]], *, who: str, limit_s: float
    ) -> list[NDArray[Any]]:
        """The outputs of a loaded library for these inputs.

        Args:
            handle: The library.
            inputs: In the model's order.
            who: For messages: what runs it.
            limit_s: Seconds after which it counts as hung.

        Raises:
            TargetUnavailableError: The board is lost, or takes too long.
        """
        given, made = self.new_file(".npz"), self.new_file(".npz")
        np.savez(given, *inputs)
        self.ask(Run(handle=handle, inputs=str(given), outputs=str(made)), who=who, limit_s=limit_s)
        with np.load(made, allow_pickle=False) as arrays:
            outputs = [arrays[name] for name in arrays.files]
        given.unlink()
        made.unlink()
        return outputs

    def release(self, handle: int) -> None:
        """Let go of a library, with the next request; callable from a finaliser."""
        self._released.append(handle)

    def new_file(self, suffix: str) -> Path:
        """A path in this worker's folder where nothing is yet."""
        self._num_files += 1
        return self.folder / f"{self._num_files}{suffix}"

    def ask(
        self,
        request: Request,
        *,
        who: str,
        limit_s: float,
        error: type[EffdlError] = TargetUnavailableError,
    ) -> Answer:
        """Send a request and wait for its answer; a failure ends the worker.

        Args:
            request: What to do.
            who: For messages: what does it.
            limit_s: Seconds after which it counts as hung.
            error: What to raise where it fails.
        """
        if self._process.poll() is not None:
            raise TargetUnavailableError(
                f"the session with {who} has ended", hint="open it anew: run the command again"
            )
        released = tuple(self._released.popleft() for _ in range(len(self._released)))
        line = msgspec.json.encode(Envelope(request=request, released=released)) + b"\n"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail(f"{who} failed", error)
        return self._receive(who, limit_s, error)

    def _receive(self, who: str, limit_s: float, error: type[EffdlError]) -> Answer:
        assert self._process.stdout is not None
        handle, deadline = self._process.stdout.fileno(), time.monotonic() + limit_s
        while b"\n" not in self._pending:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([handle], [], [], left_s)[0]:
                self._fail(f"{who} did not answer within {limit_s:.0f} s", error)
            part = os.read(handle, 1 << 16)
            if not part:
                self._fail(f"{who} failed", error)
            self._pending += part
        line, _, self._pending = self._pending.partition(b"\n")
        return msgspec.json.decode(line, type=Answer)

    def _fail(self, what: str, error: type[EffdlError]) -> None:
        said = (self.folder / "stderr").read_text(errors="replace").strip().splitlines()
        self.close()
        reason = f": {said[-1].strip()[:_MAX_ERROR_CHARACTERS]}" if said else ""
        raise error(what + reason)


def _end(process: subprocess.Popen[bytes], *clean_ups: Any) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    for clean_up in clean_ups:
        clean_up()


def compile_model(model: bytes, target: TvmTarget, *, batch_size: int = 1) -> bytes:
    """Compile an ONNX model with TVM, untuned, into a shared library.

    Args:
        model: A serialised ONNX model.
        target: The processor.
        batch_size: Size of a first dimension that is not fixed.

    Returns:
        The library: TVM's relax virtual machine loads it, its function is ``main``.

    Raises:
        BackendUnavailableError: TVM is not installed, or there is nothing to link with.
        CorruptFileError: TVM cannot compile the model.
    """
    find_linker(target.triple)
    with TvmWorker() as worker:
        return worker.compile(model, target, batch_size=batch_size).read_bytes()
