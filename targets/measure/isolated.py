"""Times ONNX files that others wrote, in a child process with limits.

The child is no sandbox, but a file that crashes, hangs or swells the runtime ends
the child and not the caller.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from effdl.errors import BackendUnavailableError, ConfigError, CorruptFileError, EffdlError
from effdl.targets.timing import Timing

__all__ = ["Answer", "Difference", "NodeTime", "Question", "Ratio", "time_files"]

_MAX_FILE_BYTES = 2_000_000_000
# Address space: Python with ONNX Runtime, and what sessions make of the weights.
_BASE_MEMORY_BYTES = 4 << 30
_MEMORY_PER_FILE_BYTE = 12
# Loading, warming and the runtime's own profile, beyond the time for measuring.
_GRACE_S = 120.0


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the child is asked.

    Attributes:
        paths: One file to profile, or two to compare.
        batch_size: Size of a first dimension that is not fixed; None: 1.
        num_threads: Threads inside an operator.
        budget_s: Seconds it may measure.
        folder: Where it leaves its answer.
        memory_bytes: Address space it may take.
        cpu_seconds: Processor time it may take.
    """

    paths: tuple[str, ...]
    batch_size: int | None
    num_threads: int
    budget_s: float
    folder: str
    memory_bytes: int
    cpu_seconds: int


class NodeTime(msgspec.Struct, frozen=True, kw_only=True):
    """Time of one node, as the runtime's own profiler sees it.

    Attributes:
        name: The node after the runtime's optimisations.
        operator: Its kind.
        median_ms: Median over runs in milliseconds.
        share_percent: Of the sum over all nodes.
    """

    name: str
    operator: str
    median_ms: float
    share_percent: float


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """How much longer the second file takes: second over first, with its 95 % interval."""

    value: float
    low: float
    high: float


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """How far apart the outputs of two files are on the same made inputs.

    Attributes:
        max_absolute: Largest absolute difference of any output value.
        max_relative: The same over the largest absolute value of that output.
    """

    max_absolute: float
    max_relative: float


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the child found.

    Attributes:
        timings: One for each file.
        batch_size: First dimension of the first input.
        peak_memory_bytes: Resident memory that loading and running the files took
            at its peak.
        nodes: Slowest first; only of a single file.
        ratio: Only of two files.
        difference: Only of two files.
        error: Kind and text of an error that ended it, and its hint.
    """

    timings: tuple[Timing, ...] = ()
    batch_size: int = 1
    peak_memory_bytes: int = 0
    nodes: tuple[NodeTime, ...] = ()
    ratio: Ratio | None = None
    difference: Difference | None = None
    error: tuple[str, str, str | None] | None = None


def time_files(
    paths: tuple[Path, ...], *, batch_size: int | None, num_threads: int, budget_s: float
) -> Answer:
    """Time one file by itself, or two against each other.

    Args:
        paths: One or two ONNX files.
        batch_size: Size of a first dimension that is not fixed; None: 1.
        num_threads: Threads inside an operator.
        budget_s: Seconds it may measure.

    Raises:
        ConfigError: There is no such file, a file fixes another batch size, or two
            files take different inputs.
        CorruptFileError: A file is not ONNX, cannot be run, or crashed the runtime.
        BackendUnavailableError: ONNX Runtime is not installed.
    """
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"no such file: {path}")
    num_bytes = sum(path.stat().st_size for path in paths)
    if num_bytes > _MAX_FILE_BYTES:
        raise CorruptFileError(
            f"{', '.join(map(str, paths))}: wanted at most {_MAX_FILE_BYTES} bytes, got {num_bytes}"
        )
    limit_s = budget_s + _GRACE_S
    with tempfile.TemporaryDirectory(prefix="effdl-measure-") as folder:
        question = Question(
            paths=tuple(str(path.resolve()) for path in paths),
            batch_size=batch_size,
            num_threads=num_threads,
            budget_s=budget_s,
            folder=folder,
            memory_bytes=_BASE_MEMORY_BYTES + _MEMORY_PER_FILE_BYTE * num_bytes,
            cpu_seconds=int(limit_s) * max(1, num_threads),
        )
        child = [sys.executable, "-m", "effdl.targets.measure.isolated_child"]
        named = " or ".join(map(str, paths))
        try:
            done = subprocess.run(  # noqa: S603
                [*child, msgspec.json.encode(question).decode()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise CorruptFileError(
                f"{named} could not be run within {limit_s:.0f} s",
                hint="a smaller --batch-size may help",
            ) from None
        answer = Path(folder) / "answer.json"
        if done.returncode != 0 or not answer.is_file():
            raise CorruptFileError(
                f"{named} ended the runtime (exit status {done.returncode}): it is damaged, or "
                "needs more memory than there is",
                hint="effdl verify MODEL.onnx says what is wrong with a file",
            )
        result = msgspec.json.decode(answer.read_bytes(), type=Answer)
    if result.error is not None:
        raise _error(*result.error)
    return result


def _error(kind: str, message: str, hint: str | None) -> EffdlError:
    kinds: dict[str, type[EffdlError]] = {
        error.__name__: error for error in (BackendUnavailableError, ConfigError, CorruptFileError)
    }
    return kinds.get(kind, CorruptFileError)(message, hint=hint)
