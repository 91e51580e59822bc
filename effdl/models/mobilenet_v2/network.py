"""MobileNetV2 with torchvision's parameter names.

Source: Sandler et al., CVPR 2018 (arXiv 1801.04381), table 2.
"""

from typing import cast

from torch import Tensor, nn

from effdl.models.images import check_images

__all__ = ["InvertedResidual", "MobileNetV2", "mobilenet_v2"]

# expand_ratio, channels, depth and stride of the first block of each stage (table 2).
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM_CHANNELS, _LAST_CHANNELS = 32, 1280
_DROPOUT_PROB = 0.2


def round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of ``divisor`` that takes away at most a tenth."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def _conv_norm_relu6(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    padding = kernel_size // 2
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Expansion (if any), 3x3 depthwise convolution and linear projection.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Of the depthwise convolution.
        expand_ratio: Channels of the depthwise convolution over those of the input.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, expand_ratio: int
    ) -> None:
        super().__init__()
        mid_channels = in_channels * expand_ratio
        expands = expand_ratio != 1
        self.has_residual = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *([_conv_norm_relu6(in_channels, mid_channels, 1)] if expands else []),
            _conv_norm_relu6(mid_channels, mid_channels, 3, stride, groups=mid_channels),
            nn.Conv2d(mid_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    @property
    def expansion(self) -> nn.Sequential | None:
        """The 1x1 convolution that widens, with its norm and activation; None without one."""
        return cast(nn.Sequential, self.conv[0]) if len(self.conv) == 4 else None

    def forward(self, x: Tensor) -> Tensor:
        """[batch, in_channels, h, w] to [batch, out_channels, h / stride, w / stride]."""
        return x + self.conv(x) if self.has_residual else self.conv(x)


class MobileNetV2(nn.Module):
    """An image classifier of inverted residual blocks.

    Args:
        num_classes: Outputs of the classifier.
        width_mult: Factor of all numbers of channels.
    """

    def __init__(self, *, num_classes: int = 1000, width_mult: float = 1.0) -> None:
        super().__init__()
        in_channels = round_channels(_STEM_CHANNELS * width_mult)
        layers: list[nn.Module] = [_conv_norm_relu6(3, in_channels, 3, stride=2)]
        for expand_ratio, channels, depth, first_stride in _STAGES:
            out_channels = round_channels(channels * width_mult)
            for position in range(depth):
                layers.append(
                    InvertedResidual(
                        in_channels,
                        out_channels,
                        stride=first_stride if position == 0 else 1,
                        expand_ratio=expand_ratio,
                    )
                )
                in_channels = out_channels
        last_channels = round_channels(_LAST_CHANNELS * max(1.0, width_mult))
        layers.append(_conv_norm_relu6(in_channels, last_channels, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(_DROPOUT_PROB), nn.Linear(last_channels, num_classes)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, num_classes] of images [batch, 3, height, width].

        Raises:
            ConfigError: Another rank, or another number of channels.
        """
        check_images(x)
        return self.classifier(self.features(x).mean((2, 3)))


def mobilenet_v2(num_classes: int = 1000, width_mult: float = 1.0) -> MobileNetV2:
    """MobileNetV2 with random weights: 3,504,872 parameters as it stands."""
    return MobileNetV2(num_classes=num_classes, width_mult=width_mult)
