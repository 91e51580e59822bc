"""The temporal shift on CPUs, in the memory the frames lie in.

What lies in memory as channels_last is pixels of channels. A frame of planes (NCHW) is one
pixel of C * H * W elements, of which the first fold * H * W are the first section. Planes
share one compiled function for all sizes. For channels_last, where runs are short, the
numbers of channels are compiled in. Numbers are moved as integers, so that all formats
share a function, and the bits of a NaN survive.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from effdl.kernels.temporal_shift.reference import Sections
from effdl.kernels.temporal_shift.tvm_functions import BLOCK_BYTES, build_function, specialize
from effdl.kernels.tvm_runtime import CompiledModule, compile_module

__all__ = ["shift", "shift_in_place", "step", "step_in_place"]

_CARRIERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@cache
def _for_planes(name: str, element_bytes: int) -> CompiledModule:
    return compile_module({name: build_function(name, element_bytes)}, is_lowered=True)


@cache
def _for_pixels(name: str, element_bytes: int, **sizes: int) -> CompiledModule:
    function = specialize(build_function(name, element_bytes), **sizes)
    return compile_module({name: function}, is_lowered=True)


def _run(
    name: str, tensors: Sequence[Tensor], sizes: Mapping[str, int], numbers: Sequence[int]
) -> None:
    """Call a function on tensors of one layout: contiguous, or else channels_last.

    Args:
        name: Of the function.
        tensors: Its tensors, [frames, channels, H, W].
        sizes: Its parameters that count elements of a pixel, and what follows from them.
        numbers: Its other parameters.
    """
    element_bytes = tensors[0].element_size()
    carrier = _CARRIERS[element_bytes]
    if tensors[0].is_contiguous():
        module = _for_planes(name, element_bytes)
        views = [t.view(carrier).view(t.shape[0], 1, -1) for t in tensors]
        module.call(name, *views, *sizes.values(), *numbers)
    else:
        module = _for_pixels(name, element_bytes, **sizes)
        views = [
            t.view(carrier).permute(0, 2, 3, 1).view(t.shape[0], -1, t.shape[1]) for t in tensors
        ]
        module.call(name, *views, *numbers)


def _sizes(x: Tensor, sections: Sections) -> tuple[int, int, int, int]:
    """Pixels of a frame, and elements of a pixel: all, in the first and in the second section."""
    _, channels, height, width = x.shape
    first, second, _ = sections
    area = height * width
    if x.is_contiguous():
        return 1, channels * area, first * area, second * area
    return area, channels, first, second


def shift(
    x: Tensor, y: Tensor, *, num_segments: int, sections: Sections, fill_value: int = 0
) -> None:
    """Write the shifted x into y.

    Args:
        x: [N*T, C, H, W], contiguous or channels_last, not empty.
        y: Of the same shape and layout; not the same memory.
        num_segments: T.
        sections: Which channels come from where.
        fill_value: What stands at the ends, for integers.
    """
    _, channels, first, second = _sizes(x, sections)
    sizes = {"channels": channels, "first": first, "second": second}
    _run("shift", (x, y), sizes, (num_segments, sections.offset, fill_value))


def shift_in_place(
    x: Tensor, *, num_segments: int, sections: Sections, fill_value: int = 0
) -> None:
    """Move the sections of x where it lies; all else is neither read nor written.

    Args:
        x: [N*T, C, H, W], contiguous or channels_last, not empty.
        num_segments: T.
        sections: Which channels come from where; the first not empty.
        fill_value: What stands at the ends, for integers.
    """
    num_pixels, channels, first, second = _sizes(x, sections)
    block, longest = BLOCK_BYTES // x.element_size(), max(first, second)
    num_blocks = -(-longest // block)
    pixels = max(block // longest, 1)
    num_groups = -(-num_pixels // pixels)
    sizes = {"channels": channels, "first": first, "second": second, "num_blocks": num_blocks}
    numbers = (pixels, num_groups, num_segments, sections.offset, fill_value)
    _run("shift_in_place", (x,), sizes, numbers)


def step(
    x: Tensor,
    state: Tensor,
    y: Tensor,
    leaving: Tensor,
    *,
    num_segments: int,
    sections: Sections,
) -> None:
    """Write the frames shifted through a state into y, and what left them into ``leaving``.

    Args:
        x: [N*T, C, H, W], contiguous or channels_last, not empty.
        state: [N, first, H, W], in the layout of x.
        y: As x.
        leaving: As the state.
        num_segments: T.
        sections: With an empty second section.
    """
    _, channels, first, _ = _sizes(x, sections)
    sizes = {"channels": channels, "first": first}
    _run("step", (x, state, y, leaving), sizes, (num_segments, sections.offset))


def step_in_place(x: Tensor, state: Tensor, *, sections: Sections) -> None:
    """Swap the first section of single frames with the state.

    Args:
        x: [N, C, H, W], contiguous or channels_last, not empty.
        state: [N, first, H, W], in the layout of x.
        sections: With an empty second section.
    """
    _, channels, first, _ = _sizes(x, sections)
    _run("step_in_place", (x, state), {"channels": channels, "first": first}, ())
