"""What a profile and a search need to know of a kernel at one size.

Each kernel's ``spec.py`` has ``default_specs() -> tuple[KernelSpec, ...]``: the sizes
that the networks here use.
"""

from collections.abc import Callable
from dataclasses import dataclass

from effdl.kernels.backend import Backend
from effdl.opspec import OpSpec

__all__ = ["KernelSpec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSpec:
    """One kernel at one size, and how to run it.

    Attributes:
        op: The operator: its key, costs, and plain ONNX form, which any runtime can run.
            Two specs with one key compute the same.
        kernel: Name of the kernel's folder, such as ``"temporal_shift"``.
        case: The size as a table names it, such as ``"256@56"``.
        dtype: Number format of the activations, as `torch.dtype` and NumPy spell it:
            ``"float32"``, ``"uint8"``.
        backends: The implementations that it has; which of them run on a machine is
            found out there. The reference, which is for proof and not for speed, need
            not be among them.
        make_run: From a batch size (samples, as in ``op.build``) and a backend to a
            callable that runs the kernel once on made data, to be timed: all that is
            done once (data, packed weights, compilation, output buffers) is done before
            it returns. Raises BackendUnavailableError where the backend is not installed
            or the device it needs is not there.
    """

    op: OpSpec
    kernel: str
    case: str
    dtype: str
    backends: tuple[Backend, ...]
    make_run: Callable[[int, Backend], Callable[[], object]]
