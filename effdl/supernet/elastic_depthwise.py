"""A depthwise convolution with an elastic kernel.

A smaller kernel is the centre of the next larger one, mixed by a learned
square matrix that all channels share: for 7 -> 5 the 25 centre weights times a
25 x 25 matrix, then for 5 -> 3 its 9 centre weights times a 9 x 9 matrix.
Source: Cai et al., ICLR 2020 (arXiv 1908.09791), section 3.3.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effdl.supernet.blank_layers import BlankConv2d

__all__ = ["ElasticDepthwiseConv2d", "transform_kernel"]


def transform_kernel(weight: Tensor, matrix: Tensor) -> Tensor:
    """The next smaller kernel of every channel.

    ``out[c] = matrix @ flatten(centre(weight[c]))``, the centre as large as
    the result.

    Args:
        weight: Kernels [channels, 1, K, K], K odd.
        matrix: Transformation [k * k, k * k], k odd and less than K.

    Returns:
        Kernels [channels, 1, k, k].
    """
    size = round(matrix.shape[0] ** 0.5)
    start = (weight.shape[-1] - size) // 2
    centre = weight[:, :, start : start + size, start : start + size]
    flat = F.linear(centre.reshape(-1, size * size), matrix)
    return flat.view(-1, 1, size, size)


class ElasticDepthwiseConv2d(nn.Module):
    """A depthwise convolution without bias, elastic in channels and kernel.

    Its transformation matrices are the parameters ``7to5_matrix``,
    ``5to3_matrix`` and so on, one for each step between neighbouring kernel
    sizes; they begin as identities.

    Args:
        max_channels: Most channels.
        kernel_sizes: Odd kernel sizes that it can have.
        stride: Stride.
    """

    def __init__(self, max_channels: int, kernel_sizes: Sequence[int], stride: int) -> None:
        super().__init__()
        descending = sorted(kernel_sizes, reverse=True)
        largest = descending[0]
        self._stride = stride
        self.conv = BlankConv2d(
            max_channels,
            max_channels,
            largest,
            stride,
            largest // 2,
            groups=max_channels,
            bias=False,
        )
        self._matrices: list[str] = []
        for larger, smaller in pairwise(descending):
            name = f"{larger}to{smaller}_matrix"
            self._matrices.append(name)
            self.register_parameter(name, nn.Parameter(torch.eye(smaller * smaller)))

    def weight(self, channels: int, kernel_size: int) -> Tensor:
        """The weight [channels, 1, kernel_size, kernel_size] after its transformations."""
        weight = self.conv.weight[:channels]
        for name in self._matrices:
            if weight.shape[-1] <= kernel_size:
                break
            weight = transform_kernel(weight, self.get_parameter(name))
        return weight

    def forward(self, x: Tensor, kernel_size: int) -> Tensor:
        """[batch, channels, h, w] to [batch, channels, ceil(h / stride), ceil(w / stride)]."""
        channels = x.shape[1]
        weight = self.weight(channels, kernel_size)
        return F.conv2d(x, weight, stride=self._stride, padding=kernel_size // 2, groups=channels)

    def slices(self, channels: int, kernel_size: int) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of the plain convolution that it stands for."""
        yield "weight", self.weight(channels, kernel_size)
