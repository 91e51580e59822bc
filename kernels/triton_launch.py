"""Launching Triton's kernels: on the tensors' own device, with indices wide enough for them."""

from typing import Any

import torch
import triton.language as tl

from effdl.kernels.backend import is_interpreting

__all__ = ["index_type", "is_amd", "launch", "must_upcast"]

# With room for tiles that reach past the end.
_NARROW_ELEMENTS = 2**30


def launch(kernel: Any, num_programs: int, *arguments: object, **settings: object) -> None:
    """Run as many programs of a kernel as asked for; none, for none.

    Args:
        kernel: What ``triton.jit`` returned.
        num_programs: How many.
        arguments: Of the kernel, the first one a tensor: its device runs them.
        settings: Constants of the kernel, ``num_warps``, ``num_stages``.
    """
    if num_programs == 0:
        return
    first = arguments[0]
    assert isinstance(first, torch.Tensor)
    # Triton launches on the current device, wherever the tensors lie.
    with torch.cuda.device_of(first):
        kernel[(num_programs,)](*arguments, **settings)


def index_type(*tensors: torch.Tensor) -> Any:
    """The integers that reach every element of these: Triton's int32 where it does."""
    reach = (sum(n * abs(s) for n, s in zip(x.shape, x.stride(), strict=True)) for x in tensors)
    return tl.int64 if max(reach) >= _NARROW_ELEMENTS else tl.int32


def must_upcast(dtype: torch.dtype) -> bool:
    """Whether products of this format go through float32: the interpreter's of bfloat16.

    It multiplies their bits as integers.
    """
    return is_interpreting() and dtype == torch.bfloat16


def is_amd() -> bool:
    """Whether PyTorch's GPUs are AMD's."""
    return torch.version.hip is not None
