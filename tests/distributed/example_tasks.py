"""Task functions for the tests; a worker finds them through PYTHONPATH."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from effdl.errors import ConfigError, EffdlError, InfeasibleConstraintError, UnknownNameError


class Work(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the functions take; each reads what it needs."""

    number: int = 0
    seconds: float = 0.0
    log: str = ""
    data: str = ""
    kind: str = ""


def _log(work: Work, *words: object) -> None:
    """Append a line in one write, so that lines of several processes never mix."""
    handle = os.open(work.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, (" ".join(map(str, (work.number, *words))) + "\n").encode())
    os.close(handle)


def draw(work: Work) -> list[float]:
    """Numbers that the seed decides, to the last bit."""
    if work.log:
        _log(work, os.getpid())
    time.sleep(work.seconds)
    return np.random.default_rng(work.number).standard_normal(50).tolist()


def sleep(work: Work) -> int:
    """Take some time, and log when."""
    start = time.monotonic()
    time.sleep(work.seconds)
    if work.log:
        _log(work, start, time.monotonic())
    return work.number


def nothing(work: Work) -> int:
    """Cost no time at all."""
    return work.number


def size(work: Work) -> tuple[int, str]:
    """Length of what came, and as much going back."""
    return len(work.data), work.data


def die(work: Work) -> int:
    """End this process, as a crash or a full memory would; even numbers live."""
    if work.log:
        _log(work)
    if work.number % 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return work.number


def crash(work: Work) -> int:
    """Read the null pointer."""
    return ctypes.string_at(0)[0]


def leave(work: Work) -> None:
    """Leave the interpreter without a word."""
    os._exit(7)


def fail(work: Work) -> None:
    """Raise an error of the kind asked for."""
    raise {
        "config": ConfigError("wanted a, got b", hint="try a"),
        "root": EffdlError("nothing to say"),
        "fastest": InfeasibleConstraintError("too tight", fastest_latency_ms=12.5, hint="15ms"),
        "name": UnknownNameError("fruit", "aple", ["apple", "pear"]),
        "private": _PrivateError("hidden", hint="h"),
        "defect": ZeroDivisionError("by zero\nand a second line"),
    }[work.kind]


class _PrivateError(ConfigError):
    """A class that only this module knows."""


def speak(work: Work) -> str:
    """Write to stdout in every way, and read stdin."""
    sys.stdout.write(f"printed {work.number}\n")
    os.write(1, b"\x00\x00\x00\x04null")
    subprocess.run([sys.executable, "-c", "print('child')"], check=True, timeout=30)
    return sys.stdin.read()


def breed(work: Work) -> None:
    """Start a child that outlives any patience, and wait for it."""
    child = subprocess.Popen(["sleep", "300"])
    _log(work, os.getpid(), child.pid)
    child.wait()


def hog(work: Work) -> None:
    """Hold the interpreter lock for ages."""
    _log(work, os.getpid())
    ctypes.PyDLL(None).sleep(300)


def place(work: Work) -> tuple[list[int], str, int]:
    """Cores this process may use, what its libraries are told, and the machine's cores."""
    from effdl.targets.host import describe_host

    time.sleep(work.seconds)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return cores, os.environ["OMP_NUM_THREADS"], describe_host().num_cores


def modules(work: Work) -> list[str]:
    """What a worker has loaded."""
    return sorted(sys.modules)


def flaky(work: Work) -> int:
    """Die the first time; the log remembers."""
    before = Path(work.log).exists()
    _log(work)
    if not before:
        os.kill(os.getpid(), signal.SIGKILL)
    return work.number


def two(first: Work, second: Work) -> None:
    """Not a task function: it has two parameters."""


def loose(work) -> None:
    """Not a task function: its parameter has no type."""
