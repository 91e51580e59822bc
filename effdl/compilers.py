"""Which kernel compilers are installed, found without importing them."""

import importlib.metadata
from functools import cache

from effdl.errors import BackendUnavailableError

__all__ = [
    "INSTALL_TRITON",
    "INSTALL_TVM",
    "TVM_FFI_VERSION",
    "TVM_VERSION",
    "check_triton",
    "check_tvm",
]

TVM_VERSION = "0.27.0.post1"
# Newer builds of this package crash TVM 0.27 in places.
TVM_FFI_VERSION = "0.1.14.post1"
INSTALL_TVM = f"pip install apache-tvm=={TVM_VERSION} apache-tvm-ffi=={TVM_FFI_VERSION}"

_OLDEST_TRITON = (3, 6)
INSTALL_TRITON = "pip install 'triton>=3.6'"


@cache
def check_tvm() -> None:
    """Return where the installed TVM works.

    Raises:
        BackendUnavailableError: It is not installed, or with a companion that makes
            it crash.
    """
    versions = _version("apache-tvm"), _version("apache-tvm-ffi")
    if None in versions:
        raise BackendUnavailableError("TVM is not installed", hint=INSTALL_TVM)
    if versions != (TVM_VERSION, TVM_FFI_VERSION):
        raise BackendUnavailableError(
            f"TVM wanted apache-tvm {TVM_VERSION} with apache-tvm-ffi {TVM_FFI_VERSION}, "
            f"got {versions[0]} with {versions[1]}",
            hint=INSTALL_TVM,
        )


@cache
def check_triton() -> None:
    """Return where a Triton new enough is installed.

    Raises:
        BackendUnavailableError: It is not.
    """
    version = _version("triton")
    if version is None:
        raise BackendUnavailableError("Triton is not installed", hint=INSTALL_TRITON)
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_TRITON:
        raise BackendUnavailableError(
            f"Triton wanted 3.6 or newer, got {version}", hint=INSTALL_TRITON
        )


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
