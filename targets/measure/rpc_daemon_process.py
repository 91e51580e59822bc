"""effdl-rpcd on this machine, by itself or under an emulator, for as long as it is needed."""

import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from effdl.errors import TargetUnavailableError
from effdl.targets.measure.rpc_board import Board
from effdl.targets.measure.rpc_daemon_build import TOKEN_NAME, write_token

__all__ = ["RunningDaemon", "run_daemon"]

_START_LIMIT_S = 20.0
_LISTENING = "listening on "


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningDaemon:
    """A daemon that listens.

    Attributes:
        board: How to reach it.
        pid: Of its process, which leads a process group of its own.
        work_folder: Where it keeps what clients upload.
    """

    board: Board
    pid: int
    work_folder: Path


@contextmanager
def run_daemon(
    daemon: Path, *, emulator: tuple[str, ...] = (), session_s: int = 3600
) -> Iterator[RunningDaemon]:
    """Run the daemon on a free port of loopback; at the end its process group is killed.

    Args:
        daemon: The executable, as `build_daemon` made it.
        emulator: The start of a command line that runs it; what it serves then yields
            no latency.
        session_s: Longest session in seconds.

    Raises:
        TargetUnavailableError: It does not start.
    """
    with tempfile.TemporaryDirectory(prefix="effdl-rpcd-") as folder:
        token_file, work = Path(folder) / TOKEN_NAME, Path(folder) / "work"
        token = write_token(token_file)
        command = [*emulator, str(daemon), "--port", "0", "--token-file", str(token_file)]
        command += ["--work-dir", str(work), "--session-seconds", str(session_s)]
        if emulator:
            command.append("--emulated")
        with (Path(folder) / "stderr").open("wb") as errors:
            try:
                process = subprocess.Popen(  # noqa: S603
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    start_new_session=True,
                )
            except OSError as error:
                raise TargetUnavailableError(
                    f"{command[0]} cannot be started: {error.strerror or error}"
                ) from error
        try:
            address = _read_address(process)
            if address is None:
                said = (Path(folder) / "stderr").read_text(errors="replace").strip()
                raise TargetUnavailableError(f"{daemon.name} does not start: {said[-300:]}")
            yield RunningDaemon(
                board=Board(address=address, token=token), pid=process.pid, work_folder=work
            )
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _read_address(process: subprocess.Popen[bytes]) -> str | None:
    assert process.stdout is not None
    handle, deadline, text = process.stdout.fileno(), time.monotonic() + _START_LIMIT_S, b""
    while not text.endswith(b"\n"):
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not select.select([handle], [], [], left_s)[0]:
            return None
        part = os.read(handle, 4096)
        if not part:
            return None
        text += part
    return text.decode().strip().rpartition(_LISTENING)[2]
