"""The fused int8 inverted residual: expansion, depthwise convolution, projection, addition."""

from collections.abc import Sequence

import torch
from torch import Tensor

from effdl.errors import ConfigError
from effdl.kernels.backend import Backend, choose_backend
from effdl.kernels.inverted_residual.reference import (
    QuantizedAddition,
    QuantizedConvolution,
    inverted_residual_reference,
)
from effdl.kernels.validation import check_devices, check_dtype, check_rank, check_shape

__all__ = ["QuantizedAddition", "QuantizedConvolution", "quantized_inverted_residual"]

_BACKENDS = (Backend.REFERENCE, Backend.TVM)


def quantized_inverted_residual(
    x: Tensor,
    *,
    expansion: QuantizedConvolution | None,
    depthwise: QuantizedConvolution,
    projection: QuantizedConvolution,
    x_zero_point: int,
    stride: int = 1,
    addition: QuantizedAddition | None = None,
    backend: Backend | str | None = None,
) -> Tensor:
    """A MobileNetV2 block on bytes, whose wide tensor does not leave the caches.

    Every operator accumulates in int32 and requantizes as `effdl.kernels.quantization` says;
    the addition is that of `QuantizedAddition`. All backends agree to the bit.

    Args:
        x: uint8, [N, C, H, W].
        expansion: 1x1, [hidden, C, 1, 1]; None where the block has none.
        depthwise: [hidden, 1, k, k] with odd k, padding k // 2.
        projection: 1x1, [out, hidden, 1, 1].
        x_zero_point: Zero point of the input, 0 to 255.
        stride: Of the depthwise convolution, 1 or 2.
        addition: How the input is added to the output, or None.
        backend: None: TVM where it is installed, else the reference.

    Returns:
        uint8, [N, out, H', W'] with H' = (H - 1) // stride + 1.

    Raises:
        ConfigError: Wrong shapes, dtypes, zero points or stride.

    Source: Sandler et al., MobileNetV2, CVPR 2018, section 3.2; arithmetic of ONNX's
    QLinearConv.
    """
    _check(x, expansion, depthwise, projection, x_zero_point, stride, addition)
    chosen = choose_backend(backend, device=x.device, offered=_BACKENDS)
    layers = [layer for layer in (expansion, depthwise, projection) if layer is not None]
    scales: list[float] = []
    if addition is not None:
        scales = [addition.x_scale, addition.y_scale, addition.sum_scale]
    return _inverted_residual(
        x,
        [layer.weight for layer in layers],
        [layer.bias for layer in layers],
        [layer.multiplier for layer in layers],
        [n for layer in layers for n in (layer.y_zero_point, layer.y_min, layer.y_max)],
        scales,
        [] if addition is None else [addition.sum_zero_point, int(addition.x_first)],
        x_zero_point,
        stride,
        str(chosen),
    )


def _check(
    x: Tensor,
    expansion: QuantizedConvolution | None,
    depthwise: QuantizedConvolution,
    projection: QuantizedConvolution,
    x_zero_point: int,
    stride: int,
    addition: QuantizedAddition | None,
) -> None:
    check_rank("x", x, ("N", "C", "H", "W"))
    check_dtype("x", x, [torch.uint8])
    if stride not in (1, 2):
        raise ConfigError(f"stride: wanted 1 or 2, got {stride}")
    if x.shape[2] < 1 or x.shape[3] < 1:
        raise ConfigError(f"x: wanted at least one pixel, got {x.shape[2]} x {x.shape[3]}")
    hidden = depthwise.weight.shape[0]
    size = depthwise.weight.shape[-1]
    if depthwise.weight.ndim != 4 or size % 2 == 0:
        raise ConfigError(
            "depthwise.weight: wanted [hidden, 1, k, k] with odd k, "
            f"got {list(depthwise.weight.shape)}"
        )
    if expansion is not None:
        _check_layer("expansion", expansion, x, (hidden, x.shape[1], 1, 1))
    elif x.shape[1] != hidden:
        raise ConfigError(f"depthwise.weight: wanted {x.shape[1]} channels, as x has, got {hidden}")
    _check_layer("depthwise", depthwise, x, (hidden, 1, size, size))
    _check_layer("projection", projection, x, (projection.weight.shape[0], hidden, 1, 1))
    points = {"x_zero_point": x_zero_point}
    if addition is not None:
        points["addition.sum_zero_point"] = addition.sum_zero_point
        if stride != 1 or projection.weight.shape[0] != x.shape[1]:
            raise ConfigError(
                f"addition: wanted stride 1 and {x.shape[1]} output channels, "
                f"got stride {stride} and {projection.weight.shape[0]}"
            )
    for name, value in points.items():
        if not 0 <= value <= 255:
            raise ConfigError(f"{name}: wanted 0 to 255, got {value}")


def _check_layer(name: str, layer: QuantizedConvolution, x: Tensor, shape: tuple[int, ...]) -> None:
    check_dtype(f"{name}.weight", layer.weight, [torch.int8])
    check_dtype(f"{name}.bias", layer.bias, [torch.int32])
    check_dtype(f"{name}.multiplier", layer.multiplier, [torch.float32])
    check_shape(f"{name}.weight", layer.weight, shape)
    check_shape(f"{name}.bias", layer.bias, shape[:1])
    check_shape(f"{name}.multiplier", layer.multiplier, shape[:1])
    check_devices(
        x=x,
        **{
            f"{name}.weight": layer.weight,
            f"{name}.bias": layer.bias,
            f"{name}.multiplier": layer.multiplier,
        },
    )
    bounds = (layer.y_zero_point, layer.y_min, layer.y_max)
    if not (all(0 <= value <= 255 for value in bounds) and layer.y_min <= layer.y_max):
        raise ConfigError(
            f"{name}: wanted y_zero_point, y_min and y_max from 0 to 255 with y_min <= y_max, "
            f"got {bounds[0]}, {bounds[1]} and {bounds[2]}"
        )


@torch.library.custom_op("effdl::quantized_inverted_residual", mutates_args=())
def _inverted_residual(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    multipliers: Sequence[Tensor],
    bounds: Sequence[int],
    scales: Sequence[float],
    total: Sequence[int],
    x_zero_point: int,
    stride: int,
    backend: str,
) -> Tensor:
    layers = [
        QuantizedConvolution(
            weight=weight.detach().cpu(),
            bias=bias.detach().cpu(),
            multiplier=multiplier.detach().cpu(),
            y_zero_point=bounds[3 * i],
            y_min=bounds[3 * i + 1],
            y_max=bounds[3 * i + 2],
        )
        for i, (weight, bias, multiplier) in enumerate(
            zip(weights, biases, multipliers, strict=True)
        )
    ]
    addition = None
    if total:
        addition = QuantizedAddition(
            x_scale=scales[0],
            y_scale=scales[1],
            sum_scale=scales[2],
            sum_zero_point=total[0],
            x_first=bool(total[1]),
        )
    expansion = layers[0] if len(layers) == 3 else None
    run = inverted_residual_reference
    if backend == Backend.TVM and x.numel():
        from effdl.kernels.inverted_residual.tvm_images import run_images

        run = run_images
    out = run(
        x.cpu(),
        expansion=expansion,
        depthwise=layers[-2],
        projection=layers[-1],
        x_zero_point=x_zero_point,
        stride=stride,
        addition=addition,
    )
    return out.to(x.device)


@_inverted_residual.register_fake
def _(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    multipliers: Sequence[Tensor],
    bounds: Sequence[int],
    scales: Sequence[float],
    total: Sequence[int],
    x_zero_point: int,
    stride: int,
    backend: str,
) -> Tensor:
    return x.new_empty(
        (
            x.shape[0],
            weights[-1].shape[0],
            (x.shape[2] - 1) // stride + 1,
            (x.shape[3] - 1) // stride + 1,
        )
    )
