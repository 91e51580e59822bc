"""The quantized convolution: bytes in, bytes out, and the choice of how."""

import torch
from torch import Tensor

from effdl.errors import ConfigError
from effdl.kernels.backend import Backend, choose_backend
from effdl.kernels.lipschitz_conv2d import reference
from effdl.kernels.quantized_operands import check_quantized_operands
from effdl.kernels.validation import check_rank, format_shape

__all__ = ["quantized_conv2d"]


def quantized_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    *,
    x_zero_point: int,
    y_zero_point: int,
    y_min: int = 0,
    y_max: int = 255,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    backend: Backend | str | None = None,
) -> Tensor:
    """A convolution in integers, as ONNX's QLinearConv defines it.

    y = clip(round(multiplier * (bias + sum of (x - x_zero_point) * weight)) + y_zero_point),
    the sum over the window exact in int32, the product in float32, halves rounded to
    even; the padding stands for zero. ReLU and ReLU6 are y_min and y_max. Bit-exact on
    every backend.

    Args:
        x: uint8, [N, C, H, W].
        weight: int8, [O, C / groups, kh, kw]; weights of fewer bits stand in the same bytes.
        bias: int32, [O], in steps of x_scale * w_scale.
        multiplier: float32, [O] or [1]: `effdl.kernels.quantization.output_multiplier`.
        x_zero_point: Zero point of the input.
        y_zero_point: Zero point of the output.
        y_min: Smallest output.
        y_max: Largest output.
        stride: Pixels between windows.
        padding: Zeros on each side, in pixels.
        groups: Equal parts of the channels that do not mix.
        backend: None: the fastest here.

    Returns:
        uint8, [N, O, (H + 2 padding - kh) // stride + 1, ...].

    Raises:
        ConfigError: Wrong shapes, types, devices or ranges.
        BackendUnavailableError: The backend that was asked for is not here.
    """
    check_rank("x", x, ("N", "C", "H", "W"))
    check_rank("weight", weight, ("O", "C / groups", "kh", "kw"))
    device = check_quantized_operands(
        x,
        weight,
        bias,
        multiplier,
        x_zero_point=x_zero_point,
        y_zero_point=y_zero_point,
        y_min=y_min,
        y_max=y_max,
    )
    for name, value, least in (
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("groups", groups, 1),
    ):
        if value < least:
            raise ConfigError(f"{name}: wanted at least {least}, got {value}")
    outputs, inputs, height, width = weight.shape
    if x.shape[1] != inputs * groups:
        raise ConfigError(
            f"x: wanted [N, {inputs * groups}, H, W] for a weight of "
            f"{format_shape(weight.shape)} in {groups} groups, got {format_shape(x.shape)}"
        )
    if outputs % groups:
        raise ConfigError(f"weight: wanted outputs divisible by groups={groups}, got {outputs}")
    if min(height, width) < 1 or min(_out_size(x, weight, stride, padding)) < 1:
        raise ConfigError(
            f"x: wanted an image no smaller than the {height} x {width} weight with "
            f"padding={padding}, got {format_shape(x.shape)}"
        )
    chosen = choose_backend(backend, device=device)
    return torch.ops.effdl.quantized_conv2d(
        *(x, weight, bias, multiplier),
        *(x_zero_point, y_zero_point, y_min, y_max),
        *(stride, padding, groups, chosen.value),
    )


def _out_size(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[int, int]:
    height, width = (
        (size + 2 * padding - k) // stride + 1
        for size, k in zip(x.shape[2:], weight.shape[2:], strict=True)
    )
    return height, width


@torch.library.custom_op("effdl::quantized_conv2d", mutates_args=())
def _quantized_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    x_zero_point: int,
    y_zero_point: int,
    y_min: int,
    y_max: int,
    stride: int,
    padding: int,
    groups: int,
    backend: str,
) -> Tensor:
    if not x.numel() or not weight.numel():
        implementation = reference
    elif backend == Backend.TVM:
        from effdl.kernels.lipschitz_conv2d import tvm_kernel as implementation
    elif backend == Backend.TRITON:
        from effdl.kernels.lipschitz_conv2d import triton_kernel as implementation
    else:
        implementation = reference
    return implementation.quantized_conv2d(
        x,
        weight,
        bias,
        multiplier,
        x_zero_point=x_zero_point,
        y_zero_point=y_zero_point,
        y_min=y_min,
        y_max=y_max,
        stride=stride,
        padding=padding,
        groups=groups,
    )


@_quantized_conv2d.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    x_zero_point: int,
    y_zero_point: int,
    y_min: int,
    y_max: int,
    stride: int,
    padding: int,
    groups: int,
    backend: str,
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], *_out_size(x, weight, stride, padding))
