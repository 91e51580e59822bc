"""Which implementation of a kernel runs.

Every kernel has the plain reference; most have Triton for GPUs and TVM for CPUs.
Without a wish the fastest one that is here is taken; a wish is fulfilled or refused.
"""

import enum
import os
from collections.abc import Sequence

import torch

from effdl.compilers import check_triton, check_tvm
from effdl.errors import BackendUnavailableError, ConfigError, UnknownNameError

__all__ = ["Backend", "choose_backend", "is_interpreting"]


class Backend(enum.StrEnum):
    """An implementation of a kernel."""

    REFERENCE = "reference"
    TRITON = "triton"
    TVM = "tvm"


def is_interpreting() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def choose_backend(
    requested: Backend | str | None,
    *,
    device: torch.device,
    offered: Sequence[Backend] = tuple(Backend),
) -> Backend:
    """The implementation that runs.

    Args:
        requested: A wish, or None: Triton on a GPU and TVM on a CPU where they are
            installed, else the reference.
        device: Where the tensors lie.
        offered: What the kernel has for this case; the reference always is.

    Raises:
        UnknownNameError: There is no such backend.
        ConfigError: The kernel has no such implementation, or not for the device.
        BackendUnavailableError: Its compiler is not installed.
    """
    if requested is None:
        wish = Backend.TRITON if device.type == "cuda" else Backend.TVM
        return wish if wish in offered and _is_installed(wish) else Backend.REFERENCE
    try:
        backend = Backend(requested)
    except ValueError:
        raise UnknownNameError("backend", str(requested), list(Backend)) from None
    if backend is Backend.REFERENCE:
        return backend
    if backend not in offered:
        raise ConfigError(
            f"no {backend} kernel for this case: wanted one of "
            f"{', '.join([Backend.REFERENCE, *(b for b in offered if b != Backend.REFERENCE)])}",
            hint=f"backend={Backend.REFERENCE.value!r} runs everywhere",
        )
    _check(backend)
    if backend is Backend.TVM and device.type != "cpu":
        raise ConfigError(
            f"TVM's kernels run on the CPU, got tensors on {device}",
            hint="move the tensors to the CPU, or leave backend=None",
        )
    if backend is Backend.TRITON and device.type != "cuda" and not is_interpreting():
        raise BackendUnavailableError(
            f"Triton's kernels run on a GPU, got tensors on {device}",
            hint="move the tensors to a GPU; or set TRITON_INTERPRET=1 before Python starts: "
            "slow, for tests",
        )
    return backend


def _check(backend: Backend) -> None:
    if backend is Backend.TRITON:
        check_triton()
    elif backend is Backend.TVM:
        check_tvm()


def _is_installed(backend: Backend) -> bool:
    try:
        _check(backend)
    except BackendUnavailableError:
        return False
    return True


# torch.compile cannot trace a look into the installed packages: it takes the answer as it
# is. (`torch.compiler.assume_constant_result` does just this, after seconds of imports.)
for _function in (_check, _is_installed):
    vars(_function)["_dynamo_marked_constant"] = True
