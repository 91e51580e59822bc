"""Layers of a plain MobileNetV3, built from the shapes of its operators.

Sub-modules carry the names of Once-for-All's checkpoints.
"""

from collections import OrderedDict

from torch import Tensor, nn

from effdl.models.mobilenet_v3.operators import Activation, BlockShape, ConvShape, LinearShape
from effdl.supernet.blank_layers import BlankConv2d, BlankLinear
from effdl.supernet.global_mean import global_mean

__all__ = ["InvertedResidual", "SqueezeExcite", "activation", "classifier", "convolution"]


def activation(name: Activation) -> nn.Module:
    """The activation called ``name``; it overwrites its input."""
    return nn.ReLU(inplace=True) if name == "relu" else nn.Hardswish(inplace=True)


def convolution(shape: ConvShape) -> nn.Sequential:
    """A dense convolution, batch norm if the shape has one, and hard swish."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = BlankConv2d(
        shape.in_channels,
        shape.out_channels,
        shape.kernel_size,
        shape.stride,
        shape.kernel_size // 2,
        bias=False,
    )
    if shape.batch_norm:
        layers["bn"] = nn.BatchNorm2d(shape.out_channels)
    layers["act"] = activation("hswish")
    return nn.Sequential(layers)


def classifier(shape: LinearShape) -> nn.Sequential:
    """The linear layer with bias."""
    return nn.Sequential(OrderedDict(linear=BlankLinear(shape.in_features, shape.out_features)))


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate worked out from all channels' means.

    Args:
        channels: Channels of the input.
        squeeze_channels: Channels between the gate's two convolutions.
    """

    def __init__(self, channels: int, squeeze_channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            OrderedDict(
                reduce=BlankConv2d(channels, squeeze_channels, 1),
                relu=nn.ReLU(inplace=True),
                expand=BlankConv2d(squeeze_channels, channels, 1),
                h_sigmoid=nn.Hardsigmoid(),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, h, w] to the same shape."""
        return x * self.fc(global_mean(x))


class _InvertedBottleneck(nn.Sequential):
    """Expansion (if any), depthwise with squeeze-excite (if any), projection."""

    def __init__(self, shape: BlockShape) -> None:
        mid = shape.mid_channels
        depthwise: OrderedDict[str, nn.Module] = OrderedDict(
            conv=BlankConv2d(
                mid,
                mid,
                shape.kernel_size,
                shape.stride,
                shape.kernel_size // 2,
                groups=mid,
                bias=False,
            ),
            bn=nn.BatchNorm2d(mid),
            act=activation(shape.activation),
        )
        if shape.squeeze_excite:
            depthwise["se"] = SqueezeExcite(mid, shape.squeeze_channels)
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        if shape.expand:
            stages["inverted_bottleneck"] = nn.Sequential(
                OrderedDict(
                    conv=BlankConv2d(shape.in_channels, mid, 1, bias=False),
                    bn=nn.BatchNorm2d(mid),
                    act=activation(shape.activation),
                )
            )
        stages["depth_conv"] = nn.Sequential(depthwise)
        stages["point_linear"] = nn.Sequential(
            OrderedDict(
                conv=BlankConv2d(mid, shape.out_channels, 1, bias=False),
                bn=nn.BatchNorm2d(shape.out_channels),
            )
        )
        super().__init__(stages)


class InvertedResidual(nn.Module):
    """An inverted residual block of one shape; weights uninitialised.

    Args:
        shape: Its sizes.
    """

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.conv = _InvertedBottleneck(shape)
        self._skip = shape.skip

    def forward(self, x: Tensor) -> Tensor:
        """[batch, in_channels, h, w] to [batch, out_channels, h / stride, w / stride]."""
        return x + self.conv(x) if self._skip else self.conv(x)
