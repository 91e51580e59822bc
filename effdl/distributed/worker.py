"""A worker process: started as a module by `effdl.distributed.worker_process`.

It reads questions from its stdin, answers on its stdout, and ends with its whole
process group when stdin ends: a parent that dies, however it dies, takes it along.
"""

import contextlib
import fcntl
import os
import queue
import signal
import sys
import threading

import msgspec

from effdl.distributed.frames import FrameReader, Question, Settings, frame
from effdl.distributed.task import perform

_PIECE_BYTES = 1 << 20


def main() -> int:
    """Work until stdin ends."""
    settings = msgspec.json.decode(sys.argv[1], type=Settings)
    questions, answers = _take_pipes()
    _die_with_parent(settings.life)
    _pin(settings.core)
    asked: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(questions, asked), daemon=True).start()
    _write(answers, frame(None))
    while True:
        question = msgspec.json.decode(asked.get(), type=Question)
        argument = bytes(question.argument)
        _write(answers, frame(perform(question.function, argument, settings.allowed)))


def _take_pipes() -> tuple[int, int]:
    """Keep the pipes where no task finds them; what tasks print goes to stderr."""
    questions, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return questions, answers


def _die_with_parent(life: int) -> None:
    """Have Linux kill this process group when the parent ends.

    The kernel does it even while a task holds the interpreter; elsewhere the thread
    that reads stdin does it, when it gets to run.
    """
    os.set_inheritable(life, False)
    if sys.platform == "linux" and os.getpgrp() == os.getpid():
        with contextlib.suppress(OSError):
            fcntl.fcntl(life, fcntl.F_SETOWN, -os.getpgrp())
            fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)


def _pin(core: int | None) -> None:
    if core is None or not hasattr(os, "sched_setaffinity"):
        return
    # Remembered before the pin: this machine has the cores it had.
    from effdl.targets.host import describe_host

    describe_host()
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {core})


def _read(questions: int, asked: "queue.SimpleQueue[bytes]") -> None:
    reader = FrameReader()
    while piece := os.read(questions, _PIECE_BYTES):
        for message in reader.add(piece):
            asked.put(message)
    _end()


def _end() -> None:
    """End this process and what its tasks started."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _write(answers: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(answers, left) :]


if __name__ == "__main__":
    sys.exit(main())
