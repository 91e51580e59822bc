"""Fake quantization on GPUs: forward in one pass, backward in one more, nothing saved between.

`effdl.kernels.fake_quantize` says what is computed. The division is the correctly rounded
one: with Triton's usual division a value halfway between two steps can fall either way.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from effdl.kernels.triton_ahead import AheadOfTimeCase
from effdl.kernels.triton_launch import index_type, launch
from effdl.kernels.triton_rounding import round_half_even

__all__ = ["ahead_of_time_cases", "fake_quantize_backward", "fake_quantize_forward"]

_BLOCK = 1024
_NUM_WARPS = 4
# Programs that share the sums of the scale's gradient.
_WANTED_PARTS = 512


@triton.jit
def _steps_of(x, scale, zero_point, quant_min: tl.constexpr, quant_max: tl.constexpr):
    """x in steps of the scale, the same on the grid, and whether the grid reached so far."""
    exact = tl.div_rn(x.to(tl.float32), scale)
    low = (quant_min - zero_point).to(tl.float32)
    high = (quant_max - zero_point).to(tl.float32)
    near = tl.clamp(exact, low - 1.0, high + 1.0, propagate_nan=tl.PropagateNan.ALL)
    rounded = round_half_even(near)
    inside = (rounded >= low) & (rounded <= high)
    return exact, tl.clamp(rounded, low, high, propagate_nan=tl.PropagateNan.ALL), inside


@triton.jit
def forward_kernel(
    x_ptr,
    scale_ptr,
    zero_point_ptr,
    y_ptr,
    num_elements,
    num_channels,
    num_inner,
    quant_min: tl.constexpr,
    quant_max: tl.constexpr,
    per_channel: tl.constexpr,
    index_type: tl.constexpr,
    block: tl.constexpr,
):
    i = tl.program_id(0).to(index_type) * block + tl.arange(0, block)
    inside = i < num_elements
    channel = (i // num_inner) % num_channels if per_channel else i * 0
    scale = tl.load(scale_ptr + channel, mask=inside, other=1.0)
    zero_point = tl.load(zero_point_ptr + channel, mask=inside, other=0)
    x = tl.load(x_ptr + i, mask=inside, other=0.0)
    _, steps, _ = _steps_of(x, scale, zero_point, quant_min, quant_max)
    tl.store(y_ptr + i, (steps * scale).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    grad_ptr,
    x_ptr,
    scale_ptr,
    zero_point_ptr,
    grad_x_ptr,
    num_elements,
    num_channels,
    num_inner,
    quant_min: tl.constexpr,
    quant_max: tl.constexpr,
    per_channel: tl.constexpr,
    index_type: tl.constexpr,
    block: tl.constexpr,
):
    i = tl.program_id(0).to(index_type) * block + tl.arange(0, block)
    present = i < num_elements
    channel = (i // num_inner) % num_channels if per_channel else i * 0
    scale = tl.load(scale_ptr + channel, mask=present, other=1.0)
    zero_point = tl.load(zero_point_ptr + channel, mask=present, other=0)
    x = tl.load(x_ptr + i, mask=present, other=0.0)
    grad = tl.load(grad_ptr + i, mask=present, other=0.0)
    _, _, inside = _steps_of(x, scale, zero_point, quant_min, quant_max)
    tl.store(grad_x_ptr + i, tl.where(inside, grad, 0.0), mask=present)


@triton.jit
def backward_with_scale_kernel(
    grad_ptr,
    x_ptr,
    scale_ptr,
    zero_point_ptr,
    grad_x_ptr,
    parts_ptr,
    num_each,
    num_channels,
    num_inner,
    quant_min: tl.constexpr,
    quant_max: tl.constexpr,
    index_type: tl.constexpr,
    num_steps: tl.constexpr,
    block: tl.constexpr,
):
    channel = tl.program_id(0) % num_channels
    part = tl.program_id(0) // num_channels
    scale = tl.load(scale_ptr + channel)
    zero_point = tl.load(zero_point_ptr + channel)
    total = tl.zeros((block,), tl.float32)
    for step in range(0, num_steps):
        j = (part.to(index_type) * num_steps + step) * block + tl.arange(0, block)
        present = j < num_each
        i = ((j // num_inner) * num_channels + channel) * num_inner + j % num_inner
        x = tl.load(x_ptr + i, mask=present, other=0.0)
        grad = tl.load(grad_ptr + i, mask=present, other=0.0)
        exact, steps, inside = _steps_of(x, scale, zero_point, quant_min, quant_max)
        tl.store(grad_x_ptr + i, tl.where(inside, grad, 0.0), mask=present)
        slope = tl.where(inside, steps - exact, steps)
        total += tl.where(present, grad.to(tl.float32) * slope, 0.0)
    tl.store(parts_ptr + tl.program_id(0), tl.sum(total, axis=0))


def fake_quantize_forward(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int,
) -> Tensor:
    """Round to the grid of the quantizer.

    Args:
        x: Any shape; float32, float16 or bfloat16.
        scale: float32, [1] or [x.shape[axis]].
        zero_point: int32, shaped as ``scale``.
        quant_min: Smallest integer.
        quant_max: Largest integer.
        axis: The channels' axis; -1: one scale in all.

    Returns:
        Shaped as x, contiguous.
    """
    x = x.contiguous()
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    num_channels, num_inner = _channels(x, axis)
    launch(
        forward_kernel,
        triton.cdiv(x.numel(), _BLOCK),
        x,
        scale.contiguous(),
        zero_point.contiguous(),
        y,
        x.numel(),
        num_channels,
        num_inner,
        per_channel=num_channels > 1,
        **_settings(x, quant_min, quant_max),
    )
    return y


def fake_quantize_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int,
    needs_scale: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gradients to x and to the scale, in one pass over both tensors.

    Args:
        grad: The gradient to the result, shaped and typed as x.
        x: As in `fake_quantize_forward`.
        scale: As there.
        zero_point: As there.
        quant_min: As there.
        quant_max: As there.
        axis: As there.
        needs_scale: Whether the scale is learned; else its gradient is zeros.

    Returns:
        Shaped as x, contiguous; and shaped as ``scale``, summed in float32 in the same
        order every time.
    """
    x, grad = x.contiguous(), grad.contiguous()
    grad_x = torch.empty_like(grad)
    if x.numel() == 0:
        return grad_x, torch.zeros_like(scale)
    num_channels, num_inner = _channels(x, axis)
    tensors = grad, x, scale.contiguous(), zero_point.contiguous(), grad_x
    if not needs_scale:
        launch(
            backward_kernel,
            triton.cdiv(x.numel(), _BLOCK),
            *tensors,
            x.numel(),
            num_channels,
            num_inner,
            per_channel=num_channels > 1,
            **_settings(x, quant_min, quant_max),
        )
        return grad_x, torch.zeros_like(scale)
    num_each = x.numel() // num_channels
    num_steps = _num_steps(num_each, num_channels)
    num_parts = triton.cdiv(num_each, num_steps * _BLOCK)
    parts = x.new_empty((num_parts, num_channels), dtype=torch.float32)
    launch(
        backward_with_scale_kernel,
        num_parts * num_channels,
        *tensors,
        parts,
        num_each,
        num_channels,
        num_inner,
        num_steps=num_steps,
        **_settings(x, quant_min, quant_max),
    )
    return grad_x, parts.sum(0).reshape(scale.shape).to(scale.dtype)


def _channels(x: Tensor, axis: int) -> tuple[int, int]:
    """How many channels there are, and how many elements each has side by side."""
    if axis < 0:
        return 1, x.numel()
    return x.shape[axis], math.prod(x.shape[axis + 1 :])


def _num_steps(num_each: int, num_channels: int) -> int:
    """A power of two, so that few kernels are compiled for many shapes."""
    wanted_parts = max(1, _WANTED_PARTS // num_channels)
    steps = -(-num_each // (_BLOCK * wanted_parts))
    return min(1 << (steps - 1).bit_length(), 1024)


def _settings(x: Tensor, quant_min: int, quant_max: int) -> dict[str, Any]:
    return {
        "quant_min": quant_min,
        "quant_max": quant_max,
        "index_type": index_type(x),
        "block": _BLOCK,
        "num_warps": _NUM_WARPS,
        "enable_fp_fusion": False,
    }


def ahead_of_time_cases() -> list[AheadOfTimeCase]:
    """All three kernels, for activations of one scale and for weights of one a channel."""
    tensors = {"scale_ptr": "*fp32", "zero_point_ptr": "*i32"}
    sizes = {"num_channels": "i32", "num_inner": "i32"}
    constants = {"quant_min": 0, "quant_max": 255, "index_type": tl.int32, "block": _BLOCK}
    forward = [
        AheadOfTimeCase(
            name=f"fake_quantize.forward.{element}{'.per_channel' if per_channel else ''}",
            function=forward_kernel,
            signature={
                "x_ptr": f"*{element}",
                "y_ptr": f"*{element}",
                "num_elements": "i32",
                **tensors,
                **sizes,
            },
            constexprs={**constants, "per_channel": per_channel},
            num_warps=_NUM_WARPS,
        )
        for element, per_channel in (("fp32", False), ("fp32", True), ("fp16", False))
    ]
    gradients = {"grad_ptr": "*fp32", "x_ptr": "*fp32", "grad_x_ptr": "*fp32"}
    backward = AheadOfTimeCase(
        name="fake_quantize.backward.fp32",
        function=backward_kernel,
        signature={**gradients, **tensors, "num_elements": "i32", **sizes},
        constexprs={**constants, "per_channel": False},
        num_warps=_NUM_WARPS,
    )
    with_scale = AheadOfTimeCase(
        name="fake_quantize.backward_with_scale.fp32",
        function=backward_with_scale_kernel,
        signature={**gradients, **tensors, "parts_ptr": "*fp32", "num_each": "i32", **sizes},
        constexprs={**constants, "num_steps": 4},
        num_warps=_NUM_WARPS,
    )
    return [*forward, backward, with_scale]
