"""A 1x1 convolution of which any leading channels can be used."""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from effdl.supernet.blank_layers import BlankConv2d

__all__ = ["ElasticPointwiseConv2d"]


class ElasticPointwiseConv2d(nn.Module):
    """A 1x1 convolution without bias; sub-networks share its leading channels.

    Args:
        max_in_channels: Most input channels.
        max_out_channels: Most output channels.
    """

    def __init__(self, max_in_channels: int, max_out_channels: int) -> None:
        super().__init__()
        self.conv = BlankConv2d(max_in_channels, max_out_channels, 1, bias=False)

    def weight(self, in_channels: int, out_channels: int) -> Tensor:
        """The first channels' weight [out_channels, in_channels, 1, 1], a view."""
        return self.conv.weight[:out_channels, :in_channels]

    def forward(self, x: Tensor, out_channels: int) -> Tensor:
        """[batch, in_channels, h, w] to [batch, out_channels, h, w]."""
        return F.conv2d(x, self.weight(x.shape[1], out_channels).contiguous())

    def slices(self, in_channels: int, out_channels: int) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of the plain convolution that it stands for."""
        yield "weight", self.weight(in_channels, out_channels)
