"""A squeeze-excite gate over the leading channels of a wider one."""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from effdl.supernet.blank_layers import BlankConv2d
from effdl.supernet.global_mean import global_mean

__all__ = ["ElasticSqueezeExcite"]


class _ElasticGate(nn.Module):
    """Two 1x1 convolutions with bias, relu between and hard sigmoid after them."""

    def __init__(self, max_channels: int, max_squeeze_channels: int) -> None:
        super().__init__()
        self.reduce = BlankConv2d(max_channels, max_squeeze_channels, 1)
        self.expand = BlankConv2d(max_squeeze_channels, max_channels, 1)

    def slices(self, channels: int, squeeze_channels: int) -> Iterator[tuple[str, Tensor]]:
        reduce, expand = self.reduce, self.expand
        assert reduce.bias is not None
        assert expand.bias is not None
        yield "reduce.weight", reduce.weight[:squeeze_channels, :channels]
        yield "reduce.bias", reduce.bias[:squeeze_channels]
        yield "expand.weight", expand.weight[:channels, :squeeze_channels]
        yield "expand.bias", expand.bias[:channels]

    def forward(self, mean: Tensor, squeeze_channels: int) -> Tensor:
        (_, reduce), (_, reduce_bias), (_, expand), (_, expand_bias) = self.slices(
            mean.shape[1], squeeze_channels
        )
        squeezed = F.relu(F.conv2d(mean, reduce.contiguous(), reduce_bias), inplace=True)
        return F.hardsigmoid(F.conv2d(squeezed, expand.contiguous(), expand_bias))


class ElasticSqueezeExcite(nn.Module):
    """Scales each channel by a gate worked out from the means of all channels in use.

    ``x * hard_sigmoid(expand(relu(reduce(mean(x)))))``. Source: Howard et al.
    2019 (arXiv 1905.02244), section 5.3.

    Args:
        max_channels: Most channels.
        max_squeeze_channels: Most channels between the two convolutions.
    """

    def __init__(self, max_channels: int, max_squeeze_channels: int) -> None:
        super().__init__()
        self.fc = _ElasticGate(max_channels, max_squeeze_channels)

    def forward(self, x: Tensor, squeeze_channels: int) -> Tensor:
        """[batch, channels, h, w] to the same shape."""
        return x * self.fc(global_mean(x), squeeze_channels)

    def slices(self, channels: int, squeeze_channels: int) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of the plain gate that it stands for."""
        for name, tensor in self.fc.slices(channels, squeeze_channels):
            yield f"fc.{name}", tensor
