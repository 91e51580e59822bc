"""int8 convolutions on blocks of channels for processors without AVX512-VNNI.

The same loops as in `effdl.kernels.tvm_channel_blocks`, in 32-bit integers on vectors of a
block's channels, which LLVM cuts to what the processor has. Weights lie in natural order:
[K][width] for each block of a 1x1 convolution, [k * k][width] of a depthwise one.
"""

from collections.abc import Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from effdl.kernels.channel_blocks import Block
from effdl.kernels.tvm_channel_blocks import Addition, Output, Put, Vectors
from effdl.kernels.tvm_vnni import load, store

__all__ = ["emit_plain_bytes", "emit_plain_depthwise_block", "emit_plain_pointwise_block"]


def emit_plain_bytes(
    sums: Any,
    vectors: Vectors,
    width: int,
    output: Output,
    summand: tuple[Addition, Any] | None = None,
) -> Any:
    """A pixel's sums as bytes, with a second summand where there is one."""

    def constant(value: float) -> Any:
        return T.broadcast(T.float32(value), width)

    multiplier = load(vectors.multiplier, vectors.offset, width)
    scaled = T.nearbyint(T.Cast(f"float32x{width}", load(sums, 0, width)) * multiplier)
    value = scaled + constant(output.zero_point)
    value = T.max(T.min(value, constant(output.y_max)), constant(output.y_min))
    if summand is not None:
        addition, other = summand
        pairs = [
            (T.Cast(f"float32x{width}", other), addition.other_ratio),
            (value, addition.y_ratio),
        ]
        if not addition.other_first:
            pairs.reverse()
        fma = T.llvm_lookup_intrinsic_id("llvm.fma")
        value = constant(addition.offset)
        for number, ratio in reversed(pairs):
            value = T.call_llvm_pure_intrin(
                fma, number, constant(ratio), value, dtype=f"float32x{width}"
            )
        value = T.max(T.min(T.nearbyint(value), constant(255)), constant(0))
    return T.Cast(f"uint8x{width}", T.Cast(f"int32x{width}", value))


def emit_plain_pointwise_block(
    *,
    x: Any,
    x_pixels: int,
    inputs: Sequence[Block],
    num_inputs: int,
    vectors: Vectors,
    width: int,
    first_pixel: Any,
    num_pixels: Any,
    output: Output,
    put: Put,
    x_start: Any = 0,
    addition: Addition | None = None,
    addition_offset: Any = 0,
) -> None:
    """A 1x1 convolution for ``width`` output channels; see `emit_pointwise_block`."""
    with T.serial(0, num_pixels) as step:
        pixel = T.bind(first_pixel + step)
        sums = T.alloc_buffer((width,), "int32", align=64)
        store(sums, 0, load(vectors.bias, vectors.offset, width), width)
        for block in inputs:
            num_steps = min(block.width, num_inputs - block.start)
            with T.serial(0, num_steps) as k:
                given = x[x_start + block.start * x_pixels + pixel * block.width + k]
                weights = vectors.weight_offset + (block.start + k) * width
                _accumulate(
                    sums, T.broadcast(T.Cast("int32", given), width), vectors, weights, width
                )
        summand = None
        if addition is not None:
            other = load(addition.other, addition_offset + pixel * width, width)
            summand = (addition, other)
        put(pixel, 1, emit_plain_bytes(sums, vectors, width, output, summand))


def _accumulate(sums: Any, given: Any, vectors: Vectors, weights: Any, width: int) -> None:
    taps = T.Cast(f"int32x{width}", load(vectors.weights, weights, width))
    store(sums, 0, load(sums, 0, width) + given * taps, width)


def emit_plain_depthwise_block(
    *,
    x: Any,
    x_start: Any,
    x_columns: int,
    vectors: Vectors,
    width: int,
    kernel_size: int,
    stride: int,
    y: Any,
    y_start: Any,
    height: Any,
    columns: int,
    output: Output,
) -> None:
    """A depthwise convolution for ``width`` channels; see `emit_depthwise_block`."""
    with T.serial(0, height) as row, T.serial(0, columns) as column:
        sums = T.alloc_buffer((width,), "int32", align=64)
        store(sums, 0, load(vectors.bias, vectors.offset, width), width)
        with T.serial(0, kernel_size) as i, T.serial(0, kernel_size) as j:
            at = ((row * stride + i) * x_columns + column * stride + j) * width
            given = T.Cast(f"int32x{width}", load(x, x_start + at, width))
            weights = vectors.weight_offset + (i * kernel_size + j) * width
            _accumulate(sums, given, vectors, weights, width)
        done = emit_plain_bytes(sums, vectors, width, output)
        store(y, y_start + (row * columns + column) * width, done, width)
