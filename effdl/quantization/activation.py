"""Quantizers of activations: the paper's fixed range, a tracked range and a learned one."""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from effdl.errors import ConfigError
from effdl.kernels.fake_quantize import fake_quantize, fake_quantize_as
from effdl.kernels.quantization import (
    QuantizationParameters,
    asymmetric_parameters,
    integer_range,
    relu6_parameters,
)

__all__ = ["ActivationQuantizer", "LearnedQuantizer", "QuantizedReLU6", "TrackedQuantizer"]


class ActivationQuantizer(nn.Module):
    """Rounds to a grid; gradients pass straight through within its range."""

    @abstractmethod
    def quantization(self) -> QuantizationParameters:
        """The grid now."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, kept."""
        return fake_quantize_as(x, self.quantization())


class QuantizedReLU6(ActivationQuantizer):
    """ReLU6, then ``num_bits``-bit quantization of [0, 6].

    Gradients are ReLU6's: the grid alone would pass them half a step further.
    q(x) = round(x (2^n - 1) / 6) * 6 / (2^n - 1) behind the ReLU6, as in Defensive
    Quantization (Lin, Gan and Han, ICLR 2019, arXiv:1904.08444).

    Args:
        num_bits: n, 1 to 8.

    Raises:
        ConfigError: Wrong ``num_bits``.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, num_bits: int) -> None:
        super().__init__()
        parameters = relu6_parameters(num_bits)
        self.num_bits = num_bits
        self.register_buffer("scale", parameters.scale, persistent=False)
        self.register_buffer("zero_point", parameters.zero_point, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.relu6(x))

    def quantization(self) -> QuantizationParameters:
        return QuantizationParameters(
            scale=self.scale,
            zero_point=self.zero_point,
            quant_min=0,
            quant_max=2**self.num_bits - 1,
        )

    def extra_repr(self) -> str:
        return f"num_bits={self.num_bits}"


class TrackedQuantizer(ActivationQuantizer):
    """The range is a moving average of each training batch's smallest and largest number.

    In evaluation it stands still.

    Args:
        num_bits: 1 to 8.
        momentum: Share of a new batch in the average; the first batch sets it.

    Raises:
        ConfigError: A wrong number.
    """

    low: Tensor
    high: Tensor
    is_set: Tensor

    def __init__(self, num_bits: int, *, momentum: float = 0.01) -> None:
        super().__init__()
        integer_range(num_bits, signed=False)
        if not 0 < momentum <= 1:
            raise ConfigError(f"momentum: wanted above 0 and at most 1, got {momentum}")
        self.num_bits, self.momentum = num_bits, momentum
        self.register_buffer("low", torch.zeros(1))
        self.register_buffer("high", torch.zeros(1))
        self.register_buffer("is_set", torch.zeros(1, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel():
            self._track(x)
        return super().forward(x)

    def quantization(self) -> QuantizationParameters:
        return asymmetric_parameters(self.low, self.high, self.num_bits)

    def extra_repr(self) -> str:
        return f"num_bits={self.num_bits}, momentum={self.momentum}"

    @torch.no_grad()
    def _track(self, x: Tensor) -> None:
        for average, new in ((self.low, x.amin()), (self.high, x.amax())):
            moved = average + self.momentum * (new.float() - average)
            average.copy_(torch.where(self.is_set, moved, new.float()))
        self.is_set.fill_(True)


class LearnedQuantizer(ActivationQuantizer):
    """The step of the grid is learned: LSQ (Esser et al., ICLR 2020, arXiv:1902.08153).

    For activations behind a ReLU: from 0 on. The first training batch sets the step to
    2 mean|x| / sqrt(largest integer).

    Args:
        num_bits: 1 to 8.

    Raises:
        ConfigError: Wrong ``num_bits``.
    """

    is_set: Tensor

    def __init__(self, num_bits: int) -> None:
        super().__init__()
        self.quant_max = integer_range(num_bits, signed=False)[1]
        self.num_bits = num_bits
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.register_buffer("is_set", torch.zeros(1, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel():
            with torch.no_grad():
                first = (2 * x.float().abs().mean() / self.quant_max**0.5).clamp_min(1e-8).log()
                self.log_scale.copy_(torch.where(self.is_set, self.log_scale, first))
                self.is_set.fill_(True)
        scale = self.log_scale.float().exp()
        # LSQ's gradient scale: a step gathers the gradients of all numbers it rounds.
        share = (max(x.numel(), 1) * self.quant_max) ** -0.5
        scale = scale * share + (scale * (1 - share)).detach()
        return fake_quantize(
            x,
            scale,
            torch.zeros_like(scale, dtype=torch.int32),
            quant_min=0,
            quant_max=self.quant_max,
        )

    def quantization(self) -> QuantizationParameters:
        scale = self.log_scale.detach().float().exp()
        return QuantizationParameters(
            scale=scale,
            zero_point=torch.zeros_like(scale, dtype=torch.int32),
            quant_min=0,
            quant_max=self.quant_max,
        )

    def extra_repr(self) -> str:
        return f"num_bits={self.num_bits}"
