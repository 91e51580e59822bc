"""What works here, and the command for what does not. Imports nothing heavy."""

import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from effdl.errors import BackendUnavailableError, EffdlError, OutputError
from effdl.targets.host import describe_host, read_noise
from effdl.targets.measure.adb_transport import ADB_INSTALL_HINT
from effdl.targets.measure.tvm_target import find_linker, find_tvm
from effdl.targets.store import MeasurementStore, default_store_path
from effdl.targets.target import find_cuda_device

__all__ = ["Check", "examine"]

_CORE = ("numpy", "torch", "onnx", "onnxruntime", "onnxscript", "safetensors")

# Extra, package, and what is missing without it.
_EXTRAS = (
    ("openvino", "openvino", "--runtime openvino"),
    ("dask", "distributed", "work is not spread over a cluster"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked for.

    Attributes:
        name: What.
        ok: Whether it is here and fit for use.
        needed: Whether effdl's main job needs it.
        found: What was found, in a few words.
        command: What to run to get it, or None where nothing is to be done.
    """

    name: str
    ok: bool
    needed: bool
    found: str
    command: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The check as plain values."""
        return asdict(self)


def examine(*, store_path: Path | None = None) -> tuple[Check, ...]:
    """Look at Python, packages, devices, noise and the store.

    Args:
        store_path: The store of measurements; None: the user's own.
    """
    return (
        _python(),
        *(_core_package(name) for name in _CORE),
        _onnxruntime_providers(),
        *(_extra(name, package, what) for name, package, what in _EXTRAS),
        _tvm(),
        _linker("aarch64-linux-gnu"),
        _program("adb", "phones are not measured", ADB_INSTALL_HINT),
        _program("qemu-aarch64", "board libraries are not tried here", "apt-get install qemu-user"),
        _cuda(),
        _processor(),
        _noise(),
        _store(store_path or default_store_path()),
    )


def _python() -> Check:
    ok = sys.version_info >= (3, 11)
    return Check(
        name="python",
        ok=ok,
        needed=True,
        found=f"Python {platform.python_version()}",
        command=None if ok else "install Python 3.11 or newer, then: make PYTHON=python3.11",
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _core_package(name: str) -> Check:
    version = _version(name)
    return Check(
        name=name,
        ok=version is not None,
        needed=True,
        found=version or "not installed",
        command=None if version else f"{_pip()} install {name}",
    )


def _extra(name: str, package: str, what: str) -> Check:
    version = _version(package)
    return Check(
        name=package,
        ok=version is not None,
        needed=False,
        found=version or f"not installed: {what}",
        command=None if version else f"{_pip()} install 'effdl[{name}]'",
    )


def _tvm() -> Check:
    try:
        found, command = str(find_tvm()), None
    except BackendUnavailableError as error:
        found, command = f"{error.message}: boards are not measured", error.hint
    return Check(name="tvm", ok=command is None, needed=False, found=found, command=command)


def _linker(triple: str) -> Check:
    name = f"linker for {triple}"
    try:
        found = " ".join(find_linker(triple))
    except BackendUnavailableError as error:
        return Check(name=name, ok=False, needed=False, found=error.message, command=error.hint)
    return Check(name=name, ok=True, needed=False, found=found)


def _program(name: str, what: str, command: str) -> Check:
    path = shutil.which(name)
    return Check(
        name=name,
        ok=path is not None,
        needed=False,
        found=path or f"not installed: {what}",
        command=None if path else command,
    )


def _onnxruntime_providers() -> Check:
    """Providers are shared libraries beside the runtime; the processor's is built in."""
    try:
        files = importlib.metadata.files("onnxruntime") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    names = {file.stem.removeprefix("lib") for file in files if "providers_" in file.name}
    providers = sorted(n.removeprefix("onnxruntime_providers_") for n in names) if names else []
    shown = [name for name in providers if name != "shared"]
    return Check(
        name="onnxruntime providers",
        ok=bool(files),
        needed=True,
        found=", ".join(["cpu", *shown]) if files else "onnxruntime is not installed",
        command=None if files else f"{_pip()} install onnxruntime",
    )


def _cuda() -> Check:
    device = find_cuda_device()
    return Check(
        name="cuda device",
        ok=device is not None,
        needed=False,
        found=device or "none: --target gpu means the reference GPU",
        command=None if device else "install NVIDIA's driver, if there is such a GPU",
    )


def _processor() -> Check:
    host = describe_host()
    return Check(
        name="processor",
        ok=True,
        needed=True,
        found=f"{host.name}, {host.num_cores} cores, fingerprint {host.fingerprint}",
    )


def _noise() -> Check:
    noise = read_noise()
    ok = noise.grade != "C"
    pressure = noise.cpu_pressure_percent
    said = "pressure not known" if pressure is None else f"{pressure:.0f} % of the time waiting"
    return Check(
        name="noise",
        ok=ok,
        needed=False,
        found=f"grade {noise.grade}: {said}, load {noise.load_per_core:.2f} a core",
        command=None if ok else "close what else is running before effdl profile",
    )


def _store(path: Path) -> Check:
    problem = _store_problem(path)
    if problem is None:
        return Check(name="store of measurements", ok=True, needed=True, found=str(path))
    return Check(
        name="store of measurements",
        ok=False,
        needed=True,
        found=problem.message,
        command=problem.hint,
    )


def _store_problem(path: Path) -> EffdlError | None:
    """Why the store cannot be used; it is not made where it is not there yet."""
    if path.exists():
        try:
            with MeasurementStore(path):
                return None
        except EffdlError as error:
            return error
    folder = next(parent for parent in path.parents if parent.exists())
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        return None
    return OutputError(
        f"{folder} is no folder that can be written",
        hint="export EFFDL_HOME=FOLDER, one that can be written",
    )


def _pip() -> str:
    return f"{sys.executable} -m pip"
