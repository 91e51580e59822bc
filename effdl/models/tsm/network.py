"""TSM: image networks that exchange channels between neighbouring frames.

Source: Lin, Gan and Han, ICCV 2019 (arXiv 1811.08383). Where the shifts stand follows
github.com/mit-han-lab/temporal-shift-module (MIT): in front of the first convolution
of a residual branch, so that the identity path sees its own frame ("residual shift").
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from effdl.errors import ConfigError, UnknownNameError
from effdl.kernels.backend import Backend
from effdl.kernels.shift_conv1x1.op import shift_conv1x1
from effdl.kernels.temporal_shift.op import Direction, temporal_shift
from effdl.models.mobilenet_v2.network import InvertedResidual, MobileNetV2, mobilenet_v2
from effdl.models.resnet.network import ResNet, resnet50, resnet101

__all__ = [
    "TSM",
    "ShiftForm",
    "ShiftOptions",
    "ShiftedConv2d",
    "tsm_mobilenet_v2",
    "tsm_resnet50",
    "tsm_resnet101",
]

ShiftForm = Literal["folded", "separate", "none"]
"""How a shift is computed: inside the convolution, before it, or not at all."""

_FORMS = ("folded", "separate", "none")
# From this many blocks in the third stage on, only every second block is shifted.
_MANY_BLOCKS = 23


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftOptions:
    """How the frames of a clip exchange channels.

    Attributes:
        num_segments: T, frames of a clip.
        fold_div: One part in so many of the channels comes from each neighbour.
        direction: ``"mit"``: the first part comes from the next frame, as in the authors'
            code and mmaction2; ``"paddle"``: from the previous one.
        causal: Whether frames only see the past.
        form: How shifts are computed. Outputs are equal to float32 rounding, and weights
            have the same names; ``"none"`` is the image network, frame by frame (TSN).
        backend: Implementation of the kernels; None: the fastest that is here.

    Raises:
        ConfigError: T is not positive, or ``causal`` has a direction or no shift to act on.
        UnknownNameError: There is no such form.
    """

    num_segments: int = 8
    fold_div: int = 8
    direction: Direction = "mit"
    causal: bool = False
    form: ShiftForm = "folded"
    backend: Backend | None = None

    def __post_init__(self) -> None:
        if self.form not in _FORMS:
            raise UnknownNameError("form of the shift", self.form, _FORMS)
        if self.num_segments < 1:
            raise ConfigError(f"num_segments: wanted 1 or more, got {self.num_segments}")
        if self.form == "none" and (self.causal or self.direction != "mit"):
            raise ConfigError(
                "a network without shifts has no direction: wanted the defaults of causal and "
                f"direction, got causal={self.causal} and direction={self.direction!r}",
                hint='form="separate" or form="folded" shifts',
            )


class ShiftedConv2d(nn.Module):
    """A convolution of temporally shifted frames; it has the weights of the convolution.

    Args:
        convolution: Gives its parameters, which become this module's, and its shape.
        options: How to shift.

    Raises:
        ConfigError: The folded form of a convolution that is not plain 1x1.
    """

    def __init__(self, convolution: nn.Conv2d, options: ShiftOptions) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.stride, self.padding = convolution.stride, convolution.padding
        self.dilation, self.groups = convolution.dilation, convolution.groups
        plain = tuple(self.weight.shape[2:]) == self.stride == (1, 1) and self.groups == 1
        plain = plain and self.padding == (0, 0)
        if options.form == "folded" and not plain:
            raise ConfigError(
                f"a shift folds into a 1x1 convolution of stride 1: got one of weights "
                f"{list(self.weight.shape)}, stride {self.stride} and {self.groups} groups",
                hint='form="separate" shifts before any convolution',
            )
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        """[N*T, in_channels, h, w] to [N*T, out_channels, h / stride, w / stride]."""
        options = self.options
        # The exporter folds batch norms only into weights that nothing reshapes.
        if options.form == "folded" and not torch.onnx.is_in_onnx_export():
            return shift_conv1x1(
                x,
                self.weight,
                self.bias,
                num_segments=options.num_segments,
                fold_div=options.fold_div,
                direction=options.direction,
                causal=options.causal,
                backend=options.backend,
            )
        shifted = temporal_shift(
            x,
            num_segments=options.num_segments,
            fold_div=options.fold_div,
            direction=options.direction,
            causal=options.causal,
            backend=options.backend,
        )
        return functional.conv2d(
            shifted, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class TSM(nn.Module):
    """A video classifier: an image network with shifts, and the mean over frames.

    Args:
        backbone: The image network; convolutions of it are replaced by shifted ones with
            the same weights and names.
        options: How to shift.

    Raises:
        ConfigError: The folded form, and a convolution to shift that is not 1x1.
    """

    def __init__(self, backbone: ResNet | MobileNetV2, options: ShiftOptions) -> None:
        super().__init__()
        self.backbone, self.options = backbone, options
        self.shifted_names = tuple(name for name, _, _ in _to_shift(backbone))
        if options.form != "none":
            for _, parent, attribute in list(_to_shift(backbone)):
                convolution = getattr(parent, attribute)
                setattr(parent, attribute, ShiftedConv2d(convolution, options))

    def frame_logits(self, clips: Tensor) -> Tensor:
        """Logits of every frame [N, T, num_classes] of clips [N, T, 3, height, width].

        Raises:
            ConfigError: Another rank, number of frames or number of channels.
        """
        num_segments = self.options.num_segments
        if clips.dim() != 5 or tuple(clips.shape[1:3]) != (num_segments, 3):
            raise ConfigError(
                f"clips do not fit the network: wanted [batch, {num_segments}, 3, height, width], "
                f"got {list(clips.shape)}"
            )
        return self.backbone(clips.flatten(0, 1)).unflatten(0, (-1, num_segments))

    def forward(self, clips: Tensor) -> Tensor:
        """Logits [N, num_classes] of clips [N, T, 3, height, width].

        Raises:
            ConfigError: Another rank, number of frames or number of channels.
        """
        return self.frame_logits(clips).mean(1)


def _to_shift(backbone: ResNet | MobileNetV2) -> Iterator[tuple[str, nn.Module, str]]:
    """Name, parent and attribute of every convolution that is shifted."""
    if isinstance(backbone, ResNet):
        every = 2 if len(backbone.layer3) >= _MANY_BLOCKS else 1
        for index, stage in enumerate(backbone.stages, start=1):
            for position in range(0, len(stage), every):
                yield f"layer{index}.{position}.conv1", stage[position], "conv1"
        return
    for index, block in enumerate(backbone.features):
        if isinstance(block, InvertedResidual) and block.has_residual and block.expansion:
            yield f"features.{index}.conv.0.0", block.expansion, "0"


def tsm_resnet50(num_classes: int = 400, *, options: ShiftOptions | None = None) -> TSM:
    """TSM over ResNet-50, all 16 blocks shifted; random weights."""
    return TSM(resnet50(num_classes), options or ShiftOptions())


def tsm_resnet101(num_classes: int = 400, *, options: ShiftOptions | None = None) -> TSM:
    """TSM over ResNet-101, every second block of a stage shifted; random weights."""
    return TSM(resnet101(num_classes), options or ShiftOptions())


def tsm_mobilenet_v2(num_classes: int = 400, *, options: ShiftOptions | None = None) -> TSM:
    """TSM over MobileNetV2, the ten blocks with expansion and residual shifted; random weights."""
    return TSM(mobilenet_v2(num_classes), options or ShiftOptions())
