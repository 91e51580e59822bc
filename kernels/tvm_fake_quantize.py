"""Fake quantization on the CPU in one pass: each number is read once and written once."""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor
from tvm.script import tirx as T

from effdl.kernels.tvm_runtime import CompiledModule, compile_module

__all__ = ["fake_quantize_backward", "fake_quantize_forward"]

# Numbers a thread takes at a time: 64 KiB, small enough to spread over threads.
_CHUNK = 16384
_LANES = 16


def fake_quantize_forward(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, axis: int
) -> Tensor:
    """`effdl.kernels.fake_quantize.fake_quantize` for float32; axis -1 means none."""
    x = x.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        rows = _rows(x, axis)
        limits = torch.tensor([quant_min, quant_max], dtype=torch.float32)
        _module().call("forward", x.view(rows), scale, zero_point, limits, out.view(rows))
    return out


def fake_quantize_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int,
) -> Tensor:
    """The gradient of the input: ``grad`` where nothing was clipped, else 0."""
    x, grad = x.contiguous(), grad.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        rows = _rows(x, axis)
        limits = torch.tensor([quant_min, quant_max], dtype=torch.float32)
        _module().call(
            "backward", grad.view(rows), x.view(rows), scale, zero_point, limits, out.view(rows)
        )
    return out


def _rows(x: Tensor, axis: int) -> tuple[int, int]:
    """Rows of one scale each, which go round the channels."""
    length = x.numel() if axis < 0 else math.prod(x.shape[axis + 1 :])
    return x.numel() // length, length


def _rounded(v: Any, scale: Any, zero: Any) -> Any:
    return T.nearbyint(v / scale) + zero


def _quantized(v: Any, scale: Any, zero: Any, low: Any, high: Any) -> Any:
    q = T.min(T.max(_rounded(v, scale, zero), low), high)
    return T.Select(T.isnan(v), v, (q - zero) * scale)


def _masked(grad: Any, v: Any, scale: Any, zero: Any, low: Any, high: Any, nothing: Any) -> Any:
    q = _rounded(v, scale, zero)
    return T.Select(T.min(T.max(q, low), high) == q, grad, nothing)


@cache
def _module() -> CompiledModule:
    chunk, lanes = _CHUNK, _LANES

    @T.prim_func(s_tir=True)
    def forward(a: T.handle, b: T.handle, c: T.handle, d: T.handle, e: T.handle):
        num_rows, length, channels = T.int64(), T.int64(), T.int64()
        x = T.match_buffer(a, (num_rows, length), "float32", align=4)
        scale = T.match_buffer(b, (channels,), "float32", align=4)
        zero = T.match_buffer(c, (channels,), "int32", align=4)
        limits = T.match_buffer(d, (2,), "float32", align=4)
        out = T.match_buffer(e, (num_rows, length), "float32", align=4)
        for task in T.parallel(num_rows * ((length + (chunk - 1)) // chunk)):
            row = task // ((length + (chunk - 1)) // chunk)
            part = task % ((length + (chunk - 1)) // chunk)
            s = scale[row % channels]
            z = T.cast(zero[row % channels], "float32")
            size = T.min(T.int64(chunk), length - part * chunk)
            for i in T.serial(size // lanes):
                out[row, T.ramp(part * chunk + i * lanes, 1, lanes)] = _quantized(
                    x[row, T.ramp(part * chunk + i * lanes, 1, lanes)],
                    *(T.broadcast(s, lanes), T.broadcast(z, lanes)),
                    *(T.broadcast(limits[0], lanes), T.broadcast(limits[1], lanes)),
                )
            for i in T.serial(size % lanes):
                out[row, part * chunk + size // lanes * lanes + i] = _quantized(
                    x[row, part * chunk + size // lanes * lanes + i], s, z, limits[0], limits[1]
                )

    @T.prim_func(s_tir=True)
    def backward(g: T.handle, a: T.handle, b: T.handle, c: T.handle, d: T.handle, e: T.handle):
        num_rows, length, channels = T.int64(), T.int64(), T.int64()
        grad = T.match_buffer(g, (num_rows, length), "float32", align=4)
        x = T.match_buffer(a, (num_rows, length), "float32", align=4)
        scale = T.match_buffer(b, (channels,), "float32", align=4)
        zero = T.match_buffer(c, (channels,), "int32", align=4)
        limits = T.match_buffer(d, (2,), "float32", align=4)
        out = T.match_buffer(e, (num_rows, length), "float32", align=4)
        for task in T.parallel(num_rows * ((length + (chunk - 1)) // chunk)):
            row = task // ((length + (chunk - 1)) // chunk)
            part = task % ((length + (chunk - 1)) // chunk)
            s = scale[row % channels]
            z = T.cast(zero[row % channels], "float32")
            size = T.min(T.int64(chunk), length - part * chunk)
            for i in T.serial(size // lanes):
                out[row, T.ramp(part * chunk + i * lanes, 1, lanes)] = _masked(
                    grad[row, T.ramp(part * chunk + i * lanes, 1, lanes)],
                    x[row, T.ramp(part * chunk + i * lanes, 1, lanes)],
                    *(T.broadcast(s, lanes), T.broadcast(z, lanes)),
                    *(T.broadcast(limits[0], lanes), T.broadcast(limits[1], lanes)),
                    T.broadcast(T.float32(0), lanes),
                )
            for i in T.serial(size % lanes):
                out[row, part * chunk + size // lanes * lanes + i] = _masked(
                    grad[row, part * chunk + size // lanes * lanes + i],
                    x[row, part * chunk + size // lanes * lanes + i],
                    *(s, z, limits[0], limits[1], T.float32(0)),
                )

    return compile_module({"forward": forward, "backward": backward})
