"""Convolutions with quantized weights and a bounded norm: trained, and as bytes."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from effdl.errors import ConfigError, UnknownNameError
from effdl.kernels.backend import Backend
from effdl.kernels.lipschitz_conv2d.op import quantized_conv2d
from effdl.kernels.lipschitz_layer import LipschitzLayer
from effdl.kernels.quantization import bias_to_int32, output_multiplier
from effdl.kernels.spectral import power_iteration, start_direction
from effdl.kernels.spectral_conv import (
    ConvGeometry,
    apply_conv,
    conv_gram_bound,
    conv_norm_bound,
    conv_power_iteration,
    reshaped_norm_bound,
)

__all__ = ["LipschitzConv2d", "QuantizedConv2d"]

Norm = Literal["operator", "reshaped"]
_NORMS = ("operator", "reshaped")
# From a made image the estimate is then within a few percent; each training step adds one.
_WARM_UP = 20
# Where training estimates: the norm of 3x3 weights on larger images is hardly larger.
_IMAGE_SIZE = 10


class LipschitzConv2d(LipschitzLayer):
    """A convolution for training with quantized weights whose norm is at most a bound.

    ``norm="operator"`` bounds the convolution with its padding, stride and groups, at any
    image size. ``norm="reshaped"`` bounds the weights as a matrix [O, C / groups * kh * kw]
    instead, as in Defensive Quantization and PyTorch's ``spectral_norm``: the convolution's
    own norm is then up to sqrt(kh * kw) times the bound.

    In training the norm is power iteration's estimate, with the real padding and stride
    on an image of 10 x 10, so the layer's may exceed the bound by what is missing to
    convergence; in evaluation it does not exceed it. Depthwise layers are bounded in
    training too, in closed form, and where the channels have scales of their own each
    group is held to the bound alone.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: kh and kw, or both.
        stride: Pixels between windows.
        padding: Zeros on each side.
        dilation: Pixels between taps.
        groups: Equal parts of the channels that do not mix.
        bias: Add a learned bias.
        bound: What the largest singular value may be at most.
        num_bits: Of the weights, 2 to 8.
        per_channel: One scale for each output channel, or one in all.
        norm: What is bounded.
        num_iterations: Of power iteration in each training step.

    Raises:
        ConfigError: A wrong number or name.
    """

    direction: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        bound: float = 1.0,
        num_bits: int = 8,
        per_channel: bool = True,
        norm: Norm = "operator",
        num_iterations: int = 1,
    ) -> None:
        if norm not in _NORMS:
            raise UnknownNameError("norm", norm, _NORMS)
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ConfigError(
                f"groups: wanted a divisor of {in_channels} and {out_channels}, got {groups}"
            )
        plain = nn.Conv2d(in_channels, out_channels, kernel_size, groups=groups, bias=bias)
        super().__init__(
            plain.weight.detach(),
            None if plain.bias is None else plain.bias.detach(),
            bound=bound,
            num_bits=num_bits,
            per_channel=per_channel,
        )
        self.geometry = ConvGeometry(
            stride=_pair(stride), padding=_pair(padding), dilation=_pair(dilation), groups=groups
        )
        self.norm: Norm = norm
        self.num_iterations = num_iterations
        self.register_buffer("direction", start_direction(self._direction_shape()))
        with torch.no_grad():
            self.direction.copy_(self._iterate(self.weight, _WARM_UP)[1])

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, O, H', W']."""
        y = apply_conv(x, self.effective_weight(), self.geometry)
        return y if self.bias is None else y + self.bias[:, None, None]

    def estimate_norms(self, weight: Tensor) -> Tensor:
        """[groups], or [1] of the reshaped weights; warm from step to step."""
        if self.norm == "operator" and self._is_closed_form():
            return conv_gram_bound(weight, self.geometry)
        sigma, direction = self._iterate(weight, self.num_iterations)
        with torch.no_grad():
            self.direction.copy_(direction)
        return sigma

    def bound_norms(self, weight: Tensor) -> Tensor:
        """[groups], or [1] of the reshaped weights."""
        if self.norm == "reshaped":
            return torch.tensor([reshaped_norm_bound(weight)], dtype=torch.float64)
        return torch.tensor(conv_norm_bound(weight, self.geometry), dtype=torch.float64)

    def to_quantized(
        self,
        *,
        x_scale: float,
        x_zero_point: int,
        y_scale: float,
        y_zero_point: int,
        y_min: int = 0,
        y_max: int = 255,
    ) -> "QuantizedConv2d":
        """The layer as integers, for inputs and outputs of these scales.

        Args:
            x_scale: Scale of the input.
            x_zero_point: Its zero point.
            y_scale: Scale of the output.
            y_zero_point: Its zero point.
            y_min: Smallest output.
            y_max: Largest output.

        Raises:
            ConfigError: There is no integer kernel for the layer's geometry.
        """
        stride, padding, dilation = (
            self.geometry.stride,
            self.geometry.padding,
            self.geometry.dilation,
        )
        if stride[0] != stride[1] or padding[0] != padding[1] or dilation != (1, 1):
            raise ConfigError(
                "an integer convolution wanted equal strides, equal paddings and dilation 1, "
                f"got stride {stride}, padding {padding}, dilation {dilation}"
            )
        integers, w_scale = self.quantized_weight()
        bias = integers.new_zeros(integers.shape[0], dtype=torch.float32)
        if self.bias is not None:
            bias = self.bias.detach()
        return QuantizedConv2d(
            integers,
            bias_to_int32(bias, x_scale, w_scale),
            w_scale,
            x_scale=x_scale,
            x_zero_point=x_zero_point,
            y_scale=y_scale,
            y_zero_point=y_zero_point,
            y_min=y_min,
            y_max=y_max,
            stride=stride[0],
            padding=padding[0],
            groups=self.geometry.groups,
        )

    def extra_repr(self) -> str:
        return (
            f"{tuple(self.weight.shape)}, {self.geometry}, bound={self.bound}, "
            f"num_bits={self.num_bits}, norm={self.norm!r}"
        )

    def _is_closed_form(self) -> bool:
        """Whether each frequency's matrix has one row or column."""
        columns = self.weight.shape[1] * math.prod(self.geometry.stride)
        return min(self.weight.shape[0] // self.geometry.groups, columns) == 1

    def _direction_shape(self) -> tuple[int, ...]:
        if self.norm == "reshaped":
            return (self.weight[0].numel(),)
        channels = self.weight.shape[1] * self.geometry.groups
        if self.weight.shape[2:] == (1, 1) and self.geometry.padding == (0, 0):
            return (1, channels, 1, 1)
        spans = (
            d * (k - 1) + 1
            for d, k in zip(self.geometry.dilation, self.weight.shape[2:], strict=True)
        )
        return (1, channels, *(max(_IMAGE_SIZE, 2 * span) for span in spans))

    def _iterate(self, weight: Tensor, num_iterations: int) -> tuple[Tensor, Tensor]:
        if self.norm == "reshaped":
            sigma, direction = power_iteration(
                weight.flatten(1), self.direction, num_iterations=num_iterations
            )
            return sigma.reshape(1), direction
        return conv_power_iteration(
            weight, self.direction, self.geometry, num_iterations=num_iterations
        )


class QuantizedConv2d(nn.Module):
    """A frozen convolution: bytes in, bytes out.

    Args:
        weight: int8, [O, C / groups, kh, kw].
        bias: int32, [O].
        weight_scale: float32, [O] or [1].
        x_scale: Scale of the input.
        x_zero_point: Its zero point.
        y_scale: Scale of the output.
        y_zero_point: Its zero point.
        y_min: Smallest output.
        y_max: Largest output.
        stride: Pixels between windows.
        padding: Zeros on each side, in pixels.
        groups: Equal parts of the channels that do not mix.
        backend: None: the fastest here.

    Raises:
        ConfigError: A scale is not positive.
    """

    weight: Tensor
    bias: Tensor
    weight_scale: Tensor
    multiplier: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        weight_scale: Tensor,
        *,
        x_scale: float,
        x_zero_point: int,
        y_scale: float,
        y_zero_point: int,
        y_min: int = 0,
        y_max: int = 255,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        backend: Backend | str | None = None,
    ) -> None:
        super().__init__()
        if not (x_scale > 0 and y_scale > 0):
            raise ConfigError(f"wanted positive scales, got x {x_scale} and y {y_scale}")
        multiplier = output_multiplier(x_scale, weight_scale.cpu().numpy(), y_scale)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("multiplier", torch.from_numpy(multiplier).to(weight.device))
        self.x_scale, self.x_zero_point = x_scale, x_zero_point
        self.y_scale, self.y_zero_point = y_scale, y_zero_point
        self.y_min, self.y_max = y_min, y_max
        self.stride, self.padding, self.groups = stride, padding, groups
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> uint8 [N, O, H', W']."""
        return quantized_conv2d(
            x,
            self.weight,
            self.bias,
            self.multiplier,
            x_zero_point=self.x_zero_point,
            y_zero_point=self.y_zero_point,
            y_min=self.y_min,
            y_max=self.y_max,
            stride=self.stride,
            padding=self.padding,
            groups=self.groups,
            backend=self.backend,
        )

    def real_weight(self) -> Tensor:
        """What the integers stand for, float64, [O, C / groups, kh, kw]."""
        return self.weight.double() * self.weight_scale.double()[:, None, None, None]


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
