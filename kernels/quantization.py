"""Quantization arithmetic, as ONNX's QLinear operators define it.

A real number r stands as an integer q with a scale s and a zero point z: r = s * (q - z).
Activations are unsigned with a zero point, weights signed without one (z = 0).
An integer operator accumulates exactly in int32 and requantizes once:

    y = clip(round(acc * multiplier) + y_zero_point, y_min, y_max)

with ``multiplier = x_scale * w_scale / y_scale`` and the product in float32, and round
half to even. ReLU and ReLU6 are nothing but y_min and y_max.

Fewer than eight bits stand in the same bytes (or packed: `effdl.kernels.bit_packing`).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effdl.errors import ConfigError

__all__ = [
    "QuantizationParameters",
    "asymmetric_parameters",
    "bias_to_int32",
    "dequantize",
    "integer_range",
    "output_multiplier",
    "quantize",
    "relu6_parameters",
    "requantize",
    "symmetric_parameters",
    "weight_parameters",
]

_MAX_BITS = 8
# Up to here a few outliers would leave most weights at zero: the scale follows the mean.
_FEW_BITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationParameters:
    """How integers stand for real numbers.

    Attributes:
        scale: Positive, float32, [1] or [channels].
        zero_point: The integer that stands for 0; int32, shaped as ``scale``.
        quant_min: Smallest integer.
        quant_max: Largest integer.
        axis: The channels' axis; None: one scale for the whole tensor.
    """

    scale: Tensor
    zero_point: Tensor
    quant_min: int
    quant_max: int
    axis: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The byte the integers stand in."""
        return torch.int8 if self.quant_min < 0 else torch.uint8


def integer_range(num_bits: int, *, signed: bool, narrow: bool = False) -> tuple[int, int]:
    """Smallest and largest integer of ``num_bits`` bits.

    Args:
        num_bits: 1 to 8.
        signed: Two's complement, or from zero.
        narrow: Leave the most negative one out, so that the range is symmetric.

    Raises:
        ConfigError: There is no such range.
    """
    if not 1 <= num_bits <= _MAX_BITS:
        raise ConfigError(f"num_bits: wanted 1 to {_MAX_BITS}, got {num_bits}")
    if not signed:
        return 0, 2**num_bits - 1
    if narrow and num_bits == 1:
        raise ConfigError("num_bits: wanted 2 to 8 for a symmetric range, got 1")
    half = 2 ** (num_bits - 1)
    return -half + int(narrow), half - 1


def symmetric_parameters(
    x: Tensor, num_bits: int, *, axis: int | None = None
) -> QuantizationParameters:
    """Zero point 0 and the range of the largest magnitude: nothing is clipped.

    Args:
        x: Any shape.
        num_bits: 2 to 8.
        axis: One scale for each index of this axis; None: one in all.

    Raises:
        ConfigError: Wrong ``num_bits`` or ``axis``.
    """
    quant_min, quant_max = integer_range(num_bits, signed=True, narrow=True)
    largest = _rows(x, axis).abs().amax(dim=1) if x.numel() else x.new_zeros(_rows_of(x, axis))
    return _symmetric(largest / quant_max, quant_min, quant_max, axis)


def weight_parameters(
    weight: Tensor, num_bits: int, *, per_channel: bool
) -> QuantizationParameters:
    """Scales for the weights of a layer, output channels first.

    From five bits on the largest magnitude sets the scale. With fewer it is at most
    2 * mean|w| / sqrt(largest integer), which clips outliers for a finer step: the
    starting point of LSQ (Esser et al., ICLR 2020, section 2.1).

    Args:
        weight: [output channels, ...].
        num_bits: 2 to 8.
        per_channel: One scale for each output channel, or one in all.

    Raises:
        ConfigError: Wrong ``num_bits``.
    """
    axis = 0 if per_channel else None
    parameters = symmetric_parameters(weight, num_bits, axis=axis)
    if num_bits > _FEW_BITS or not weight.numel():
        return parameters
    mean = _rows(weight, axis).abs().mean(dim=1)
    fine = 2 * mean.float() / parameters.quant_max**0.5
    return _symmetric(
        torch.minimum(parameters.scale, fine), parameters.quant_min, parameters.quant_max, axis
    )


def asymmetric_parameters(
    low: Tensor, high: Tensor, num_bits: int, *, axis: int | None = None
) -> QuantizationParameters:
    """Unsigned integers for numbers between ``low`` and ``high``.

    The range is widened to hold 0, which stands for itself exactly, as padding needs.

    Args:
        low: Smallest number, [] or [1] or [channels].
        high: Largest number, shaped as ``low``.
        num_bits: 1 to 8.
        axis: The channels' axis; None: one range in all.

    Raises:
        ConfigError: Wrong ``num_bits``.
    """
    quant_min, quant_max = integer_range(num_bits, signed=False)
    low = low.detach().float().reshape(-1).clamp(max=0)
    high = high.detach().float().reshape(-1).clamp(min=0)
    scale = _positive((high - low) / (quant_max - quant_min))
    zero_point = torch.round(quant_min - low / scale).clamp(quant_min, quant_max)
    return QuantizationParameters(
        scale=scale,
        zero_point=zero_point.to(torch.int32),
        quant_min=quant_min,
        quant_max=quant_max,
        axis=axis,
    )


def relu6_parameters(num_bits: int) -> QuantizationParameters:
    """The range [0, 6] behind a ReLU6: q(x) = round(x (2^n - 1) / 6) * 6 / (2^n - 1).

    Source: Defensive Quantization (Lin, Gan and Han, ICLR 2019, arXiv:1904.08444).

    Args:
        num_bits: n, 1 to 8.

    Raises:
        ConfigError: Wrong ``num_bits``.
    """
    return asymmetric_parameters(torch.tensor(0.0), torch.tensor(6.0), num_bits)


def quantize(x: Tensor, parameters: QuantizationParameters) -> Tensor:
    """``clip(round(x / scale) + zero_point)``, half to even, as bytes of the same shape."""
    scale, zero_point = _spread(x, parameters)
    q = torch.round(x.float() / scale) + zero_point
    return q.clamp(parameters.quant_min, parameters.quant_max).to(parameters.dtype)


def dequantize(q: Tensor, parameters: QuantizationParameters) -> Tensor:
    """``scale * (q - zero_point)`` in float32."""
    scale, zero_point = _spread(q, parameters)
    return (q.to(torch.int32) - zero_point).float() * scale


def bias_to_int32(bias: Tensor, x_scale: float, w_scale: Tensor) -> Tensor:
    """A real bias as it is added to the accumulator: in steps of x_scale * w_scale.

    Args:
        bias: [output channels].
        x_scale: Scale of the input.
        w_scale: Scale of the weights, [output channels] or [1].
    """
    steps = torch.round(bias.double() / (x_scale * w_scale.double()))
    limits = torch.iinfo(torch.int32)
    return steps.clamp(limits.min, limits.max).to(torch.int32)


def output_multiplier(
    x_scale: float, w_scale: NDArray[np.float32], y_scale: float
) -> NDArray[np.float32]:
    """``x_scale * w_scale / y_scale`` in float32, in that order, as ONNX Runtime does.

    Args:
        x_scale: Scale of the input.
        w_scale: Scale of the weights, [output channels] or [1].
        y_scale: Scale of the output.
    """
    product = np.float32(x_scale) * np.asarray(w_scale, np.float32)
    return (product / np.float32(y_scale)).astype(np.float32)


def requantize(
    accumulator: NDArray[np.int32],
    multiplier: NDArray[np.float32],
    *,
    y_zero_point: int,
    y_min: int = 0,
    y_max: int = 255,
) -> NDArray[np.uint8]:
    """Integer accumulators as the next layer's bytes: the truth of every backend.

    Args:
        accumulator: Sums with the bias, [..., channels].
        multiplier: [channels] or [1].
        y_zero_point: Zero point of the output.
        y_min: Smallest output (the zero point, for a ReLU).
        y_max: Largest output (where 6 stands, for a ReLU6).
    """
    scaled = np.rint(accumulator.astype(np.float32) * multiplier)
    # Beyond the bytes the float32 sum is exact enough: it is clipped anyway.
    return np.clip(scaled + np.float32(y_zero_point), y_min, y_max).astype(np.uint8)


def _rows_of(x: Tensor, axis: int | None) -> int:
    return 1 if axis is None else x.shape[axis]


def _rows(x: Tensor, axis: int | None) -> Tensor:
    x = x.detach()
    if axis is None:
        return x.reshape(1, -1)
    if not -x.ndim <= axis < x.ndim:
        raise ConfigError(f"axis: wanted {-x.ndim} to {x.ndim - 1}, got {axis}")
    return x.movedim(axis, 0).flatten(1) if x.ndim > 1 else x.reshape(-1, 1)


def _positive(scale: Tensor) -> Tensor:
    """A tensor of zeros has no scale of its own: any serves."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def _symmetric(
    scale: Tensor, quant_min: int, quant_max: int, axis: int | None
) -> QuantizationParameters:
    scale = _positive(scale.float())
    return QuantizationParameters(
        scale=scale,
        zero_point=torch.zeros_like(scale, dtype=torch.int32),
        quant_min=quant_min,
        quant_max=quant_max,
        axis=axis,
    )


def _spread(x: Tensor, parameters: QuantizationParameters) -> tuple[Tensor, Tensor]:
    if parameters.axis is None:
        return parameters.scale, parameters.zero_point
    shape = [1] * x.ndim
    shape[parameters.axis] = -1
    return parameters.scale.reshape(shape), parameters.zero_point.reshape(shape)
