"""Linear layers with quantized weights and a bounded norm: trained, and as bytes."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from effdl.errors import ConfigError
from effdl.kernels.backend import Backend
from effdl.kernels.lipschitz_layer import LipschitzLayer
from effdl.kernels.lipschitz_linear.op import quantized_linear
from effdl.kernels.quantization import bias_to_int32, output_multiplier
from effdl.kernels.spectral import norm_upper_bound, power_iteration, start_direction

__all__ = ["LipschitzLinear", "QuantizedLinear"]

# From a made direction the estimate is then within about a percent; each training step adds one.
_WARM_UP = 20


class LipschitzLinear(LipschitzLayer):
    """A linear layer for training with quantized weights whose norm is at most a bound.

    In training the norm is power iteration's estimate, so the layer's may exceed the
    bound by what is missing to convergence; in evaluation it does not exceed it.

    Args:
        in_features: K.
        out_features: N.
        bias: Add a learned bias.
        bound: What the largest singular value may be at most.
        num_bits: Of the weights, 2 to 8.
        per_channel: One scale for each output, or one in all.
        num_iterations: Of power iteration in each training step.

    Raises:
        ConfigError: A wrong number.
    """

    direction: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        bound: float = 1.0,
        num_bits: int = 8,
        per_channel: bool = True,
        num_iterations: int = 1,
    ) -> None:
        plain = nn.Linear(in_features, out_features, bias=bias)
        super().__init__(
            plain.weight.detach(),
            None if plain.bias is None else plain.bias.detach(),
            bound=bound,
            num_bits=num_bits,
            per_channel=per_channel,
        )
        self.num_iterations = num_iterations
        self.register_buffer("direction", start_direction((in_features,)))
        with torch.no_grad():
            warm = power_iteration(self.weight, self.direction, num_iterations=_WARM_UP)[1]
            self.direction.copy_(warm)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return functional.linear(x, self.effective_weight(), self.bias)

    def estimate_norms(self, weight: Tensor) -> Tensor:
        """[1]; the direction goes on from where the last step left it."""
        sigma, direction = power_iteration(
            weight, self.direction, num_iterations=self.num_iterations
        )
        with torch.no_grad():
            self.direction.copy_(direction)
        return sigma.reshape(1)

    def bound_norms(self, weight: Tensor) -> Tensor:
        """[1], within half a percent."""
        return torch.tensor([norm_upper_bound(weight)], dtype=torch.float64)

    def to_quantized(
        self,
        *,
        x_scale: float,
        x_zero_point: int,
        y_scale: float,
        y_zero_point: int,
        y_min: int = 0,
        y_max: int = 255,
    ) -> "QuantizedLinear":
        """The layer as integers, for inputs and outputs of these scales.

        Args:
            x_scale: Scale of the input.
            x_zero_point: Its zero point.
            y_scale: Scale of the output.
            y_zero_point: Its zero point.
            y_min: Smallest output.
            y_max: Largest output.
        """
        integers, w_scale = self.quantized_weight()
        bias = integers.new_zeros(integers.shape[0], dtype=torch.float32)
        if self.bias is not None:
            bias = self.bias.detach()
        return QuantizedLinear(
            integers,
            bias_to_int32(bias, x_scale, w_scale),
            w_scale,
            x_scale=x_scale,
            x_zero_point=x_zero_point,
            y_scale=y_scale,
            y_zero_point=y_zero_point,
            y_min=y_min,
            y_max=y_max,
        )

    def extra_repr(self) -> str:
        rows, columns = self.weight.shape
        return f"{columns}, {rows}, bound={self.bound}, num_bits={self.num_bits}"


class QuantizedLinear(nn.Module):
    """A frozen linear layer: bytes in, bytes out.

    Args:
        weight: int8, [N, K].
        bias: int32, [N].
        weight_scale: float32, [N] or [1].
        x_scale: Scale of the input.
        x_zero_point: Its zero point.
        y_scale: Scale of the output.
        y_zero_point: Its zero point.
        y_min: Smallest output.
        y_max: Largest output.
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
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """uint8 [M, K] -> uint8 [M, N]."""
        return quantized_linear(
            x,
            self.weight,
            self.bias,
            self.multiplier,
            x_zero_point=self.x_zero_point,
            y_zero_point=self.y_zero_point,
            y_min=self.y_min,
            y_max=self.y_max,
            backend=self.backend,
        )

    def real_weight(self) -> Tensor:
        """What the integers stand for, float64, [N, K]."""
        return self.weight.double() * self.weight_scale.double()[:, None]
