"""Quantized convolutions on GPUs: implicit products of bytes, requantized in registers.

The rows of the product are output pixels of all images, its columns output channels, and
its sum runs over the kernel's taps and the input channels. Nothing is unfolded in memory.
Pixels beside the image are read as the zero point, which stands for 0, so that the sum of
the weights that unsigned bytes ask for (see `effdl.kernels.triton_rounding`) is the same
for every pixel. A depthwise convolution has too few terms for tensor cores: it multiplies
and adds in int32.
"""

from dataclasses import replace
from typing import Any

import torch
import triton.language as tl

from effdl.kernels.lipschitz_conv2d.triton_programs import dense_kernel, depthwise_kernel
from effdl.kernels.triton_ahead import GPU_NAMES, AheadOfTimeCase
from effdl.kernels.triton_launch import index_type, is_amd, launch
from effdl.kernels.triton_tiles import Tile, byte_tile

__all__ = ["ahead_of_time_cases", "fold_zero_point", "quantized_conv2d"]

# Fewer input channels than this share a step of the loop with the next tap's.
_FEW_CHANNELS = 32


def fold_zero_point(
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    x_zero_point: int,
    x_dtype: torch.dtype = torch.uint8,
) -> torch.Tensor:
    """The bias with everything in it that the activations' zero point adds to dense sums.

    Args:
        weight: int8 [O, C/groups, kh, kw].
        bias: int32 [O].
        x_zero_point: Of the activations.
        x_dtype: Of the activations, uint8 or int8.

    Returns:
        int32 [O].
    """
    shift = 128 if x_dtype == torch.uint8 else 0
    sums = weight.sum((1, 2, 3), dtype=torch.int32)
    return (bias + (shift - x_zero_point) * sums).to(torch.int32)


def quantized_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    multiplier: torch.Tensor,
    *,
    x_zero_point: int,
    y_zero_point: int,
    y_min: int = 0,
    y_max: int = 255,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    groups: int = 1,
    memory_format: torch.memory_format = torch.contiguous_format,
    tile: Tile | None = None,
) -> torch.Tensor:
    """Bytes in, bytes out: convolution, bias, requantization and activation in one kernel.

    A dense convolution reads channels-last bytes: give it those, and channels-last weights,
    or each call copies them. A depthwise one reads either format in place.

    Args:
        x: uint8 or int8 [N, C, H, W], in any strides.
        weight: int8 [O, C/groups, kh, kw].
        bias: int32 [O].
        multiplier: float32 [O] or [1]: x_scale * w_scale / y_scale.
        x_zero_point: Zero point of x; what the border is padded with.
        y_zero_point: Zero point of the result.
        y_min: Smallest result; below 0 the result is int8.
        y_max: Largest result.
        stride: In pixels, or (rows, columns).
        padding: In pixels, or (rows, columns).
        groups: Divides C and O.
        memory_format: Of the result; channels-last where a dense convolution follows.
        tile: Instead of the shipped configuration.

    Returns:
        uint8 (or int8) [N, O, H', W'], bit for bit `effdl.kernels.quantization.requantize`.
    """
    strides, pads = _pair(stride), _pair(padding)
    num_outputs, num_channels, *kernel = weight.shape
    size = [
        (extent + 2 * pad - side) // step + 1
        for extent, pad, side, step in zip(x.shape[2:], pads, kernel, strides, strict=True)
    ]
    is_last = memory_format == torch.channels_last
    y = torch.empty(
        (x.shape[0], num_outputs, *size),
        dtype=torch.int8 if y_min < 0 else torch.uint8,
        device=x.device,
        memory_format=memory_format,
    )
    if y.numel() == 0:
        return y
    is_depthwise = num_channels == 1 and groups > 1
    if not is_depthwise:
        x = x.contiguous(memory_format=torch.channels_last)
        bias = fold_zero_point(weight, bias, x_zero_point=x_zero_point, x_dtype=x.dtype)
    settings: dict[str, Any] = {
        "kernel_height": kernel[0],
        "kernel_width": kernel[1],
        "stride_height": strides[0],
        "stride_width": strides[1],
        "pad_height": pads[0],
        "pad_width": pads[1],
        "image_pixels": size[0] * size[1],
        "image_width": size[1],
        "index_type": index_type(x, weight, y),
        "enable_fp_fusion": False,
    }
    num_pixels = x.shape[0] * size[0] * size[1]
    per_group = num_outputs // groups
    if is_depthwise:
        tile = tile or _depthwise_tile(num_outputs, x.stride(1) == 1)
        num_programs = tile.count(num_pixels, num_outputs)
        settings |= {"num_outputs": num_outputs, "num_each": per_group}
    else:
        tile = tile or _dense_tile(num_pixels, per_group, num_channels, kernel, is_amd())
        num_programs = tile.count(num_pixels, per_group) * groups
        settings |= {
            "num_channels": num_channels,
            "num_outputs": per_group,
            "num_groups": groups,
            "mixes_taps": num_channels < _FEW_CHANNELS,
            "depth": tile.depth,
            "num_stages": tile.num_stages,
        }
    launch(
        depthwise_kernel if is_depthwise else dense_kernel,
        num_programs,
        x,
        weight.permute(0, 2, 3, 1).contiguous(),
        bias.contiguous(),
        multiplier.expand(num_outputs).contiguous(),
        y,
        num_pixels,
        *x.shape[2:],
        *(x.stride(axis) for axis in (0, 2, 3, 1)),
        y.stride(0),
        num_outputs if is_last else 1,
        1 if is_last else size[0] * size[1],
        x_zero_point,
        float(y_min - y_zero_point),
        float(y_max - y_zero_point),
        float(y_zero_point),
        rows=tile.rows,
        columns=tile.columns,
        num_warps=tile.num_warps,
        **settings,
    )
    return y


def _pair(number: int | tuple[int, int]) -> tuple[int, int]:
    return (number, number) if isinstance(number, int) else (number[0], number[1])


def _dense_tile(
    num_pixels: int, num_outputs: int, num_channels: int, kernel: list[int], on_amd: bool
) -> Tile:
    mixes_taps = num_channels < _FEW_CHANNELS
    num_terms = num_channels * kernel[0] * kernel[1] if mixes_taps else num_channels
    tile = byte_tile(
        num_rows=max(num_pixels, 17),
        num_columns=num_outputs,
        num_terms=num_terms,
        is_amd=on_amd,
    )
    # Offsets and masks of every element take registers too.
    return replace(tile, depth=min(tile.depth, 32 if mixes_taps else 64))


def _depthwise_tile(num_outputs: int, is_last: bool) -> Tile:
    """Adjacent bytes side by side: channels of channels-last images, else pixels."""
    columns = 64 if num_outputs > 32 else 32
    if is_last:
        return Tile(rows=1024 // columns, columns=columns, depth=1, num_warps=4, num_stages=1)
    return Tile(rows=256, columns=4, depth=1, num_warps=4, num_stages=1)


def ahead_of_time_cases() -> list[AheadOfTimeCase]:
    """Convolutions of ResNet-50 and MobileNetV2, in the shipped configurations."""
    sizes = (
        ("3x3", 64, 64, 56, 3, 1),
        ("3x3", 256, 256, 14, 3, 2),
        ("1x1", 96, 24, 56, 1, 1),
        ("stem", 3, 32, 112, 3, 2),
    )
    nvidia = tuple(gpu for gpu in GPU_NAMES if gpu.startswith("sm_"))
    amd = tuple(gpu for gpu in GPU_NAMES if gpu.startswith("gfx"))
    dense = [
        _dense_case(*size, gpus, on_amd)
        for size in sizes
        for gpus, on_amd in ((nvidia, False), (amd, True))
    ]
    depthwise = [
        _depthwise_case(num_channels, side, kernel, is_last)
        for num_channels, side, kernel in ((192, 28, 3), (240, 14, 5))
        for is_last in (True, False)
    ]
    return [*dense, *depthwise]


_TENSORS = {
    "x_ptr": "*u8",
    "weight_ptr": "*i8",
    "bias_ptr": "*i32",
    "multiplier_ptr": "*fp32",
    "y_ptr": "*u8",
    **dict.fromkeys(["num_pixels", "height", "width", "x_image", "x_row", "x_column"], "i32"),
    **dict.fromkeys(["x_channel", "y_image", "y_pixel", "y_channel", "x_zero_point"], "i32"),
    **dict.fromkeys(["low", "high", "zero_point"], "fp32"),
}


def _shared_constants(side: int, kernel: int, stride: int, tile: Tile) -> dict[str, object]:
    return {
        "kernel_height": kernel,
        "kernel_width": kernel,
        "stride_height": stride,
        "stride_width": stride,
        "pad_height": kernel // 2,
        "pad_width": kernel // 2,
        "image_pixels": side * side,
        "image_width": side,
        "index_type": tl.int32,
        "rows": tile.rows,
        "columns": tile.columns,
    }


def _without(signature: dict[str, str], constants: dict[str, object]) -> dict[str, str]:
    return {name: kind for name, kind in signature.items() if name not in constants}


def _dense_case(
    name: str,
    num_channels: int,
    num_outputs: int,
    side: int,
    kernel: int,
    stride: int,
    gpus: tuple[str, ...],
    on_amd: bool,
) -> AheadOfTimeCase:
    tile = _dense_tile(8 * side * side, num_outputs, num_channels, [kernel, kernel], on_amd)
    constants = {
        **_shared_constants(side, kernel, stride, tile),
        "num_channels": num_channels,
        "num_outputs": num_outputs,
        "num_groups": 1,
        "mixes_taps": num_channels < _FEW_CHANNELS,
        "depth": tile.depth,
        "x_channel": 1,
        "y_channel": 1,
    }
    return AheadOfTimeCase(
        name=f"lipschitz_conv2d.{name}.{num_channels}-{num_outputs}@{side}",
        function=dense_kernel,
        signature=_without(_TENSORS, constants),
        constexprs=constants,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        divisible=("x_image", "x_row", "x_column", "y_image", "y_pixel")
        if num_channels % 16 == 0
        else (),
        gpus=gpus,
    )


def _depthwise_case(num_channels: int, side: int, kernel: int, is_last: bool) -> AheadOfTimeCase:
    tile = _depthwise_tile(num_channels, is_last)
    strides = {"x_channel": 1, "y_channel": 1} if is_last else {"x_column": 1, "y_pixel": 1}
    constants = {
        **_shared_constants(side, kernel, 1, tile),
        **strides,
        "num_outputs": num_channels,
        "num_each": 1,
    }
    layout = "channels_last" if is_last else "planes"
    return AheadOfTimeCase(
        name=f"lipschitz_conv2d.depthwise{kernel}x{kernel}.{num_channels}@{side}.{layout}",
        function=depthwise_kernel,
        signature=_without(_TENSORS, constants),
        constexprs=constants,
        num_warps=tile.num_warps,
        num_stages=1,
    )
