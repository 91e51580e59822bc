"""How much a layer can stretch a difference of two inputs, in the Euclidean norm."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from effdl.errors import ConfigError
from effdl.kernels.lipschitz_conv2d.module import LipschitzConv2d
from effdl.kernels.lipschitz_linear.module import LipschitzLinear
from effdl.kernels.spectral import norm_upper_bound
from effdl.kernels.spectral_conv import ConvGeometry, conv_norm_bound
from effdl.quantization.activation import ActivationQuantizer

__all__ = [
    "AFFINE_LAYERS",
    "BATCH_NORMS",
    "average_pool_bound",
    "is_known",
    "layer_bound",
    "max_pool_bound",
    "mean_bound",
]

AFFINE_LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, LipschitzLinear, LipschitzConv2d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)

Shape = tuple[int, ...]

# Of functions of one number: the largest slope. Swish's and GELU's are the maxima of their
# derivatives, rounded up.
_SLOPES: Mapping[type[nn.Module], float] = {
    nn.Identity: 1.0,
    nn.Dropout: 1.0,
    nn.Dropout2d: 1.0,
    nn.Flatten: 1.0,
    nn.ReLU: 1.0,
    nn.ReLU6: 1.0,
    nn.Hardtanh: 1.0,
    nn.Tanh: 1.0,
    nn.Sigmoid: 0.25,
    nn.Hardsigmoid: 0.16667,
    nn.Hardswish: 1.5,
    nn.SiLU: 1.0999,
    nn.GELU: 1.1290,
}
_POOLS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool2d)
_KNOWN = {*AFFINE_LAYERS, *BATCH_NORMS, nn.LeakyReLU, *_POOLS, *_SLOPES}


def is_known(layer: nn.Module) -> bool:
    """Whether there is a bound for exactly this class: a subclass may compute otherwise."""
    return _type(layer) in _KNOWN or isinstance(layer, ActivationQuantizer)


def layer_bound(
    layer: nn.Module, in_shape: Shape, out_shape: Shape, folded: nn.Module | None = None
) -> float:
    """What ||f(x) - f(x')|| / ||x - x'|| does not exceed for a layer f in evaluation.

    A quantizer of activations counts as the clipping it does; its rounding is no
    Lipschitz function and is accounted for apart.

    Args:
        layer: A known one.
        in_shape: Of its input, with the batch.
        out_shape: Of its output, with the batch.
        folded: The batch norm that follows an affine layer and counts with it.

    Raises:
        ConfigError: There is no bound for the layer, or not as it is set.
    """
    if layer._forward_hooks or layer._forward_pre_hooks:
        raise ConfigError("wanted no hooks, which may change what the layer computes")
    if isinstance(layer, AFFINE_LAYERS):
        return _affine_bound(layer, folded)
    if isinstance(layer, BATCH_NORMS):
        return float(_batch_norm_gain(layer).abs().max())
    if isinstance(layer, ActivationQuantizer):
        return 1.0
    if isinstance(layer, nn.LeakyReLU):
        return max(1.0, abs(layer.negative_slope))
    if isinstance(layer, nn.MaxPool2d):
        return max_pool_bound(layer.kernel_size, layer.stride, layer.dilation)
    if isinstance(layer, nn.AvgPool2d):
        return average_pool_bound(
            layer.kernel_size,
            layer.stride,
            layer.padding if not layer.count_include_pad else 0,
            is_plain=not layer.ceil_mode and layer.divisor_override is None,
        )
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return mean_bound(in_shape[2:], out_shape[2:])
    return _SLOPES[_type(layer)]


def max_pool_bound(kernel_size: object, stride: object, dilation: object = 1) -> float:
    """The root of how many windows a pixel can be the largest of."""
    if _pair(dilation) != (1, 1):
        raise ConfigError(f"max pool: wanted dilation 1, got {dilation}")
    return math.sqrt(
        math.prod(math.ceil(k / s) for k, s in zip(_pair(kernel_size), _pair(stride), strict=True))
    )


def average_pool_bound(
    kernel_size: object, stride: object, uncounted: object = 0, *, is_plain: bool = True
) -> float:
    """The norm of the convolution with 1 / (kh kw) that average pooling is.

    Args:
        kernel_size: Of the window.
        stride: Between windows.
        uncounted: Padding that does not count in the mean: only 0 has a bound.
        is_plain: Neither ceil_mode nor divisor_override.
    """
    if not is_plain or _pair(uncounted) != (0, 0):
        raise ConfigError(
            "average pool: wanted no ceil_mode, no divisor_override, and padding that counts"
        )
    kh, kw = _pair(kernel_size)
    weight = torch.full((1, 1, kh, kw), 1 / (kh * kw), dtype=torch.float64)
    return max(conv_norm_bound(weight, ConvGeometry(stride=_pair(stride))))


def mean_bound(in_size: Sequence[int], out_size: Sequence[int]) -> float:
    """The norm of the mean over equal windows that do not overlap."""
    if any(i % o for i, o in zip(in_size, out_size, strict=True)):
        raise ConfigError(
            f"adaptive average pool: wanted an output that divides {tuple(in_size)}, "
            f"got {tuple(out_size)}"
        )
    return math.sqrt(math.prod(out_size) / math.prod(in_size))


def _affine_bound(layer: nn.Module, folded: nn.Module | None) -> float:
    weight = _applied_weight(layer).detach().double()
    if folded is not None:
        gain = _batch_norm_gain(folded)
        weight = weight * gain.reshape(-1, *[1] * (weight.ndim - 1))
    if isinstance(layer, nn.Linear | LipschitzLinear):
        return norm_upper_bound(weight)
    return max(conv_norm_bound(weight, _geometry(layer)))


def _applied_weight(layer: nn.Module) -> Tensor:
    if isinstance(layer, LipschitzLinear | LipschitzConv2d):
        integers, scale = layer.quantized_weight()
        return integers.double() * scale.double().reshape(-1, *[1] * (integers.ndim - 1))
    assert isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    return layer.weight


def _geometry(layer: nn.Module) -> ConvGeometry:
    if isinstance(layer, LipschitzConv2d):
        return layer.geometry
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    (sh, sw), (dh, dw) = layer.stride, layer.dilation
    if layer.padding_mode == "circular":
        # Further round the circle pixels come twice.
        spans = [d * (k - 1) for d, k in zip((dh, dw), layer.kernel_size, strict=True)]
        # "same" fills up to the window's own span.
        is_circle = isinstance(layer.padding, str) or all(
            2 * p <= span for p, span in zip(layer.padding, spans, strict=True)
        )
        if not is_circle:
            raise ConfigError(f"circular padding: wanted at most half the window, got {layer}")
        # Taking every s-th output apart needs a circle that s divides.
        sh = sw = 1
    elif layer.padding_mode != "zeros":
        raise ConfigError(
            f"padding_mode: wanted 'zeros' or 'circular', got {layer.padding_mode!r}, which "
            "repeats pixels"
        )
    return ConvGeometry(stride=(sh, sw), dilation=(dh, dw), groups=layer.groups)


def _batch_norm_gain(layer: nn.Module) -> Tensor:
    assert isinstance(layer, BATCH_NORMS)
    if layer.running_var is None:
        raise ConfigError("batch norm: wanted running statistics, got none")
    gain = (layer.running_var.double() + layer.eps).rsqrt()
    return gain if layer.weight is None else gain * layer.weight.detach().double()


def _type(layer: nn.Module) -> type[nn.Module]:
    """Its class, without the one that PyTorch puts around it to compute a parameter."""
    return type(layer).__mro__[1] if is_parametrized(layer) else type(layer)


def _pair(value: object) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    assert isinstance(value, tuple | list)
    return int(value[0]), int(value[1])
