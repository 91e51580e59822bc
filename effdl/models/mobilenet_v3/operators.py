"""Operators of MobileNetV3 at one size, with their parameters, MACs and traffic.

Keys are those of Once-for-All's latency tables, so that such a table can be
used as it is (github.com/mit-han-lab/once-for-all, latency lookup tables).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from effdl.opspec import OpSpec

__all__ = ["Activation", "BlockShape", "ConvShape", "LinearShape", "PoolShape", "make_divisible"]

Activation = Literal["relu", "hswish"]

_FLOAT32_BYTES = 4


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round a width to a multiple of ``divisor``, never losing more than a tenth."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def _features(
    *,
    block: float = 0.0,
    squeeze_excite: float = 0.0,
    hswish: float = 0.0,
    skip: float = 0.0,
    pointwise_macs: float = 0.0,
    depthwise_macs: float = 0.0,
    dense_macs: float = 0.0,
    activation_elements: float = 0.0,
    image_pixels: float = 0.0,
) -> Mapping[str, float]:
    return {
        "block": block,
        "squeeze_excite": squeeze_excite,
        "hswish": hswish,
        "skip": skip,
        "pointwise_macs": pointwise_macs,
        "depthwise_macs": depthwise_macs,
        "dense_macs": dense_macs,
        "activation_elements": activation_elements,
        "image_pixels": image_pixels,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvShape:
    """A dense convolution with square kernel, then batch norm and activation, if any.

    Attributes:
        name: Its name in OFA's tables: ``Conv``, ``Conv_1`` or ``Conv_2``.
        in_size: Height and width of the input in pixels.
        in_channels: Input channels.
        out_channels: Output channels.
        kernel_size: Kernel height and width.
        stride: Stride.
        batch_norm: Whether batch norm follows.
    """

    name: str
    in_size: int
    in_channels: int
    out_channels: int
    kernel_size: int = 1
    stride: int = 1
    batch_norm: bool = True

    @property
    def out_size(self) -> int:
        return (self.in_size - 1) // self.stride + 1

    def spec(self) -> OpSpec:
        """The operator as a latency table sees it."""
        ins, outs = self.in_size**2 * self.in_channels, self.out_size**2 * self.out_channels
        weights = self.in_channels * self.out_channels * self.kernel_size**2
        macs = weights * self.out_size**2
        params = weights + (2 * self.out_channels if self.batch_norm else 0)
        image = self.in_size**2 if self.name == "Conv" else 0
        return OpSpec(
            key=f"{self.name}-input:{self.in_size}x{self.in_size}x{self.in_channels}"
            f"-output:{self.out_size}x{self.out_size}x{self.out_channels}",
            num_params=params,
            macs=macs,
            bytes_moved=_FLOAT32_BYTES * (ins + outs + weights),
            peak_memory_bytes=_FLOAT32_BYTES * (ins + outs),
            features=_features(dense_macs=macs, activation_elements=ins + outs, image_pixels=image),
            build=partial(_build, self),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolShape:
    """Global average pooling over ``in_size`` x ``in_size`` pixels of ``channels``."""

    in_size: int
    channels: int

    def spec(self) -> OpSpec:
        """The operator as a latency table sees it."""
        ins = self.in_size**2 * self.channels
        traffic = _FLOAT32_BYTES * (ins + self.channels)
        return OpSpec(
            key=f"AvgPool2D-input:{self.in_size}x{self.in_size}x{self.channels}"
            f"-output:1x1x{self.channels}",
            num_params=0,
            macs=0,
            bytes_moved=traffic,
            peak_memory_bytes=traffic,
            features=_features(activation_elements=ins + self.channels),
            build=partial(_build, self),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearShape:
    """The classifier: ``in_features`` to ``out_features``, with bias."""

    in_features: int
    out_features: int

    def spec(self) -> OpSpec:
        """The operator as a latency table sees it."""
        macs = self.in_features * self.out_features
        elements = self.in_features + self.out_features
        return OpSpec(
            key=f"Logits-input:1x1x{self.in_features}-output:{self.out_features}",
            num_params=macs + self.out_features,
            macs=macs,
            bytes_moved=_FLOAT32_BYTES * (elements + macs + self.out_features),
            peak_memory_bytes=_FLOAT32_BYTES * elements,
            features=_features(dense_macs=macs, activation_elements=elements),
            build=partial(_build, self),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockShape:
    """An inverted residual block: expand 1x1, depthwise, squeeze-excite, project 1x1.

    Attributes:
        in_size: Height and width of the input in pixels.
        in_channels: Input channels.
        mid_channels: Channels of the depthwise convolution.
        out_channels: Output channels.
        kernel_size: Depthwise kernel height and width.
        stride: Depthwise stride.
        squeeze_excite: Whether a squeeze-excite gate follows the depthwise.
        activation: After expansion and depthwise.
        skip: Whether the input is added to the output.
        expand: Whether the expansion convolution exists (not in the first block).
    """

    in_size: int
    in_channels: int
    mid_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    squeeze_excite: bool
    activation: Activation
    skip: bool
    expand: bool = True

    @property
    def out_size(self) -> int:
        return (self.in_size - 1) // self.stride + 1

    @property
    def squeeze_channels(self) -> int:
        """Width of the squeeze-excite bottleneck."""
        return make_divisible(self.mid_channels // 4)

    def spec(self) -> OpSpec:
        """The operator as a latency table sees it."""
        mid, in_pixels, out_pixels = self.mid_channels, self.in_size**2, self.out_size**2
        expand_weights = self.in_channels * mid if self.expand else 0
        depthwise_weights = mid * self.kernel_size**2
        project_weights = mid * self.out_channels
        squeeze_weights = 2 * mid * self.squeeze_channels if self.squeeze_excite else 0
        squeeze_biases = mid + self.squeeze_channels if self.squeeze_excite else 0
        weights = expand_weights + depthwise_weights + squeeze_weights + project_weights
        norm_params = 2 * ((mid if self.expand else 0) + mid + self.out_channels)

        pointwise_macs = expand_weights * in_pixels + project_weights * out_pixels
        depthwise_macs = depthwise_weights * out_pixels

        inputs, outputs = in_pixels * self.in_channels, out_pixels * self.out_channels
        wide_in = in_pixels * mid if self.expand else inputs
        wide_out = out_pixels * mid
        moved = wide_in + wide_out + wide_out + outputs
        moved += inputs + wide_in if self.expand else 0
        moved += 2 * wide_out if self.squeeze_excite else 0
        moved += inputs + outputs if self.skip else 0
        kept = inputs if self.skip else 0
        peak = max(
            inputs + wide_in if self.expand else 0,
            wide_in + wide_out + (kept if self.expand else 0),
            2 * wide_out + kept if self.squeeze_excite else 0,
            wide_out + outputs + kept,
        )
        return OpSpec(
            key=(
                f"expanded_conv-input:{self.in_size}x{self.in_size}x{self.in_channels}"
                f"-output:{self.out_size}x{self.out_size}x{self.out_channels}"
                f"-expand:{mid}-kernel:{self.kernel_size}-stride:{self.stride}"
                f"-idskip:{int(self.skip)}-se:{int(self.squeeze_excite)}"
                f"-hs:{int(self.activation == 'hswish')}"
            ),
            num_params=weights + squeeze_biases + norm_params,
            macs=pointwise_macs + depthwise_macs + squeeze_weights,
            bytes_moved=_FLOAT32_BYTES * (moved + weights),
            peak_memory_bytes=_FLOAT32_BYTES * peak,
            features=_features(
                block=1.0,
                squeeze_excite=float(self.squeeze_excite),
                hswish=float(self.activation == "hswish"),
                skip=float(self.skip),
                pointwise_macs=pointwise_macs,
                depthwise_macs=depthwise_macs,
                activation_elements=wide_in + wide_out,
            ),
            build=partial(_build, self),
        )


def _build(shape: ConvShape | PoolShape | LinearShape | BlockShape, batch_size: int) -> bytes:
    from effdl.models.mobilenet_v3.onnx_graph import build_operator

    return build_operator(shape, batch_size)
