"""The int8 inverted residual, operator by operator: the truth of every backend."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from effdl.kernels.quantization import requantize

__all__ = [
    "QuantizedAddition",
    "QuantizedConvolution",
    "add_quantized",
    "convolve_quantized",
    "inverted_residual_reference",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedConvolution:
    """A convolution with its normalisation and activation, in integers.

    Attributes:
        weight: int8, [out_channels, in_channels, k, k]; [channels, 1, k, k] for depthwise.
        bias: int32 at the scale of the sums, [out_channels].
        multiplier: float32 ``x_scale * w_scale / y_scale``, [out_channels].
        y_zero_point: Zero point of the output, 0 to 255.
        y_min: Its smallest value: the zero point, for a ReLU.
        y_max: Its largest value: where 6 stands, for a ReLU6.
    """

    weight: Tensor
    bias: Tensor
    multiplier: Tensor
    y_zero_point: int
    y_min: int = 0
    y_max: int = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedAddition:
    """The sum of a block's input and its projection, as ONNX Runtime computes it on x86.

    ``round(fma(a, a_scale / sum_scale, fma(b, b_scale / sum_scale, offset)))`` in float32,
    where ``offset = zero_point - fma(a_ratio, a_zero_point, b_ratio * b_zero_point)`` and a
    is the first summand. Source: ``MlasQLinearAdd`` of ONNX Runtime 1.32, whose results it
    equals over all pairs of bytes.

    Attributes:
        x_scale: Scale of the block's input.
        y_scale: Scale of the projection.
        sum_scale: Scale of the sum.
        sum_zero_point: Zero point of the sum, 0 to 255.
        x_first: Whether the block's input is the first summand.
    """

    x_scale: float
    y_scale: float
    sum_scale: float
    sum_zero_point: int
    x_first: bool = True

    def ratios(self) -> tuple[float, float]:
        """Scales of the input and of the projection over that of the sum, in float32."""
        total = np.float32(self.sum_scale)
        return float(np.float32(self.x_scale) / total), float(np.float32(self.y_scale) / total)

    def offset(self, *, x_zero_point: int, y_zero_point: int) -> float:
        """What the zero points amount to, in float32."""
        first, second = zip(self.ratios(), (x_zero_point, y_zero_point), strict=True)
        if not self.x_first:
            first, second = second, first
        inner = np.float32(second[0]) * np.float32(second[1])
        both = _fused(np.float32(first[1]), np.float32(first[0]), inner)
        return float(np.float32(self.sum_zero_point) - both)


def _fused(value: ArrayLike, factor: np.float32, summand: ArrayLike) -> NDArray[np.float32]:
    # A byte times a float32 is exact in float64, and so is the sum but for summands that
    # differ by more than 2**20.
    total = np.asarray(value, np.float64) * np.float64(factor) + np.asarray(summand, np.float64)
    return np.asarray(total, np.float32)


def add_quantized(
    x: NDArray[np.uint8],
    y: NDArray[np.uint8],
    addition: QuantizedAddition,
    *,
    x_zero_point: int,
    y_zero_point: int,
) -> NDArray[np.uint8]:
    """The sum of two quantized tensors of one shape."""
    offset = np.float32(addition.offset(x_zero_point=x_zero_point, y_zero_point=y_zero_point))
    x_ratio, y_ratio = addition.ratios()
    pairs = (x, np.float32(x_ratio)), (y, np.float32(y_ratio))
    (first, first_ratio), (second, second_ratio) = pairs if addition.x_first else pairs[::-1]
    inner = _fused(second.astype(np.float32), second_ratio, offset)
    total = _fused(first.astype(np.float32), first_ratio, inner)
    return np.clip(np.rint(total), 0, 255).astype(np.uint8)


def convolve_quantized(
    x: Tensor, layer: QuantizedConvolution, *, x_zero_point: int, stride: int = 1
) -> Tensor:
    """One convolution with padding k // 2, depthwise where its weight has one input channel.

    Args:
        x: uint8, [N, C, H, W].
        layer: Its integers.
        x_zero_point: Zero point of the input, which also stands in the borders.
        stride: Of both axes.
    """
    num_channels, size = x.shape[1], layer.weight.shape[2]
    is_depthwise = layer.weight.shape[1] == 1 and num_channels == layer.weight.shape[0]
    # float64 sums of bytes are exact, and the zero point is gone before the borders.
    total = torch.nn.functional.conv2d(
        x.double() - x_zero_point,
        layer.weight.double(),
        layer.bias.double(),
        stride=stride,
        padding=size // 2,
        groups=num_channels if is_depthwise else 1,
    )
    channels_last = total.permute(0, 2, 3, 1).numpy().astype(np.int32)
    out = requantize(
        channels_last,
        layer.multiplier.numpy(),
        y_zero_point=layer.y_zero_point,
        y_min=layer.y_min,
        y_max=layer.y_max,
    )
    return torch.from_numpy(np.ascontiguousarray(out.transpose(0, 3, 1, 2)))


def inverted_residual_reference(
    x: Tensor,
    *,
    expansion: QuantizedConvolution | None,
    depthwise: QuantizedConvolution,
    projection: QuantizedConvolution,
    x_zero_point: int,
    stride: int = 1,
    addition: QuantizedAddition | None = None,
) -> Tensor:
    """Expansion, depthwise convolution, projection and residual addition, one by one.

    Args:
        x: uint8, [N, C, H, W].
        expansion: 1x1, or None where the block has none.
        depthwise: k x k, padding k // 2.
        projection: 1x1.
        x_zero_point: Zero point of the input.
        stride: Of the depthwise convolution.
        addition: How the input is added to the output, or None.
    """
    hidden, zero_point = x, x_zero_point
    if expansion is not None:
        hidden = convolve_quantized(x, expansion, x_zero_point=x_zero_point)
        zero_point = expansion.y_zero_point
    deep = convolve_quantized(hidden, depthwise, x_zero_point=zero_point, stride=stride)
    y = convolve_quantized(deep, projection, x_zero_point=depthwise.y_zero_point)
    if addition is None:
        return y
    return torch.from_numpy(
        add_quantized(
            x.numpy(),
            y.numpy(),
            addition,
            x_zero_point=x_zero_point,
            y_zero_point=projection.y_zero_point,
        )
    )
