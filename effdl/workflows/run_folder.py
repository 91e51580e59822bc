"""The folder of one run: made for one run only, never shared or overwritten."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import date
from importlib import metadata
from itertools import count
from pathlib import Path

from effdl.errors import OutputError
from effdl.files import write_atomically

__all__ = ["encode_json", "installed_versions", "run_folder"]

_PACKAGES = ("effdl", "numpy", "torch", "onnx", "onnxruntime", "onnxscript")


@contextmanager
def run_folder(verb: str, out: Path | None, settings: Mapping[str, object]) -> Iterator[Path]:
    """A new folder with ``config.json`` and ``versions.json`` in it.

    It is emptied and removed again if the body fails, so that no half a run
    stays behind.

    Args:
        verb: The job, part of the default name.
        out: The folder to use, absent or empty. None: the first free
            ``runs/<verb>-<date>-<n>`` in the working directory.
        settings: What the run was asked for, ready for JSON.

    Raises:
        OutputError: The folder cannot be written, or another run is in it.
    """
    was_there = out is not None and out.exists()
    try:
        folder = _new_default_folder(verb) if out is None else out
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise FileExistsError
        # Creating this file is the claim: of two runs given one folder, one gets it.
        (folder / "config.json").touch(exist_ok=False)
    except FileExistsError as error:
        raise OutputError(
            f"the run folder {out or 'runs'} is taken: wanted an absent or empty folder",
            hint="choose another folder with --out",
        ) from error
    except OSError as error:
        raise OutputError(
            f"cannot make the run folder {out or 'runs'}: {error.strerror or error}",
            hint="choose a writable folder with --out",
        ) from error
    try:
        config = encode_json({"verb": verb, "settings": dict(settings)})
        write_atomically(folder / "config.json", config)
        write_atomically(folder / "versions.json", encode_json(installed_versions()))
        yield folder
    except BaseException:
        _discard(folder, keep_folder=was_there)
        raise


def installed_versions() -> dict[str, str]:
    """Versions of effdl and of the packages that shape a result, by name."""
    versions = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def encode_json(value: Mapping[str, object]) -> bytes:
    """The mapping as JSON with ``schema_version`` first, and a final newline."""
    return json.dumps({"schema_version": 1, **value}, indent=2, allow_nan=False).encode() + b"\n"


def _new_default_folder(verb: str) -> Path:
    for number in count(1):
        folder = Path("runs") / f"{verb}-{date.today():%Y-%m-%d}-{number}"
        with suppress(FileExistsError):
            folder.parent.mkdir(exist_ok=True)
            folder.mkdir()
            return folder
    raise AssertionError("unreachable")


def _discard(folder: Path, *, keep_folder: bool) -> None:
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if not keep_folder:
            folder.rmdir()
