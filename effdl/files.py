"""Reading small given files and writing results whole or not at all."""

import os
import tempfile
from pathlib import Path

from effdl.errors import ConfigError, CorruptFileError, OutputError

__all__ = ["read_limited", "require_writable", "write_atomically"]


def read_limited(path: Path, max_bytes: int) -> bytes:
    """The bytes of a file, refused beyond a size that no honest file reaches.

    Raises:
        ConfigError: The file cannot be opened.
        CorruptFileError: The file is larger than ``max_bytes``.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > max_bytes:
        raise CorruptFileError(f"{path} is too large: wanted at most {max_bytes} bytes")
    return data


def require_writable(path: Path) -> None:
    """Find out before long work whether a file could be written afterwards.

    Raises:
        OutputError: The path is a folder, or its folder cannot be written.
    """
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder", hint="name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _cannot_write(path, error) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part.

    The folder is made if it is missing.

    Raises:
        OutputError: The folder or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {path}: {error.strerror or error}",
        hint="choose a folder that is writable and has space left",
    )
