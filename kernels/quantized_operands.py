"""What every integer layer asks of its bias, multiplier and zero points."""

import torch
from torch import Tensor

from effdl.errors import ConfigError
from effdl.kernels.validation import check_devices, check_dtype, format_shape

__all__ = ["check_quantized_operands"]


def check_quantized_operands(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    *,
    x_zero_point: int,
    y_zero_point: int,
    y_min: int,
    y_max: int,
) -> torch.device:
    """Types, devices and ranges; ranks and sizes of x and weight are the operator's own.

    Returns:
        The device they all lie on.

    Raises:
        ConfigError: One is wrong.
    """
    check_dtype("x", x, (torch.uint8,))
    check_dtype("weight", weight, (torch.int8,))
    check_dtype("bias", bias, (torch.int32,))
    check_dtype("multiplier", multiplier, (torch.float32,))
    outputs = weight.shape[0]
    if tuple(bias.shape) != (outputs,):
        raise ConfigError(
            f"bias: wanted shape [{outputs}], one number an output, got {format_shape(bias.shape)}"
        )
    if tuple(multiplier.shape) not in {(outputs,), (1,)}:
        raise ConfigError(
            f"multiplier: wanted shape [{outputs}] or [1], got {format_shape(multiplier.shape)}"
        )
    for name, value in (
        ("x_zero_point", x_zero_point),
        ("y_zero_point", y_zero_point),
        ("y_min", y_min),
        ("y_max", y_max),
    ):
        if not 0 <= value <= 255:
            raise ConfigError(f"{name}: wanted 0 to 255, got {value}")
    if y_min > y_max:
        raise ConfigError(f"wanted y_min <= y_max, got {y_min} and {y_max}")
    return check_devices(x=x, weight=weight, bias=bias, multiplier=multiplier)
