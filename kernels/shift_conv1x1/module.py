"""The folded shift as a layer, and as what a trained convolution becomes."""

import math

import torch
from torch import Tensor, nn

from effdl.errors import ConfigError
from effdl.kernels.backend import Backend
from effdl.kernels.shift_conv1x1.op import Activation, Direction, shift_conv1x1

__all__ = ["ShiftConv1x1"]


class ShiftConv1x1(nn.Module):
    """`shift_conv1x1` with parameters named as those of `torch.nn.Conv2d`.

    Args:
        in_channels: C.
        out_channels: O.
        num_segments: T, frames of a clip.
        fold_div: As for `shift_conv1x1`.
        direction: As for `shift_conv1x1`.
        causal: As for `shift_conv1x1`.
        stride: As for `shift_conv1x1`.
        bias: Whether there is one.
        activation: As for `shift_conv1x1`.
        backend: As for `shift_conv1x1`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_segments: int,
        fold_div: int = 8,
        direction: Direction = "mit",
        causal: bool = False,
        stride: int = 1,
        bias: bool = True,
        activation: Activation | None = None,
        backend: Backend | str | None = None,
    ) -> None:
        super().__init__()
        self.num_segments, self.fold_div = num_segments, fold_div
        self.direction: Direction = direction
        self.causal, self.stride = causal, stride
        self.activation: Activation | None = activation
        self.backend = backend
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        bound = 1 / math.sqrt(in_channels)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    @classmethod
    def from_conv(
        cls,
        conv: nn.Conv2d,
        norm: nn.BatchNorm2d | None = None,
        *,
        num_segments: int,
        fold_div: int = 8,
        direction: Direction = "mit",
        causal: bool = False,
        activation: Activation | None = None,
        backend: Backend | str | None = None,
    ) -> "ShiftConv1x1":
        """A 1x1 convolution of shifted frames, with the batch normalisation after it folded in.

        Args:
            conv: Of kernel size 1, one group and no padding; its parameters are copied.
            norm: Applied with its running statistics, as in evaluation; None: there is none.
            num_segments: As for `shift_conv1x1`.
            fold_div: As for `shift_conv1x1`.
            direction: As for `shift_conv1x1`.
            causal: As for `shift_conv1x1`.
            activation: As for `shift_conv1x1`.
            backend: As for `shift_conv1x1`.

        Raises:
            ConfigError: Another kind of convolution, or a normalisation without statistics.
        """
        stride = conv.stride[0]
        wanted = {"kernel_size": (1, 1), "groups": 1, "padding": (0, 0), "stride": (stride, stride)}
        got = {name: getattr(conv, name) for name in wanted}
        if got != wanted:
            raise ConfigError(f"conv: wanted a 1x1 convolution with {wanted}, got {got}")
        with torch.no_grad():
            weight, bias = conv.weight.clone(), conv.bias
            if norm is not None:
                if norm.running_mean is None or norm.running_var is None:
                    raise ConfigError("norm: wanted one with running statistics, got one without")
                scale = torch.rsqrt(norm.running_var + norm.eps)
                if norm.weight is not None:
                    scale = scale * norm.weight
                centre = norm.running_mean if bias is None else norm.running_mean - bias
                bias = -centre * scale if norm.bias is None else norm.bias - centre * scale
                weight = weight * scale[:, None, None, None]
            layer = cls(
                conv.in_channels,
                conv.out_channels,
                num_segments=num_segments,
                fold_div=fold_div,
                direction=direction,
                causal=causal,
                stride=stride,
                bias=bias is not None,
                activation=activation,
                backend=backend,
            ).to(weight)
            layer.weight.copy_(weight)
            if layer.bias is not None and bias is not None:
                layer.bias.copy_(bias)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Frames [N*T, C, H, W] -> [N*T, O, H', W']."""
        return shift_conv1x1(
            x,
            self.weight,
            self.bias,
            num_segments=self.num_segments,
            fold_div=self.fold_div,
            direction=self.direction,
            causal=self.causal,
            stride=self.stride,
            activation=self.activation,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        outputs, inputs = self.weight.shape[:2]
        return (
            f"{inputs}, {outputs}, num_segments={self.num_segments}, fold_div={self.fold_div}, "
            f"direction={self.direction!r}, causal={self.causal}, stride={self.stride}, "
            f"bias={self.bias is not None}, activation={self.activation!r}"
        )
