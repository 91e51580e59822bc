"""The fused block on images in NCHW: arranged in blocks of channels, and back."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from effdl.kernels.channel_blocks import from_blocks, padded_channels, to_blocks
from effdl.kernels.inverted_residual.reference import QuantizedAddition, QuantizedConvolution
from effdl.kernels.inverted_residual.tvm_block import aligned, pack_block
from effdl.kernels.inverted_residual.tvm_kernel import BlockShape, inverted_residual_function
from effdl.kernels.tvm_runtime import CompiledModule, compile_module

__all__ = ["make_block_run", "run_images"]

_MAX_COMPILED = 128


@lru_cache(maxsize=_MAX_COMPILED)
def _compiled(shape: BlockShape) -> CompiledModule:
    return compile_module({"inverted_residual": inverted_residual_function(shape)}, is_lowered=True)


def run_images(
    x: Tensor,
    *,
    expansion: QuantizedConvolution | None,
    depthwise: QuantizedConvolution,
    projection: QuantizedConvolution,
    x_zero_point: int,
    stride: int = 1,
    addition: QuantizedAddition | None = None,
    vnni: bool | None = None,
) -> Tensor:
    """The block on every image of a batch.

    Weights are packed on each call; who calls often packs them once (`pack_block`).

    Args:
        x: uint8, [N, C, H, W].
        expansion: 1x1, or None where the block has none.
        depthwise: k x k, padding k // 2.
        projection: 1x1.
        x_zero_point: Zero point of the input.
        stride: Of the depthwise convolution.
        addition: How the input is added to the output, or None.
        vnni: Whether to use AVX512-VNNI; None: where the machine has it.
    """
    block = pack_block(
        expansion=expansion,
        depthwise=depthwise,
        projection=projection,
        x_zero_point=x_zero_point,
        height=x.shape[2],
        width=x.shape[3],
        stride=stride,
        addition=addition,
        vnni=vnni,
    )
    shape = block.shape
    size = (shape.out_channels, shape.out_height, shape.out_width)
    num_pixels = shape.out_height * shape.out_width
    y = torch.empty(padded_channels(shape.out_channels) * num_pixels, dtype=torch.uint8)
    wide = torch.empty(shape.wide_bytes, dtype=torch.uint8)
    deep = torch.empty(shape.deep_bytes, dtype=torch.uint8)
    function = _compiled(shape)["inverted_residual"]
    out = torch.empty((x.shape[0], *size), dtype=torch.uint8)
    padding = 0 if shape.expands else shape.padding
    for image, result in zip(x.numpy(), out, strict=True):
        given = aligned(to_blocks(image, padding=padding, fill=x_zero_point))
        shortcut = aligned(to_blocks(image)) if shape.has_shortcut else None
        function(*block.arguments(given, y, wide=wide, deep=deep, shortcut=shortcut))
        result.copy_(torch.from_numpy(from_blocks(y.numpy(), size).copy()))
    return out


def make_block_run(
    *,
    expansion: QuantizedConvolution | None,
    depthwise: QuantizedConvolution,
    projection: QuantizedConvolution,
    x_zero_point: int,
    height: int,
    width: int,
    stride: int,
    addition: QuantizedAddition | None,
    batch_size: int,
    vnni: bool | None = None,
) -> Callable[[], object]:
    """A function that runs the block on made images, in the layout between operators.

    Args:
        expansion: 1x1, or None where the block has none.
        depthwise: k x k, padding k // 2.
        projection: 1x1.
        x_zero_point: Zero point of the input.
        height: Rows of the input.
        width: Columns of the input.
        stride: Of the depthwise convolution.
        addition: How the input is added to the output, or None.
        batch_size: Images.
        vnni: Whether to use AVX512-VNNI; None: where the machine has it.
    """
    num_threads = torch.get_num_threads()
    block = pack_block(
        expansion=expansion,
        depthwise=depthwise,
        projection=projection,
        x_zero_point=x_zero_point,
        height=height,
        width=width,
        stride=stride,
        addition=addition,
        vnni=vnni,
        num_threads=num_threads,
    )
    shape = block.shape
    rng = np.random.default_rng(0)
    size = (batch_size, shape.in_channels, height, width)
    padding = 0 if shape.expands else shape.padding
    wide = torch.empty(shape.wide_bytes, dtype=torch.uint8)
    deep = torch.empty(shape.deep_bytes, dtype=torch.uint8)
    num_out = padded_channels(shape.out_channels) * shape.out_height * shape.out_width
    arguments = [
        block.arguments(
            aligned(to_blocks(image, padding=padding, fill=x_zero_point)),
            torch.empty(num_out, dtype=torch.uint8),
            wide=wide,
            deep=deep,
            shortcut=aligned(to_blocks(image)) if shape.has_shortcut else None,
        )
        for image in rng.integers(0, 256, size, np.uint8)
    ]
    module = _compiled(shape)

    def run() -> None:
        for given in arguments:
            module.call("inverted_residual", *given)

    run()
    return run
