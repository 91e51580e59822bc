"""What a layer with quantized weights and a bounded norm does, whatever operator it applies.

The weights are quantized first; then the operator that the integers and their scales
make is measured, and the scales are shrunk until its norm is at most the bound. In
training the norm is power iteration's estimate from below, warm from step to step and
with a gradient; in evaluation, where the bound is promised, a bound from above.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from effdl.errors import ConfigError
from effdl.kernels.fake_quantize import fake_quantize_as
from effdl.kernels.quantization import (
    QuantizationParameters,
    integer_range,
    quantize,
    weight_parameters,
)
from effdl.kernels.spectral import shrink_factor

__all__ = ["LipschitzLayer"]

# Room for the rounding of the scales and of their products with the integers.
_MARGIN = 1 - 2.0**-20


class LipschitzLayer(nn.Module):
    """Quantized weights whose operator has at most a norm of ``bound``.

    A subclass says how an operator's norm is estimated and bounded, for each of its
    parts that do not mix.
    """

    certified_scale: Tensor

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, bound: float, num_bits: int, per_channel: bool
    ) -> None:
        super().__init__()
        if not 0 < bound < float("inf"):
            raise ConfigError(f"bound: wanted a positive number, got {bound}")
        integer_range(num_bits, signed=True, narrow=True)
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.bound = bound
        self.num_bits = num_bits
        self.per_channel = per_channel
        scale = weight.new_zeros(weight.shape[0] if per_channel else 1, dtype=torch.float32)
        self.register_buffer("certified_scale", scale, persistent=False)
        self._certified: tuple[int, int] | None = None

    @abstractmethod
    def estimate_norms(self, weight: Tensor) -> Tensor:
        """Norms of the parts of the operator with these weights, [parts], with a gradient."""

    @abstractmethod
    def bound_norms(self, weight: Tensor) -> Tensor:
        """What the norms of the parts do not exceed, float64, [parts]."""

    def effective_weight(self) -> Tensor:
        """The weights as they are applied now, shaped as ``weight``, with gradients."""
        parameters = weight_parameters(self.weight, self.num_bits, per_channel=self.per_channel)
        quantized = fake_quantize_as(self.weight, parameters)
        if self.training:
            factor = self._by_scale(shrink_factor(self.estimate_norms(quantized), self.bound))
        else:
            self._certify_again()
            factor = self.certified_scale / parameters.scale
        return quantized * self._over_rows(factor.to(quantized.dtype))

    def quantized_weight(self) -> tuple[Tensor, Tensor]:
        """The weights as a deployed layer holds them.

        Returns:
            Integers, int8, shaped as ``weight``, and their scales, float32, [O] or [1]: the
            largest singular value of the operator of integers * scales is at most ``bound``.
        """
        weight = self.weight.detach()
        parameters = weight_parameters(weight, self.num_bits, per_channel=self.per_channel)
        integers = quantize(weight, parameters)
        return integers, self._certified_scale_of(integers, parameters)

    def train(self, mode: bool = True) -> "LipschitzLayer":
        """As `torch.nn.Module.train`; going to evaluation bounds the norm anew."""
        super().train(mode)
        if not mode:
            self._certify_again()
        return self

    @torch.no_grad()
    def _certify_again(self) -> None:
        if torch.compiler.is_compiling():
            return
        # Optimizers, loading and moving to a device all leave another version or place.
        state = (self.weight._version, self.weight.data_ptr())
        if state != self._certified:
            self.certified_scale.copy_(self.quantized_weight()[1])
            self._certified = state

    @torch.no_grad()
    def _certified_scale_of(self, integers: Tensor, parameters: QuantizationParameters) -> Tensor:
        scale = parameters.scale.double()
        norms = self.bound_norms(integers.double() * self._over_rows(scale))
        factor = self._by_scale(shrink_factor(norms.to(scale.device), self.bound))
        return (scale * factor * _MARGIN).float()

    def _by_scale(self, factor: Tensor) -> Tensor:
        """One factor for each scale from one for each part."""
        if not self.per_channel:
            return factor.min().reshape(1)
        return factor.repeat_interleave(self.weight.shape[0] // factor.shape[0])

    def _over_rows(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (self.weight.ndim - 1))
