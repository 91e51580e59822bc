"""The quantized convolution in plain arithmetic: the truth of every backend."""

import torch
from torch import Tensor
from torch.nn import functional

from effdl.kernels.quantization import requantize

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
) -> Tensor:
    """See `effdl.kernels.lipschitz_conv2d.op.quantized_conv2d`.

    The sums are taken in float64, which holds them exactly; padding is with what stands
    for zero, the zero point.
    """
    accumulator = functional.conv2d(
        x.double() - x_zero_point,
        weight.double(),
        bias.double(),
        stride=stride,
        padding=padding,
        groups=groups,
    )
    y = requantize(
        accumulator.permute(0, 2, 3, 1).to(torch.int32).cpu().numpy(),
        multiplier.cpu().numpy(),
        y_zero_point=y_zero_point,
        y_min=y_min,
        y_max=y_max,
    )
    return torch.from_numpy(y).to(x.device).permute(0, 3, 1, 2).contiguous()
