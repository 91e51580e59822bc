"""The quantized linear layer in plain arithmetic: the truth of every backend."""

import torch
from torch import Tensor

from effdl.kernels.bit_packing import unpack_bits
from effdl.kernels.quantization import requantize

__all__ = ["dequantize_int4", "int4_linear", "quantized_linear"]


def quantized_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    *,
    x_zero_point: int,
    y_zero_point: int,
    y_min: int = 0,
    y_max: int = 255,
) -> Tensor:
    """See `effdl.kernels.lipschitz_linear.op.quantized_linear`.

    The sums are taken in float64, which holds them exactly.
    """
    accumulator = (x.double() - x_zero_point) @ weight.double().t() + bias.double()
    y = requantize(
        accumulator.to(torch.int32).cpu().numpy(),
        multiplier.cpu().numpy(),
        y_zero_point=y_zero_point,
        y_min=y_min,
        y_max=y_max,
    )
    return torch.from_numpy(y).to(x.device)


def int4_linear(x: Tensor, packed_weight: Tensor, scale: Tensor) -> Tensor:
    """See `effdl.kernels.lipschitz_linear.op.int4_linear`."""
    return (x.double() @ dequantize_int4(packed_weight, scale, size=x.shape[1]).t()).to(x.dtype)


def dequantize_int4(packed_weight: Tensor, scale: Tensor, *, size: int) -> Tensor:
    """The weights in float64, [N, K]."""
    integers = unpack_bits(packed_weight, 4, size=size).double()
    if scale.ndim == 1:
        return integers * scale.double()[:, None]
    grouped = integers.unflatten(1, (scale.shape[1], size // scale.shape[1]))
    return (grouped * scale.double()[:, :, None]).flatten(1)
