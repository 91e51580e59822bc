"""An inverted residual block, elastic in its middle width and its kernel."""

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor, nn

from effdl.supernet.elastic_batch_norm import ElasticBatchNorm2d
from effdl.supernet.elastic_depthwise import ElasticDepthwiseConv2d
from effdl.supernet.elastic_pointwise import ElasticPointwiseConv2d
from effdl.supernet.elastic_squeeze_excite import ElasticSqueezeExcite

__all__ = ["ElasticInvertedResidual"]

_Slices = Iterator[tuple[str, Tensor]]


class _Pointwise(nn.Module):
    """Elastic 1x1 convolution and batch norm."""

    def __init__(self, max_in_channels: int, max_out_channels: int) -> None:
        super().__init__()
        self.conv = ElasticPointwiseConv2d(max_in_channels, max_out_channels)
        self.bn = ElasticBatchNorm2d(max_out_channels)

    def forward(self, x: Tensor, out_channels: int) -> Tensor:
        return self.bn(self.conv(x, out_channels))

    def slices(self, in_channels: int, out_channels: int) -> _Slices:
        yield from _prefixed("conv", self.conv.slices(in_channels, out_channels))
        yield from _prefixed("bn", self.bn.slices(out_channels))


class _Depthwise(nn.Module):
    """Elastic depthwise convolution, batch norm, activation and squeeze-excite."""

    def __init__(
        self,
        max_channels: int,
        max_squeeze_channels: int | None,
        kernel_sizes: Sequence[int],
        stride: int,
        activation: nn.Module,
    ) -> None:
        super().__init__()
        self.conv = ElasticDepthwiseConv2d(max_channels, kernel_sizes, stride)
        self.bn = ElasticBatchNorm2d(max_channels)
        self.act = activation
        self.se = (
            None
            if max_squeeze_channels is None
            else ElasticSqueezeExcite(max_channels, max_squeeze_channels)
        )

    def forward(self, x: Tensor, kernel_size: int, squeeze_channels: int) -> Tensor:
        x = self.act(self.bn(self.conv(x, kernel_size)))
        return x if self.se is None else self.se(x, squeeze_channels)

    def slices(self, channels: int, kernel_size: int, squeeze_channels: int) -> _Slices:
        yield from _prefixed("conv", self.conv.slices(channels, kernel_size))
        yield from _prefixed("bn", self.bn.slices(channels))
        if self.se is not None:
            yield from _prefixed("se", self.se.slices(channels, squeeze_channels))


class _ElasticInvertedBottleneck(nn.Module):
    """Expansion, depthwise and projection; the names are those of OFA's checkpoints."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        max_mid_channels: int,
        depth_conv: _Depthwise,
        activation: nn.Module,
    ) -> None:
        super().__init__()
        self.inverted_bottleneck = _Pointwise(in_channels, max_mid_channels)
        self.act = activation
        self.depth_conv = depth_conv
        self.point_linear = _Pointwise(max_mid_channels, out_channels)


class ElasticInvertedResidual(nn.Module):
    """Expand 1x1, depthwise, squeeze-excite, project 1x1, and the shortcut.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        max_mid_channels: Most channels of the depthwise convolution.
        max_squeeze_channels: Most channels inside the squeeze-excite gate, or
            None for no gate.
        kernel_sizes: Depthwise kernel sizes that it can have.
        stride: Depthwise stride.
        activation: After expansion and depthwise; without weights.
        skip: Whether the input is added to the output.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        max_mid_channels: int,
        max_squeeze_channels: int | None,
        kernel_sizes: Sequence[int],
        stride: int,
        activation: nn.Module,
        skip: bool,
    ) -> None:
        super().__init__()
        self._in_channels, self._out_channels, self._skip = in_channels, out_channels, skip
        depth_conv = _Depthwise(
            max_mid_channels, max_squeeze_channels, kernel_sizes, stride, activation
        )
        self.conv = _ElasticInvertedBottleneck(
            in_channels, out_channels, max_mid_channels, depth_conv, activation
        )

    def forward(
        self, x: Tensor, *, mid_channels: int, kernel_size: int, squeeze_channels: int
    ) -> Tensor:
        """[batch, in_channels, h, w] to [batch, out_channels, h / stride, w / stride].

        Args:
            x: Input.
            mid_channels: Channels of the depthwise convolution.
            kernel_size: Depthwise kernel.
            squeeze_channels: Channels inside the squeeze-excite gate, if it has one.
        """
        conv = self.conv
        y = conv.act(conv.inverted_bottleneck(x, mid_channels))
        y = conv.point_linear(conv.depth_conv(y, kernel_size, squeeze_channels), self._out_channels)
        return x + y if self._skip else y

    def slices(self, *, mid_channels: int, kernel_size: int, squeeze_channels: int) -> _Slices:
        """Names and tensors of the plain block that it stands for; views where possible."""
        conv = self.conv
        parts = (
            (
                "inverted_bottleneck",
                conv.inverted_bottleneck.slices(self._in_channels, mid_channels),
            ),
            ("depth_conv", conv.depth_conv.slices(mid_channels, kernel_size, squeeze_channels)),
            ("point_linear", conv.point_linear.slices(mid_channels, self._out_channels)),
        )
        for name, slices in parts:
            yield from _prefixed(f"conv.{name}", slices)


def _prefixed(prefix: str, slices: Iterable[tuple[str, Tensor]]) -> _Slices:
    for name, tensor in slices:
        yield f"{prefix}.{name}", tensor
