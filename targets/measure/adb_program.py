"""The benchmark program that runs on the phone: what it is built for, and bringing it there."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from effdl.errors import (
    BackendUnavailableError,
    ConfigError,
    CorruptFileError,
    EffdlError,
    TargetUnavailableError,
)
from effdl.files import read_limited
from effdl.targets.host import RuntimeBuild
from effdl.targets.measure.adb_phone import Phone
from effdl.targets.measure.adb_transport import PHONE_FOLDER, Adb, Answer

__all__ = ["GUIDE", "PhoneProgram", "explain_failure", "read_program"]

GUIDE = "docs/guides/phone.md says how to get it"

_MAX_BYTES = 1 << 30
_ABIS = {3: "x86", 40: "armeabi-v7a", 62: "x86_64", 183: "arm64-v8a"}
_ELF_HEAD_BYTES = 20
# The version of the shared library's symbols, and what the library says of its build.
_VERSION = re.compile(rb"VERS_(\d{1,3}\.\d{1,3}\.\d{1,3})\0")
_COMMIT = re.compile(rb"ORT Build Info: [ -~]{0,80}?git-commit-id=([0-9a-f]{7,40})")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_CANNOT_EXECUTE, _NOT_FOUND = 126, 127


@dataclass(frozen=True, slots=True, kw_only=True)
class PhoneProgram:
    """A program and the shared libraries it needs.

    Attributes:
        build: Its name, version where it says one, and the digest of all its files.
        abi: Instruction set it is built for, as Android calls it.
        path: The program.
        libraries: Shared libraries beside it.
    """

    build: RuntimeBuild
    abi: str
    path: Path
    libraries: tuple[Path, ...]

    @property
    def folder(self) -> str:
        """Where it lies on the phone; another build lies elsewhere."""
        return f"{PHONE_FOLDER}/bin/{self.build.build}"

    @property
    def command(self) -> tuple[str, ...]:
        """What starts it on the phone; its arguments follow."""
        found = ("env", f"LD_LIBRARY_PATH={self.folder}") if self.libraries else ()
        return (*found, f"{self.folder}/{self.path.name}")

    def push(self, adb: Adb, phone: Phone) -> None:
        """Bring it to the phone, unless it is there already.

        Raises:
            ConfigError: It is built for another instruction set.
            TargetUnavailableError: The phone is lost, or too slow.
            OutputError: The phone has no space left.
        """
        if self.abi not in phone.abis:
            raise ConfigError(
                f"{self.path} does not run on {phone.name}: wanted one of "
                f"{', '.join(phone.abis) or 'none'}, got {self.abi}",
                hint=f"build it with --android_abi {phone.abis[0]}" if phone.abis else GUIDE,
            )
        for path in (self.path, *self.libraries):
            adb.push(path, f"{self.folder}/{path.name}", executable=True)


def read_program(name: str, path: Path, libraries: Sequence[Path] = ()) -> PhoneProgram:
    """Look at a program on this machine.

    Args:
        name: Of the runtime, such as ``onnxruntime``.
        path: The program.
        libraries: Shared libraries it needs besides the phone's own.

    Raises:
        BackendUnavailableError: There is no such file.
        ConfigError: A file cannot be read, or its name has characters that are not safe.
        CorruptFileError: A file is no program of a known kind, or they are of several kinds.
    """
    abis: list[str] = []
    versions: list[str] = []
    digests: list[str] = []
    for file in (path, *libraries):
        if not file.is_file():
            raise BackendUnavailableError(
                f"the benchmark program is not here: no such file: {file}", hint=GUIDE
            )
        if not _FILE_NAME.fullmatch(file.name):
            raise ConfigError(f"wanted a file name of letters, digits and ._-, got {file.name!r}")
        data = read_limited(file, _MAX_BYTES)
        abis.append(_abi(file, data))
        versions.append(_version(data))
        digests.append(f"{hashlib.sha256(data).hexdigest()} {file.name}")
    if len(set(abis)) > 1:
        raise CorruptFileError(
            f"wanted a program and libraries of one instruction set, got {', '.join(abis)}"
        )
    return PhoneProgram(
        build=RuntimeBuild(
            name=name,
            version=next((v for v in versions if v), "unknown"),
            build=hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16],
        ),
        abi=abis[0],
        path=path,
        libraries=tuple(libraries),
    )


def explain_failure(program: PhoneProgram, answer: Answer, what: str) -> EffdlError:
    """The error of a program that did not end well on the phone.

    Args:
        program: The program.
        answer: What it printed, and its exit status.
        what: What it was to run.
    """
    name, said = program.path.name, _telling_line(answer.text)
    if "CANNOT LINK EXECUTABLE" in answer.text:
        return BackendUnavailableError(
            f"{name} lacks a library on the phone: {said}",
            hint="give that library with it; docs/guides/phone.md says how",
        )
    if answer.exit_code == _NOT_FOUND:
        return BackendUnavailableError(
            f"{name} is not on the phone any more, or taskset is not: {said}",
            hint="run it again: it is brought there again",
        )
    if answer.exit_code == _CANNOT_EXECUTE:
        return BackendUnavailableError(f"the phone cannot execute {name}: {said}", hint=GUIDE)
    if "taskset:" in answer.text:
        return TargetUnavailableError(
            f"cannot pin {name} to cores of the phone: {said}",
            hint="switch off battery saving, which may switch off cores, or choose other cores",
        )
    return CorruptFileError(
        f"{name} cannot run {what} on the phone (exit status {answer.exit_code}): {said}",
        hint="effdl verify MODEL.onnx says what is wrong with a file",
    )


def _abi(path: Path, data: bytes) -> str:
    head = data[:_ELF_HEAD_BYTES]
    machine = int.from_bytes(head[18:20], "little")
    if len(head) < _ELF_HEAD_BYTES or not head.startswith(b"\x7fELF") or machine not in _ABIS:
        raise CorruptFileError(
            f"{path} is no program of Android: wanted an ELF file for one of "
            f"{', '.join(_ABIS.values())}, got one that begins with {head[:4]!r}",
            hint=GUIDE,
        )
    return _ABIS[machine]


def _version(data: bytes) -> str:
    version, commit = _VERSION.search(data), _COMMIT.search(data)
    if version is not None and version[1] != b"1.0.0":
        return version[1].decode()
    return f"commit {commit[1].decode()}" if commit is not None else ""


def _telling_line(text: str) -> str:
    """The line that looks most like the reason, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marks = ("error", "exception", "fail", "cannot", "denied", "not found")
    telling = [line for line in lines if any(mark in line.lower() for mark in marks)]
    return (telling or lines or ["it says nothing"])[-1][:300]
