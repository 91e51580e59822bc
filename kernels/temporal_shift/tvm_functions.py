"""The temporal shift in TensorIR: runs of numbers moved between frames of pixels.

A frame is pixels of channels, [P, C], of numbers moved as integers of their size. Every
size is symbolic, and each can be compiled in. The functions are the same for every
processor: LLVM cuts their vectors into the registers that it finds.
"""

from functools import cache
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

__all__ = ["BLOCK_BYTES", "FUNCTION_NAMES", "build_function", "specialize"]

_LONG_BYTES = 64
_SHORT_BYTES = 16
# With its neighbour's it stays in the first cache.
BLOCK_BYTES = 16384
"""Of one section in one frame that are moved at a time."""


@T.inline
def _move(y, y_frame, x, x_frame, p, start, length, LONG, SHORT):  # noqa: N803
    """A run of elements from one frame to another; its last vector overlaps the one before."""
    if length >= LONG:
        for i in T.serial(T.truncdiv(length, LONG)):
            y[y_frame, p, T.ramp(start + i * LONG, 1, LONG)] = x[
                x_frame, p, T.ramp(start + i * LONG, 1, LONG)
            ]
        if T.truncmod(length, LONG) > 0:
            y[y_frame, p, T.ramp(start + length - LONG, 1, LONG)] = x[
                x_frame, p, T.ramp(start + length - LONG, 1, LONG)
            ]
    elif length >= SHORT:
        for i in T.serial(T.truncdiv(length, SHORT)):
            y[y_frame, p, T.ramp(start + i * SHORT, 1, SHORT)] = x[
                x_frame, p, T.ramp(start + i * SHORT, 1, SHORT)
            ]
        if T.truncmod(length, SHORT) > 0:
            y[y_frame, p, T.ramp(start + length - SHORT, 1, SHORT)] = x[
                x_frame, p, T.ramp(start + length - SHORT, 1, SHORT)
            ]
    else:
        for i in T.serial(length):
            y[y_frame, p, start + i] = x[x_frame, p, start + i]


@T.inline
def _fill(y, frame, p, start, length, value):
    for i in T.serial(length):
        y[frame, p, start + i] = value


@T.inline
def _walk(x, end, num_steps, offset, p_first, num_pixels, start, length, value, LONG, SHORT):  # noqa: N803
    """One section's block through a clip, towards ``end``: read before it is overwritten."""
    for i in T.serial(num_steps):
        frame = T.Bind(end - offset * (num_steps - i))
        for p in T.serial(num_pixels):
            _move(x, frame, x, frame + offset, p_first + p, start, length, LONG, SHORT)
    for p in T.serial(num_pixels):
        _fill(x, end, p_first + p, start, length, value)


def _shift(element_bytes: int) -> Any:
    dtype = f"int{8 * element_bytes}"
    long, short = _LONG_BYTES // element_bytes, _SHORT_BYTES // element_bytes

    # Each frame is read once, from its start to its end, and its sections are written to
    # where they belong: one stream for the processor to prefetch instead of three.
    @T.prim_func(s_tir=True)
    def shift(
        x_handle: T.handle,
        y_handle: T.handle,
        channels: T.int64,
        first: T.int64,
        second: T.int64,
        num_segments: T.int64,
        offset: T.int64,
        fill_value: T.int64,
    ):
        num_frames, num_pixels = T.int64(), T.int64()
        x = T.match_buffer(x_handle, (num_frames, num_pixels, channels), dtype, align=element_bytes)
        y = T.match_buffer(y_handle, (num_frames, num_pixels, channels), dtype, align=element_bytes)
        still = T.Bind(channels - first - second)
        value = T.Bind(T.Cast(dtype, fill_value))
        # A section that leaves its clip makes room in the frame at the other end.
        wrap = T.Bind(offset * num_segments)
        for frame in T.parallel(num_frames):
            t = T.Bind(T.truncmod(frame, num_segments))
            for p in T.serial(num_pixels):
                if T.And(t - offset >= 0, t - offset < num_segments):
                    _move(y, frame - offset, x, frame, p, 0, first, long, short)
                else:
                    _fill(y, frame - offset + wrap, p, 0, first, value)
                if T.And(t + offset >= 0, t + offset < num_segments):
                    _move(y, frame + offset, x, frame, p, first, second, long, short)
                else:
                    _fill(y, frame + offset - wrap, p, first, second, value)
                _move(y, frame, x, frame, p, first + second, still, long, short)

    return shift


def _shift_in_place(element_bytes: int) -> Any:
    dtype = f"int{8 * element_bytes}"
    long, short = _LONG_BYTES // element_bytes, _SHORT_BYTES // element_bytes
    block = BLOCK_BYTES // element_bytes

    @T.prim_func(s_tir=True)
    def shift_in_place(
        x_handle: T.handle,
        channels: T.int64,
        first: T.int64,
        second: T.int64,
        num_blocks: T.int64,
        pixels: T.int64,
        num_groups: T.int64,
        num_segments: T.int64,
        offset: T.int64,
        fill_value: T.int64,
    ):
        num_frames, num_pixels = T.int64(), T.int64()
        x = T.match_buffer(x_handle, (num_frames, num_pixels, channels), dtype, align=element_bytes)
        steps = T.Bind(num_segments - 1)
        value = T.Bind(T.Cast(dtype, fill_value))
        for job in T.parallel(T.truncdiv(num_frames, num_segments) * num_groups * num_blocks):
            group = T.Bind(T.truncdiv(job, num_blocks))
            clip = T.Bind(T.truncdiv(group, num_groups) * num_segments)
            p = T.Bind(T.truncmod(group, num_groups) * pixels)
            num = T.Bind(T.min(pixels, num_pixels - p))
            c = T.Bind(T.truncmod(job, num_blocks) * block)
            num_first = T.Bind(T.max(T.min(first - c, block), 0))
            num_second = T.Bind(T.max(T.min(second - c, block), 0))
            last = T.Bind(clip + T.Select(offset > 0, steps, T.int64(0)))
            opposite = T.Bind(clip + T.Select(offset > 0, T.int64(0), steps))
            _walk(x, last, steps, offset, p, num, c, num_first, value, long, short)
            _walk(x, opposite, steps, -offset, p, num, first + c, num_second, value, long, short)

    return shift_in_place


def _step(element_bytes: int) -> Any:
    dtype = f"int{8 * element_bytes}"
    long, short = _LONG_BYTES // element_bytes, _SHORT_BYTES // element_bytes

    @T.prim_func(s_tir=True)
    def step(
        x_handle: T.handle,
        state_handle: T.handle,
        y_handle: T.handle,
        leaving_handle: T.handle,
        channels: T.int64,
        first: T.int64,
        num_segments: T.int64,
        offset: T.int64,
    ):
        num_frames, num_pixels, num_clips = T.int64(), T.int64(), T.int64()
        x = T.match_buffer(x_handle, (num_frames, num_pixels, channels), dtype, align=element_bytes)
        y = T.match_buffer(y_handle, (num_frames, num_pixels, channels), dtype, align=element_bytes)
        state = T.match_buffer(
            state_handle, (num_clips, num_pixels, first), dtype, align=element_bytes
        )
        leaving = T.match_buffer(
            leaving_handle, (num_clips, num_pixels, first), dtype, align=element_bytes
        )
        still = T.Bind(channels - first)
        wrap = T.Bind(offset * num_segments)
        for frame in T.parallel(num_frames):
            t = T.Bind(T.truncmod(frame, num_segments))
            clip = T.Bind(T.truncdiv(frame, num_segments))
            for p in T.serial(num_pixels):
                if T.And(t - offset >= 0, t - offset < num_segments):
                    _move(y, frame - offset, x, frame, p, 0, first, long, short)
                else:
                    _move(leaving, clip, x, frame, p, 0, first, long, short)
                    _move(y, frame - offset + wrap, state, clip, p, 0, first, long, short)
                _move(y, frame, x, frame, p, first, still, long, short)

    return step


def _step_in_place(element_bytes: int) -> Any:
    dtype = f"int{8 * element_bytes}"
    short = _SHORT_BYTES // element_bytes

    @T.prim_func(s_tir=True)
    def step_in_place(
        x_handle: T.handle, state_handle: T.handle, channels: T.int64, first: T.int64
    ):
        num_frames, num_pixels = T.int64(), T.int64()
        x = T.match_buffer(x_handle, (num_frames, num_pixels, channels), dtype, align=element_bytes)
        state = T.match_buffer(
            state_handle, (num_frames, num_pixels, first), dtype, align=element_bytes
        )
        for frame in T.parallel(num_frames):
            for p in T.serial(num_pixels):
                for i in T.serial(first // short):
                    run = T.Bind(x[frame, p, T.ramp(i * short, 1, short)])
                    x[frame, p, T.ramp(i * short, 1, short)] = state[
                        frame, p, T.ramp(i * short, 1, short)
                    ]
                    state[frame, p, T.ramp(i * short, 1, short)] = run
                for i in T.serial(first % short):
                    one = T.Bind(x[frame, p, first // short * short + i])
                    x[frame, p, first // short * short + i] = state[
                        frame, p, first // short * short + i
                    ]
                    state[frame, p, first // short * short + i] = one

    return step_in_place


_BUILDERS = {
    "shift": _shift,
    "shift_in_place": _shift_in_place,
    "step": _step,
    "step_in_place": _step_in_place,
}
FUNCTION_NAMES = tuple(_BUILDERS)


@cache
def build_function(name: str, element_bytes: int) -> Any:
    """A TensorIR function for any processor, with every size symbolic.

    Args:
        name: One of `FUNCTION_NAMES`.
        element_bytes: Size of a number: 1, 2, 4 or 8.
    """
    return _BUILDERS[name](element_bytes)


def specialize(function: Any, **sizes: int) -> Any:
    """A function with some of its sizes compiled in, such as ``channels=64``."""
    return function.specialize(
        {
            parameter: tirx.IntImm("int64", sizes[parameter.name])
            for parameter in function.params
            if parameter.name in sizes
        }
    )
