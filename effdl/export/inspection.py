"""Open an ONNX file that may be hostile: in a child process with limits.

The child is no sandbox, but a file that crashes, hangs or swells the parser or
the runtime ends the child and not the caller.
"""

import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from effdl.errors import ConfigError, CorruptFileError
from effdl.export.runtime import ParityCase

__all__ = ["Facts", "Inspection", "InspectionRequest", "TensorFacts", "inspect_onnx"]

_MAX_FILE_BYTES = 2_000_000_000
# Address space: Python with ONNX Runtime, and what two sessions make of the weights.
_BASE_MEMORY_BYTES = 3 << 30
_MEMORY_PER_FILE_BYTE = 8
_GOODBYE_S = 5.0

# Exit statuses of the child.
UNREADABLE = 3
OUT_OF_MEMORY = 4


class InspectionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is asked, as JSON in its arguments."""

    path: str
    folder: str
    batch_sizes: tuple[int, ...]
    seeds: int
    memory_bytes: int
    cpu_seconds: int


class TensorFacts(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output: its name, type and shape; a free dimension is a string."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the child found.

    Attributes:
        opsets: Version of each operator set, by domain.
        metadata: The file's ``metadata_props``.
        inputs: Inputs of the graph that are no weights.
        outputs: Outputs of the graph.
        num_nodes: Nodes of the graph.
        graph_sha256: Of the graph with its weights.
        external_tensors: Tensors whose data stand in another file.
        local_path: A local path found in the file's texts, or None.
        checker_error: What `onnx.checker` said, or None.
        runtime_error: What ONNX Runtime said on loading or running, or None.
        why_not_run: Why no input was made for the model, or None.
        optimizer_gap: Largest relative difference that graph optimisations
            make on random and zero inputs, or None where nothing ran.
        cases: The inputs that were run.
    """

    opsets: dict[str, int]
    metadata: dict[str, str]
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    num_nodes: int
    graph_sha256: str
    external_tensors: tuple[str, ...]
    local_path: str | None
    checker_error: str | None
    runtime_error: str | None
    why_not_run: str | None
    optimizer_gap: float | None
    cases: tuple[ParityCase, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """The facts, and the first output of each case as ONNX Runtime gave it."""

    facts: Facts
    outputs: tuple[NDArray[np.float32], ...]


def inspect_onnx(
    path: Path, *, batch_sizes: tuple[int, ...], seeds: int = 1, timeout_s: float = 120.0
) -> Inspection:
    """Parse, check and run an ONNX file in a child process.

    Args:
        path: The file.
        batch_sizes: Batch sizes to run where the model leaves its batch free.
        seeds: Draws of random and extreme inputs at each batch size.
        timeout_s: Seconds of wall or processor time after which it is given up.

    Raises:
        ConfigError: There is no such file.
        CorruptFileError: The file is not ONNX, or opening it crashed the
            child, took too long or too much memory.
    """
    if not path.is_file():
        raise ConfigError(f"no such file: {path}")
    num_bytes = path.stat().st_size
    if num_bytes > _MAX_FILE_BYTES:
        raise CorruptFileError(
            f"{path} is too large: wanted at most {_MAX_FILE_BYTES} bytes, got {num_bytes}"
        )
    with tempfile.TemporaryDirectory(prefix="effdl-inspect-") as name:
        folder = Path(name)
        request = InspectionRequest(
            path=str(path.absolute()),
            folder=str(folder),
            batch_sizes=batch_sizes,
            seeds=seeds,
            memory_bytes=_BASE_MEMORY_BYTES + _MEMORY_PER_FILE_BYTE * num_bytes,
            cpu_seconds=max(1, round(timeout_s)),
        )
        _run_child(path, request, folder / "stderr", timeout_s)
        return _read_answer(path, folder)


def _run_child(path: Path, request: InspectionRequest, log: Path, timeout_s: float) -> None:
    command = [sys.executable, "-P", "-m", "effdl.export.inspection_child"]
    with log.open("wb") as stderr:
        child = subprocess.Popen(  # noqa: S603
            [*command, msgspec.json.encode(request).decode()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            cwd=request.folder,
        )
        try:
            status = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = -signal.SIGXCPU
        finally:
            child.kill()
            child.wait(_GOODBYE_S)
    if status == 0:
        return
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        last = file.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
    if status == UNREADABLE:
        reason = f"is not a readable ONNX file: {last}"
    elif status == OUT_OF_MEMORY:
        reason = f"needs more than {request.memory_bytes >> 30} GiB of memory to open"
    elif status == -signal.SIGXCPU:
        reason = f"did not open and run within {timeout_s:g} s"
    elif status < 0:
        reason = f"crashed the ONNX parser or runtime (signal {signal.Signals(-status).name})"
    else:
        reason = f"could not be inspected: {last}"
    raise CorruptFileError(f"{path} {reason}")


def _read_answer(path: Path, folder: Path) -> Inspection:
    try:
        facts = msgspec.msgpack.decode((folder / "facts.msgpack").read_bytes(), type=Facts)
        with np.load(folder / "outputs.npz", allow_pickle=False) as arrays:
            outputs = tuple(arrays[f"arr_{i}"] for i in range(len(facts.cases)))
    except (OSError, KeyError, ValueError, msgspec.MsgspecError) as error:
        raise CorruptFileError(f"{path} could not be inspected: {error}") from error
    return Inspection(facts=facts, outputs=outputs)
