"""A 1x1 convolution that reads some channels from the neighbouring frames, as an operator."""

import importlib
from typing import Any, Literal

import torch
from torch import Tensor

from effdl.errors import ConfigError, UnknownNameError
from effdl.kernels.backend import Backend, choose_backend
from effdl.kernels.shift_conv1x1 import reference
from effdl.kernels.shift_conv1x1.reference import memory_format
from effdl.kernels.validation import (
    check_devices,
    check_dtype,
    check_rank,
    check_shape,
    format_shape,
)

__all__ = ["ACTIVATIONS", "DTYPES", "Activation", "Direction", "shift_conv1x1"]

Direction = Literal["mit", "paddle"]
"""Which neighbour the first channels come from: the next frame, or the previous one."""

Activation = Literal["relu", "relu6"]

ACTIVATIONS = ("relu", "relu6")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8)
_DIRECTIONS = ("mit", "paddle")
_TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)


def shift_conv1x1(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    num_segments: int,
    fold_div: int = 8,
    direction: Direction = "mit",
    causal: bool = False,
    stride: int = 1,
    activation: Activation | None = None,
    backend: Backend | str | None = None,
) -> Tensor:
    """Convolve temporally shifted frames with a 1x1 kernel; the shifted frames never exist.

    With ``fold = C // fold_div``, for every pixel::

        y[t] = activation(weight[:, :fold]       @ x[t + 1, :fold]
                        + weight[:, fold:2*fold] @ x[t - 1, fold:2*fold]
                        + weight[:, 2*fold:]     @ x[t, 2*fold:] + bias)

    where a clip has no such frame, zeros. ``direction="paddle"`` exchanges t + 1 and t - 1;
    a causal shift only has ``x[t - 1, :fold]``. The backward pass reads x shifted once more
    and so saves what the plain convolution saves: x and the weight (and y, which the next
    layer saves anyway, where there is an activation).

    On a CPU, TVM's kernel computes float32, in planes or channels-last. It packs the
    weights anew when they change: ``weight`` should be the tensor that the module holds.

    Args:
        x: The frames of N clips one after another, [N*T, C, H, W].
        weight: [O, C, 1, 1] or [O, C], in the number format of x.
        bias: [O] in the number format of x (int32 for int8), or None.
        num_segments: T, frames of a clip.
        fold_div: One part in so many of the channels comes from each neighbour. With fewer
            channels than that, none does.
        direction: ``"mit"`` as the authors' code, ``"paddle"`` as PaddlePaddle's operator.
        causal: Whether to shift from the past only; without a direction.
        stride: Every how many pixels there is an output, in both directions.
        activation: What follows the bias: ``"relu"``, ``"relu6"`` or None.
        backend: An implementation; None: the fastest that is here.

    Returns:
        [N*T, O, ceil(H / stride), ceil(W / stride)] in the number and memory format of x;
        int8 gives the int32 sums.

    Raises:
        ConfigError: A wrong shape, number format, device or option, or a number of frames
            that T does not divide.
        UnknownNameError: There is no such direction, activation or backend.
        BackendUnavailableError: The backend's compiler is not installed.

    Source: the shift of Lin, Gan and Han, TSM, ICCV 2019 (arXiv 1811.08383), section 3.
    """
    fold = _check(x, weight, bias, num_segments, fold_div, direction, causal, stride, activation)
    fold_next, fold_previous = (0, fold) if causal else (fold, fold)
    order = "previous_first" if direction == "paddle" else "next_first"
    settings = {
        "num_segments": num_segments,
        "fold_next": fold_next,
        "fold_previous": fold_previous,
        "order": order,
    }
    if stride > 1:
        x = x[:, :, ::stride, ::stride].contiguous(memory_format=memory_format(x))
    if torch.onnx.is_in_onnx_export():
        return reference.forward(
            x, weight.flatten(1), bias, activation=activation or "none", **settings
        )
    chosen = choose_backend(backend, device=x.device, offered=_offered(x.dtype))
    return _forward(
        x,
        weight,
        bias,
        num_segments,
        fold_next,
        fold_previous,
        order,
        activation or "none",
        chosen.value,
    )


def _offered(dtype: torch.dtype) -> tuple[Backend, ...]:
    offered = [Backend.REFERENCE]
    if dtype in _TRITON_DTYPES:
        offered.append(Backend.TRITON)
    if dtype == torch.float32:
        offered.append(Backend.TVM)
    return tuple(offered)


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    num_segments: int,
    fold_div: int,
    direction: str,
    causal: bool,
    stride: int,
    activation: str | None,
) -> int:
    """Everything that can be wrong; returns the channels of one section."""
    check_rank("x", x, ("N*T", "C", "H", "W"))
    check_dtype("x", x, DTYPES)
    check_devices(x=x, weight=weight, bias=bias)
    check_dtype("weight", weight, (x.dtype,))
    num_channels = x.shape[1]
    if weight.ndim not in (2, 4) or weight.shape[1] != num_channels or weight.shape[2:].numel() > 1:
        raise ConfigError(
            f"weight: wanted shape [O, {num_channels}, 1, 1] or [O, {num_channels}], "
            f"got {format_shape(weight.shape)}"
        )
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],))
        check_dtype("bias", bias, (torch.int32 if x.dtype == torch.int8 else x.dtype,))
    for name, value in (("num_segments", num_segments), ("stride", stride)):
        if value < 1:
            raise ConfigError(f"{name}: wanted at least 1, got {value}")
    if direction not in _DIRECTIONS:
        raise UnknownNameError("direction", direction, _DIRECTIONS)
    if causal and direction != "mit":
        raise ConfigError(
            "direction: a causal shift has none, for it only reads the previous frame, "
            f"got {direction!r}"
        )
    if activation is not None and activation not in ACTIVATIONS:
        raise UnknownNameError("activation", activation, ACTIVATIONS)
    if x.dtype == torch.int8 and activation == "relu6":
        raise ConfigError("activation: int8 gives sums without a scale, wanted 'relu' or None")
    fewest = 1 if causal else 2
    if fold_div < fewest:
        raise ConfigError(f"fold_div: wanted at least {fewest}, got {fold_div}")
    if x.shape[0] % num_segments != 0:
        raise ConfigError(
            f"x: wanted N*T frames with T = num_segments = {num_segments}, got {x.shape[0]}",
            hint="num_segments must divide the number of frames",
        )
    return num_channels // fold_div


def _implementation(backend: str) -> Any:
    """The module of a backend: forward, grad_input and grad_weight."""
    if backend == Backend.REFERENCE:
        return reference
    return importlib.import_module(f"effdl.kernels.shift_conv1x1.{backend}_kernel")


@torch.library.custom_op("effdl::shift_conv1x1", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    num_segments: int,
    fold_next: int,
    fold_previous: int,
    order: str,
    activation: str,
    backend: str,
) -> Tensor:
    return _implementation(backend).forward(
        x,
        weight if backend == Backend.TVM else weight.flatten(1),
        bias,
        num_segments=num_segments,
        fold_next=fold_next,
        fold_previous=fold_previous,
        order=order,
        activation=activation,
    )


@torch.library.custom_op("effdl::shift_conv1x1_grad_input", mutates_args=())
def _grad_input(
    grad_y: Tensor,
    weight: Tensor,
    num_segments: int,
    fold_next: int,
    fold_previous: int,
    order: str,
    backend: str,
) -> Tensor:
    return _implementation(backend).grad_input(
        grad_y,
        weight if backend == Backend.TVM else weight.flatten(1),
        num_segments=num_segments,
        fold_next=fold_next,
        fold_previous=fold_previous,
        order=order,
    )


@torch.library.custom_op("effdl::shift_conv1x1_grad_weight", mutates_args=())
def _grad_weight(
    grad_y: Tensor,
    x: Tensor,
    num_segments: int,
    fold_next: int,
    fold_previous: int,
    order: str,
    backend: str,
) -> Tensor:
    return _implementation(backend).grad_weight(
        grad_y,
        x,
        num_segments=num_segments,
        fold_next=fold_next,
        fold_previous=fold_previous,
        order=order,
    )


def _empty_images(like: Tensor, num_channels: int, dtype: torch.dtype) -> Tensor:
    num_frames, _, height, width = like.shape
    shape = (num_frames, num_channels, height, width)
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format(like))


@_forward.register_fake
def _(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    dtype = torch.int32 if x.dtype == torch.int8 else x.dtype
    return _empty_images(x, weight.shape[0], dtype)


@_grad_input.register_fake
def _(grad_y: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return _empty_images(grad_y, weight.shape[1], grad_y.dtype)


@_grad_weight.register_fake
def _(grad_y: Tensor, x: Tensor, *_: Any) -> Tensor:
    return grad_y.new_empty(grad_y.shape[1], x.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *settings, activation, backend = inputs
    saved_y = None if activation == "none" else output
    ctx.save_for_backward(x, weight, saved_y)
    ctx.has_bias = bias is not None
    ctx.settings, ctx.activation, ctx.backend = settings, activation, backend


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, y = ctx.saved_tensors
    if ctx.activation != "none":
        is_flat = y <= 0 if ctx.activation == "relu" else (y <= 0) | (y >= 6)
        grad_y = grad_y.masked_fill(is_flat, 0)
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    grad_x = grad_weight = grad_bias = None
    if needs_x:
        grad_x = _grad_input(grad_y, weight, *ctx.settings, ctx.backend)
    if needs_weight:
        grad_weight = _grad_weight(grad_y, x, *ctx.settings, ctx.backend).view_as(weight)
    if needs_bias and ctx.has_bias:
        grad_bias = grad_y.sum((0, 2, 3))
    return (grad_x, grad_weight, grad_bias, *[None] * 6)


_forward.register_autograd(_backward, setup_context=_setup_context)
