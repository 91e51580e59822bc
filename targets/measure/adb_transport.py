"""Talks to one Android phone through the ``adb`` program: commands, files, and what goes wrong.

On this machine every call is an argument list with a time limit. On the phone a
command runs in its shell, so what goes there is quoted, and its end is marked: output
without the mark was cut off.
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from effdl.errors import (
    BackendUnavailableError,
    ConfigError,
    CorruptFileError,
    OutputError,
    TargetUnavailableError,
)
from effdl.targets.measure.adb_output import parse_devices

__all__ = ["ADB_INSTALL_HINT", "PHONE_FOLDER", "Adb", "Answer", "connect", "find_adb"]

PHONE_FOLDER = "/data/local/tmp/effdl"
"""Where everything of effdl lies on the phone."""

ADB_INSTALL_HINT = (
    "apt-get install adb (Debian, Ubuntu), brew install android-platform-tools (macOS)"
)

_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_REMOTE_PATH = re.compile(r"/data/local/tmp/effdl(/[A-Za-z0-9][A-Za-z0-9._-]*)+")
_END = "effdl-exit:"
_CALL_LIMIT_S = 30.0
# Slower than any working cable; with it a file of 100 MB may take four minutes.
_SLOWEST_PUSH_BYTES_PER_S = 500_000.0
_GONE = re.compile(
    r"device '[^']*' not found|device not found|no devices/emulators found|device offline"
    r"|device unauthorized|error: closed|connection reset|protocol fault|device still",
    re.IGNORECASE,
)
_FULL = re.compile(r"no space left on device", re.IGNORECASE)


class Answer(NamedTuple):
    """What a command on the phone came to.

    Attributes:
        text: Its standard output.
        exit_code: Its exit status.
    """

    text: str
    exit_code: int


def find_adb() -> str:
    """The path of the ``adb`` program.

    Raises:
        BackendUnavailableError: It is not installed.
    """
    path = shutil.which("adb")
    if path is None:
        raise BackendUnavailableError("adb is not installed", hint=ADB_INSTALL_HINT)
    return path


def connect(serial: str | None = None, *, limit_s: float = _CALL_LIMIT_S) -> "Adb":
    """The one phone that is plugged in, or the one of a serial number.

    Args:
        serial: As ``adb devices`` lists it; None: there must be exactly one phone.
        limit_s: Seconds a short call may take.

    Raises:
        BackendUnavailableError: ``adb`` is not installed or does not run.
        ConfigError: The serial number is malformed.
        TargetUnavailableError: There is no phone, or more than one, or the phone is
            offline, does not trust this machine, or is an emulator.
        CorruptFileError: The list of devices is cut off.
    """
    if serial is not None and not _SERIAL.fullmatch(serial):
        raise ConfigError(
            f"wanted a serial number of letters, digits and ._:-, got {serial!r}",
            hint="adb devices lists them",
        )
    path = find_adb()
    done = _call([path, "devices", "-l"], what="adb devices", limit_s=limit_s)
    if done.returncode != 0:
        raise TargetUnavailableError(
            f"adb cannot list devices: {_last_line(done.stdout + done.stderr)}",
            hint="adb kill-server, then try again",
        )
    states = parse_devices(done.stdout)
    if serial is None:
        serial = _only(states)
    if serial not in states:
        known = ", ".join(states) or "none"
        raise TargetUnavailableError(
            f"wanted the phone {serial}, got: {known}", hint="adb devices lists them"
        )
    _check_state(serial, states[serial])
    return Adb(path=path, serial=serial, limit_s=limit_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adb:
    """One connected phone.

    Attributes:
        path: The ``adb`` program.
        serial: The phone's serial number.
        limit_s: Seconds a short call may take.
    """

    path: str
    serial: str
    limit_s: float = _CALL_LIMIT_S

    def run(self, command: Sequence[str], *, limit_s: float | None = None) -> Answer:
        """Run a program on the phone, given as an argument list.

        Raises:
            TargetUnavailableError: The phone is lost, or does not answer in time.
        """
        return self.script(shlex.join(command), limit_s=limit_s)

    def script(self, text: str, *, limit_s: float | None = None) -> Answer:
        """Run lines of the phone's shell; the caller has quoted what is in them.

        Args:
            text: The lines.
            limit_s: Seconds it may take.

        Raises:
            TargetUnavailableError: The phone is lost, or does not answer in time.
            CorruptFileError: The output was cut off while the phone is still there.
        """
        marked = f"( {text}\n) 2>&1\necho {_END}$?"
        what = f"the phone {self.serial}"
        done = self._call(["shell", marked], what=what, limit_s=limit_s or self.limit_s)
        body, mark, code = done.stdout.replace("\r\n", "\n").rpartition(_END)
        if not mark or not re.fullmatch(r"\d{1,3}\n", code):
            self._check_alive(done.stdout + done.stderr)
            raise CorruptFileError(
                f"the output of {what} was cut off: wanted it to end with {_END!r} and an exit "
                f"status, got {done.stdout[-200:]!r}",
                hint="try another cable or port, then run it again: it goes on where it stopped",
            )
        return Answer(body, int(code))

    def push(self, data: bytes | Path, remote: str, *, executable: bool = False) -> bool:
        """Bring a file to the phone unless it is there already; whether it was brought.

        The phone's own sha256 decides, before and after, so a file is never half there.

        Args:
            data: The content, or a file.
            remote: Below `PHONE_FOLDER`.
            executable: Whether it is a program.

        Raises:
            ConfigError: The path is not below `PHONE_FOLDER`, or the file is not there.
            TargetUnavailableError: The phone is lost, or too slow.
            OutputError: The phone has no space left, or refuses the file.
        """
        if not _REMOTE_PATH.fullmatch(remote):
            raise ConfigError(f"wanted a path below {PHONE_FOLDER}, got {remote!r}")
        content = _read(data)
        wanted = hashlib.sha256(content).hexdigest()
        part, folder = f"{remote}.part", remote.rpartition("/")[0]
        sum_of, make = ["sha256sum", remote], ["mkdir", "-p", folder]
        known = self.script(f"{shlex.join(make)} && {shlex.join(sum_of)}")
        if known.exit_code == 0 and known.text.startswith(wanted):
            return False
        limit_s = self.limit_s + round(len(content) / _SLOWEST_PUSH_BYTES_PER_S)
        with tempfile.TemporaryDirectory(prefix="effdl-adb-") as local:
            file = Path(local) / "file"
            file.write_bytes(content)
            done = self._call(["push", str(file), part], what=f"pushing {remote}", limit_s=limit_s)
        if done.returncode != 0:
            self._check_alive(done.stdout + done.stderr)
            self.run(["rm", "-f", part])
            raise self._unwritable(remote, done.stdout + done.stderr)
        mode = "755" if executable else "644"
        moved = self.script(
            f'sum=$(sha256sum {part}) && [ "${{sum%% *}}" = {wanted} ] && chmod {mode} {part} '
            f"&& mv {part} {remote} || {{ echo $sum; rm -f {part}; exit 1; }}"
        )
        if moved.exit_code != 0:
            raise TargetUnavailableError(
                f"{remote} did not arrive whole: wanted sha256 {wanted}, got "
                f"{_last_line(moved.text)}",
                hint="try another cable or port",
            )
        return True

    def _call(
        self, arguments: Sequence[str], *, what: str, limit_s: float
    ) -> "subprocess.CompletedProcess[str]":
        return _call([self.path, "-s", self.serial, *arguments], what=what, limit_s=limit_s)

    def _check_alive(self, said: str) -> None:
        """Raise where the phone is lost."""
        state = self._call(["get-state"], what=f"the phone {self.serial}", limit_s=self.limit_s)
        if state.stdout.strip() == "device" and not _GONE.search(said):
            return
        why = _last_line(said) if _GONE.search(said) else _last_line(state.stdout + state.stderr)
        raise TargetUnavailableError(
            f"the phone {self.serial} was lost: {why}",
            hint="plug it in and run the same command again: it goes on where it stopped",
        )

    def _unwritable(self, remote: str, said: str) -> OutputError:
        if _FULL.search(said):
            return OutputError(
                f"no space left on the phone for {remote}",
                hint=f"adb -s {self.serial} shell rm -rf {PHONE_FOLDER}",
            )
        return OutputError(
            f"cannot write {remote} on the phone: {_last_line(said)}",
            hint=f"adb -s {self.serial} shell ls -ld /data/local/tmp",
        )


def _call(
    arguments: Sequence[str], *, what: str, limit_s: float
) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(  # noqa: S603
            arguments,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limit_s,
            check=False,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise TargetUnavailableError(
            f"{what} took longer than {limit_s:g} s",
            hint="unlock the phone, try another cable or port, then run it again: "
            "it goes on where it stopped",
        ) from None
    except OSError as error:
        raise BackendUnavailableError(
            f"{arguments[0]} does not run: {error.strerror or error}", hint=ADB_INSTALL_HINT
        ) from error


def _only(states: dict[str, str]) -> str:
    if not states:
        raise TargetUnavailableError(
            "wanted one phone, got none",
            hint="plug it in, switch on USB debugging in its developer options, "
            "then adb devices must list it",
        )
    if len(states) > 1:
        listed = ", ".join(f"{serial} ({state})" for serial, state in states.items())
        raise TargetUnavailableError(
            f"wanted one phone, got {len(states)}: {listed}",
            hint="unplug all but one, or say which by its serial number",
        )
    return next(iter(states))


_STATE_HINTS = {
    "unauthorized": "unlock the phone and allow USB debugging from this machine in the dialogue "
    "it shows; adb kill-server shows it again",
    "offline": "unplug the phone and plug it in again, then adb reconnect",
    "no permissions": "apt-get install android-sdk-platform-tools-common (its udev rules), then "
    "plug the phone in again",
}


def _check_state(serial: str, state: str) -> None:
    if state != "device":
        raise TargetUnavailableError(
            f"the phone {serial} cannot be used: wanted state device, got {state}",
            hint=_STATE_HINTS.get(state, "adb reconnect, then adb devices"),
        )
    if serial.startswith("emulator-"):
        raise TargetUnavailableError(
            f"{serial} is an emulator: an emulated phone's times say nothing of a real one's",
            hint="plug in a phone",
        )


def _read(data: bytes | Path) -> bytes:
    if isinstance(data, bytes):
        return data
    try:
        return data.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {data}: {error.strerror or error}") from error


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it says nothing"
