"""The temporal shift on GPUs: one pass, or none over what does not move.

A frame is E numbers of which number e belongs to channel ``e % C``; planes (NCHW) are one
pixel of E channels. Numbers are moved as integers of their size, so that the bits of a
NaN survive. Frames are addressed with 64 bits, the place within a frame with 32.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from effdl.errors import ConfigError
from effdl.kernels.temporal_shift.reference import Sections
from effdl.kernels.triton_ahead import AheadOfTimeCase
from effdl.kernels.triton_launch import launch

__all__ = ["ahead_of_time_cases", "shift", "shift_in_place", "step", "step_in_place"]

_CARRIERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Of one program: four loads of 16 bytes for each thread.
_BLOCK_BYTES = 8192
_NUM_WARPS = 4
_MAX_FRAME_ELEMENTS = 2**31 - _BLOCK_BYTES


@triton.jit
def _channel(place, channels, PLANES: tl.constexpr):  # noqa: N803
    return place if PLANES else place % channels


@triton.jit
def _moved_place(index, channels, num_moved, PLANES: tl.constexpr):  # noqa: N803
    """Place in the frame, and channel, of the index-th number that moves."""
    if PLANES:
        return index, index
    channel = index % num_moved
    return index // num_moved * channels + channel, channel


@triton.jit
def _shift_kernel(
    x_ptr,
    y_ptr,
    num_blocks,
    num_segments,
    frame_size,
    channels,
    first_end,
    second_end,
    offset,
    fill_value,
    PLANES: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    program = tl.program_id(0)
    frame = program // num_blocks
    t = frame % num_segments
    place = (program % num_blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = place < frame_size
    channel = _channel(place, channels, PLANES)
    step = tl.where(channel < first_end, offset, tl.where(channel < second_end, -offset, 0))
    has_source = (t + step >= 0) & (t + step < num_segments)
    base = frame.to(tl.int64) * frame_size
    value = tl.load(
        x_ptr + base + step.to(tl.int64) * frame_size + place, mask=inside & has_source, other=0
    )
    value = tl.where(has_source, value, fill_value.to(value.dtype))
    tl.store(y_ptr + base + place, value, mask=inside)


@triton.jit
def _shift_in_place_kernel(
    x_ptr,
    num_blocks,
    num_segments,
    frame_size,
    channels,
    first_end,
    num_moved,
    num_moved_in_frame,
    offset,
    fill_value,
    PLANES: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    program = tl.program_id(0)
    index = (program % num_blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_moved_in_frame
    place, channel = _moved_place(index, channels, num_moved, PLANES)
    step = tl.where(channel < first_end, offset, -offset)
    # Each number walks through its clip towards the end that it leaves no one behind.
    t = tl.where(step > 0, 0, num_segments - 1)
    here = x_ptr + ((program // num_blocks).to(tl.int64) * num_segments + t) * frame_size + place
    stride = step.to(tl.int64) * frame_size
    for _ in range(num_segments - 1):
        there = here + stride
        tl.store(here, tl.load(there, mask=inside, other=0), mask=inside)
        here = there
    end = tl.zeros((BLOCK,), x_ptr.dtype.element_ty) + fill_value.to(x_ptr.dtype.element_ty)
    tl.store(here, end, mask=inside)


@triton.jit
def _step_kernel(
    x_ptr,
    state_ptr,
    y_ptr,
    leaving_ptr,
    num_blocks,
    num_segments,
    frame_size,
    channels,
    first_end,
    state_size,
    offset,
    PLANES: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    program = tl.program_id(0)
    frame = program // num_blocks
    t = frame % num_segments
    place = (program % num_blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = place < frame_size
    channel = _channel(place, channels, PLANES)
    moves = channel < first_end
    state_place = place if PLANES else place // channels * first_end + channel
    state_place += (frame // num_segments).to(tl.int64) * state_size
    base = frame.to(tl.int64) * frame_size
    step = tl.where(moves, offset, 0)
    has_source = (t + step >= 0) & (t + step < num_segments)
    value = tl.load(
        x_ptr + base + step.to(tl.int64) * frame_size + place, mask=inside & has_source, other=0
    )
    entering = tl.load(state_ptr + state_place, mask=inside & (has_source == 0), other=0)
    tl.store(y_ptr + base + place, tl.where(has_source, value, entering), mask=inside)
    goal = tl.where(moves, t - offset, 0)
    leaves = inside & ((goal < 0) | (goal >= num_segments))
    leaving = tl.load(x_ptr + base + place, mask=leaves, other=0)
    tl.store(leaving_ptr + state_place, leaving, mask=leaves)


@triton.jit
def _step_in_place_kernel(
    x_ptr,
    state_ptr,
    num_blocks,
    frame_size,
    channels,
    first_end,
    state_size,
    PLANES: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    program = tl.program_id(0)
    frame = (program // num_blocks).to(tl.int64)
    index = (program % num_blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = index < state_size
    place, _ = _moved_place(index, channels, first_end, PLANES)
    x_ptrs, state_ptrs = x_ptr + frame * frame_size + place, state_ptr + frame * state_size + index
    leaving = tl.load(x_ptrs, mask=inside, other=0)
    entering = tl.load(state_ptrs, mask=inside, other=0)
    tl.store(x_ptrs, entering, mask=inside)
    tl.store(state_ptrs, leaving, mask=inside)


def _layout(x: Tensor, sections: Sections) -> tuple[int, int, int, int, bool]:
    """Numbers of a frame and of a pixel, both sections' ends in a pixel, whether planes."""
    _, channels, height, width = x.shape
    area = height * width
    if channels * area > _MAX_FRAME_ELEMENTS:
        raise ConfigError(
            f"x: wanted frames of at most {_MAX_FRAME_ELEMENTS} numbers, got {channels * area}"
        )
    planes = x.is_contiguous()
    scale = area if planes else 1
    first, second, _ = sections
    return channels * area, channels * scale, first * scale, (first + second) * scale, planes


def _launch(
    kernel: Any, tensors: Sequence[Tensor], *numbers: int, num_programs: int, planes: bool
) -> None:
    element_bytes = tensors[0].element_size()
    launch(
        kernel,
        num_programs,
        *(t.view(_CARRIERS[element_bytes]) for t in tensors),
        *numbers,
        PLANES=planes,
        BLOCK=_BLOCK_BYTES // element_bytes,
        num_warps=_NUM_WARPS,
    )


def _num_blocks(num_elements: int, x: Tensor) -> int:
    return triton.cdiv(num_elements, _BLOCK_BYTES // x.element_size())


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

    Raises:
        ConfigError: A frame has more than 2^31 - 8192 numbers.
    """
    size, channels, first_end, second_end, planes = _layout(x, sections)
    num_blocks = _num_blocks(size, x)
    _launch(
        _shift_kernel,
        [x, y],
        *(num_blocks, num_segments, size, channels, first_end, second_end),
        *(sections.offset, fill_value),
        num_programs=x.shape[0] * num_blocks,
        planes=planes,
    )


def shift_in_place(
    x: Tensor, *, num_segments: int, sections: Sections, fill_value: int = 0
) -> None:
    """Move the sections of x where it lies; all else is neither read nor written.

    Args:
        x: [N*T, C, H, W], contiguous or channels_last, not empty.
        num_segments: T.
        sections: Which channels come from where; the first not empty.
        fill_value: What stands at the ends, for integers.

    Raises:
        ConfigError: A frame has more than 2^31 - 8192 numbers.
    """
    size, channels, first_end, num_moved, planes = _layout(x, sections)
    num_moved_in_frame = size // channels * num_moved
    num_blocks = _num_blocks(num_moved_in_frame, x)
    _launch(
        _shift_in_place_kernel,
        [x],
        *(num_blocks, num_segments, size, channels, first_end, num_moved, num_moved_in_frame),
        *(sections.offset, fill_value),
        num_programs=x.shape[0] // num_segments * num_blocks,
        planes=planes,
    )


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

    Raises:
        ConfigError: A frame has more than 2^31 - 8192 numbers.
    """
    size, channels, first_end, _, planes = _layout(x, sections)
    num_blocks = _num_blocks(size, x)
    _launch(
        _step_kernel,
        [x, state, y, leaving],
        *(num_blocks, num_segments, size, channels, first_end, size // channels * first_end),
        sections.offset,
        num_programs=x.shape[0] * num_blocks,
        planes=planes,
    )


def step_in_place(x: Tensor, state: Tensor, *, sections: Sections) -> None:
    """Swap the first section of single frames with the state.

    Args:
        x: [N, C, H, W], contiguous or channels_last, not empty.
        state: [N, first, H, W], in the layout of x.
        sections: With an empty second section.

    Raises:
        ConfigError: A frame has more than 2^31 - 8192 numbers.
    """
    size, channels, first_end, _, planes = _layout(x, sections)
    state_size = size // channels * first_end
    num_blocks = _num_blocks(state_size, x)
    _launch(
        _step_in_place_kernel,
        [x, state],
        *(num_blocks, size, channels, first_end, state_size),
        num_programs=x.shape[0] * num_blocks,
        planes=planes,
    )


def ahead_of_time_cases() -> list[AheadOfTimeCase]:
    """Every kernel in every layout and size of number."""
    kernels = {
        "forward": _shift_kernel,
        "in_place": _shift_in_place_kernel,
        "step": _step_kernel,
        "step_in_place": _step_in_place_kernel,
    }
    small = {"num_blocks", "num_segments", "offset", "fill_value"}
    cases: list[AheadOfTimeCase] = []
    for name, function in kernels.items():
        names = [n for n in function.arg_names if not n.isupper()]
        sizes = tuple(n for n in names if not n.endswith("_ptr") and n not in small)
        cases += [
            AheadOfTimeCase(
                name=f"temporal_shift.{name}.{layout}.int{8 * element_bytes}",
                function=function,
                signature={
                    n: f"*i{8 * element_bytes}" if n.endswith("_ptr") else "i32" for n in names
                },
                constexprs={"PLANES": layout == "planes", "BLOCK": _BLOCK_BYTES // element_bytes},
                num_warps=_NUM_WARPS,
                divisible=sizes,
            )
            for layout in ("planes", "channels_last")
            for element_bytes in (1, 2, 4)
        ]
    return cases
