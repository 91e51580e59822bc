"""What this processor can do at most: chains of multiply-adds that never leave the registers.

The roofs that the benchmarks compare kernels with.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tvm.script import tirx as T

from effdl.kernels.tvm_runtime import compile_module, has_vnni

__all__ = ["PeakLoop", "float32_peak_loop", "int8_peak_loop"]

_NUM_STEPS = 20_000
# Enough independent sums to hide an instruction's latency. TVM keeps a buffer on the stack,
# whence LLVM takes it to the registers, up to 1024 bytes: 16 vectors of 64.
_NUM_SUMS = 16
_NUM_LANES = 16


class PeakLoop(NamedTuple):
    """A loop to time.

    Attributes:
        run: Runs it once, on one thread.
        num_operations: Multiplications and additions of one run.
    """

    run: Callable[[], object]
    num_operations: int


def float32_peak_loop() -> PeakLoop:
    """Fused multiply-adds on 512-bit vectors, or what the processor makes of them."""

    def step(acc: Any, x: Any) -> Any:
        return acc * x + x

    return _loop(step, torch.full((_NUM_LANES,), 0.5), 2 * _NUM_LANES)


def int8_peak_loop() -> PeakLoop | None:
    """Byte dot products (vpdpbusd) on 512-bit vectors; None where the processor has none."""
    if not has_vnni():
        return None
    dot = T.llvm_lookup_intrinsic_id("llvm.x86.avx512.vpdpbusd.512")

    def step(acc: Any, x: Any) -> Any:
        bytes_ = T.reinterpret(x, dtype="int8x64")
        return T.call_llvm_pure_intrin(dot, acc, bytes_, bytes_, dtype="int32x16")

    return _loop(step, torch.zeros(_NUM_LANES, dtype=torch.int32), 2 * 4 * _NUM_LANES)


def _loop(step: Callable[[Any, Any], Any], given: torch.Tensor, num_operations: int) -> PeakLoop:
    dtype = str(given.dtype).removeprefix("torch.")

    @T.prim_func(s_tir=True)
    def loop(a: T.handle, b: T.handle):
        source = T.match_buffer(a, (_NUM_LANES,), dtype, align=4)
        out = T.match_buffer(b, (_NUM_LANES,), dtype, align=4)
        x = T.alloc_buffer((_NUM_LANES,), dtype)
        sums = T.alloc_buffer((_NUM_SUMS * _NUM_LANES,), dtype)
        x[T.ramp(0, 1, _NUM_LANES)] = source[T.ramp(0, 1, _NUM_LANES)]
        for i in T.unroll(_NUM_SUMS):
            sums[T.ramp(i * _NUM_LANES, 1, _NUM_LANES)] = x[T.ramp(0, 1, _NUM_LANES)]
        for _ in T.serial(_NUM_STEPS):
            for i in T.unroll(_NUM_SUMS):
                sums[T.ramp(i * _NUM_LANES, 1, _NUM_LANES)] = step(
                    sums[T.ramp(i * _NUM_LANES, 1, _NUM_LANES)], x[T.ramp(0, 1, _NUM_LANES)]
                )
        for i in T.unroll(_NUM_SUMS):
            out[T.ramp(0, 1, _NUM_LANES)] = (
                out[T.ramp(0, 1, _NUM_LANES)] + sums[T.ramp(i * _NUM_LANES, 1, _NUM_LANES)]
            )

    compiled = compile_module({"loop": loop})["loop"]
    out = torch.zeros_like(given)
    return PeakLoop(
        run=lambda: compiled(given, out), num_operations=_NUM_STEPS * _NUM_SUMS * num_operations
    )
