"""The quantized convolution on CPUs: which kernel a shape is best served by."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from effdl.kernels.lipschitz_conv2d.dense_shape import DenseShape
from effdl.kernels.lipschitz_conv2d.tvm_dense import choose_tile, dense_function
from effdl.kernels.lipschitz_conv2d.tvm_depthwise import quantized_depthwise_conv2d
from effdl.kernels.lipschitz_conv2d.tvm_pointwise import quantized_conv1x1
from effdl.kernels.tvm_dot import find_dot_product, host_dot_product
from effdl.kernels.tvm_panels import (
    Epilogue,
    PackCache,
    Panels,
    Scratch,
    make_epilogue,
    pack_panels,
)
from effdl.kernels.tvm_runtime import CompiledModule, compile_module
from effdl.kernels.tvm_vnni import NUM_LANES

__all__ = ["PackedConv2d", "pack_conv2d", "quantized_conv2d", "run_conv2d", "run_conv2d_words"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedConv2d:
    """A quantized convolution without groups, ready to run on images of one size.

    Attributes:
        shape: Its sizes.
        panels: Its weights.
        epilogue: Its bias, requantization and activation.
        module: Compiled for its sizes.
        x_bytes: Of one image in words.
        y_bytes: Of one result in words.
        y_shape: Of one result.
    """

    shape: DenseShape
    panels: Panels
    epilogue: Epilogue
    module: CompiledModule
    x_bytes: int
    y_bytes: int
    y_shape: tuple[int, int, int]


# Where a 1x1 convolution with the pixels in the lanes, straight from the planes, is faster.
_MANY_PIXELS, _FEW_OUTPUTS = 2048, 144

_PACKED, _LAYERS = PackCache(), PackCache()
_X_WORDS, _Y_WORDS = Scratch(torch.uint8), Scratch(torch.uint8)


def pack_conv2d(
    weight_s8: Tensor,
    bias_s32: Tensor,
    multiplier_f32: Tensor,
    *,
    image_size: tuple[int, int],
    x_zero_point: int,
    y_zero_point: int,
    y_min: int = 0,
    y_max: int = 255,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    instructions: str | None = None,
) -> PackedConv2d:
    """Put a convolution's weights into the order that the kernel reads.

    The weights of a tensor that still lives unchanged are packed only once.

    Args:
        weight_s8: int8, [O, C, kernel height, kernel width].
        bias_s32: int32, [O].
        multiplier_f32: float32, [O] or [1]: `effdl.kernels.quantization.output_multiplier`.
        image_size: Height and width of the input.
        x_zero_point: Zero point of the input; the border holds it.
        y_zero_point: Zero point of the output.
        y_min: Smallest output.
        y_max: Largest output.
        stride: Vertical and horizontal.
        padding: Above and below, left and right.
        instructions: A name of `effdl.kernels.tvm_dot.DOT_PRODUCTS`; None: the best that
            this machine has.

    Raises:
        UnknownNameError: There are no such instructions.
    """
    dot_product = host_dot_product() if instructions is None else find_dot_product(instructions)

    def pack() -> Panels:
        filled = pad(weight_s8, (0, 0, 0, 0, 0, -weight_s8.shape[1] % 4))
        return pack_panels(filled.permute(0, 2, 3, 1).flatten(1), dot_product)

    panels = _PACKED.get((weight_s8,), dot_product.name, pack)
    num_outputs, num_inputs, kernel_height, kernel_width = weight_s8.shape
    shape = DenseShape(
        num_inputs=num_inputs,
        num_outputs=num_outputs,
        height=image_size[0],
        width=image_size[1],
        kernel=(kernel_height, kernel_width),
        stride=stride,
        padding=padding,
    )
    return PackedConv2d(
        shape=shape,
        panels=panels,
        epilogue=make_epilogue(
            panels,
            bias_s32,
            multiplier_f32,
            x_zero_point=x_zero_point,
            y_zero_point=y_zero_point,
            y_min=y_min,
            y_max=y_max,
        ),
        module=_compiled(dot_product.name, shape, in_words=False),
        x_bytes=shape.x_words_bytes,
        y_bytes=shape.y_words_bytes,
        y_shape=(num_outputs, *shape.output),
    )


def run_conv2d(layer: PackedConv2d, x_u8: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Apply a packed convolution.

    Args:
        layer: From `pack_conv2d`.
        x_u8: uint8, [N, C, H, W].
        out: Where the result goes, contiguous; None: a new tensor.

    Returns:
        uint8, [N, O, output height, output width].
    """
    num_images = x_u8.shape[0]
    if out is None:
        out = torch.empty(num_images, *layer.y_shape, dtype=torch.uint8)
    if out.numel():
        layer.module.call(
            "dense",
            x_u8.contiguous(),
            layer.panels.weight,
            layer.epilogue.bias,
            layer.epilogue.multiplier,
            layer.epilogue.limits,
            _X_WORDS.reserve(num_images * layer.x_bytes),
            _Y_WORDS.reserve(num_images * layer.y_bytes),
            out,
        )
    return out


def run_conv2d_words(layer: PackedConv2d, x_words: Tensor, *, out: Tensor) -> Tensor:
    """Apply a packed convolution to images in words of four channels.

    Args:
        layer: From `pack_conv2d`.
        x_words: uint8, flat, ``layer.x_bytes`` for each image: [C/4] planes of
            ``layer.shape.plane_bytes`` bytes, each [H][W][4] with the border.
        out: uint8, flat, ``layer.y_bytes`` for each image: receives
            [O/4][output height][output width][4].
    """
    module = _compiled(layer.panels.dot_product.name, layer.shape, in_words=True)
    module.call(
        "dense",
        layer.panels.weight,
        layer.epilogue.bias,
        layer.epilogue.multiplier,
        layer.epilogue.limits,
        x_words,
        out,
    )
    return out


@cache
def _compiled(instructions: str, shape: DenseShape, *, in_words: bool) -> CompiledModule:
    dot_product = find_dot_product(instructions)
    tile_pixels, tile_panels = choose_tile(shape, dot_product)
    function = dense_function(
        dot_product,
        shape,
        tile_pixels=tile_pixels,
        tile_panels=tile_panels,
        in_words=in_words,
    )
    return compile_module({"dense": function}, target=dot_product.to_tvm())


def quantized_conv2d(
    x_u8: Tensor,
    weight_s8: Tensor,
    bias_s32: Tensor,
    multiplier_f32: Tensor,
    *,
    x_zero_point: int,
    y_zero_point: int,
    y_min: int = 0,
    y_max: int = 255,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> Tensor:
    """The convolution of `effdl.kernels.lipschitz_conv2d.op.quantized_conv2d`, bit-exact.

    Weights are packed at the first call with a tensor and remembered; `pack_conv2d` with
    `run_conv2d` saves the look-up. Groups of several channels are computed one after the
    other.

    Args:
        x_u8: uint8, [N, C, H, W].
        weight_s8: int8, [O, C / groups, kernel height, kernel width].
        bias_s32: int32, [O].
        multiplier_f32: float32, [O] or [1].
        x_zero_point: Zero point of the input; the padding holds it.
        y_zero_point: Zero point of the output.
        y_min: Smallest output.
        y_max: Largest output.
        stride: Pixels between windows.
        padding: Pixels on each side.
        groups: Equal parts of the channels that do not mix.

    Returns:
        uint8, [N, O, output height, output width].
    """
    num_outputs = weight_s8.shape[0]
    kernel_height, kernel_width = weight_s8.shape[2:]
    if groups == x_u8.shape[1] == num_outputs and kernel_height == kernel_width and groups > 1:
        return quantized_depthwise_conv2d(
            x_u8,
            weight_s8,
            bias_s32,
            multiplier_f32.expand(num_outputs),
            x_zero_point=x_zero_point,
            y_zero_point=y_zero_point,
            y_min=y_min,
            y_max=y_max,
            stride=stride,
            padding=padding,
        )
    if x_u8.shape[1] == 0:
        x_u8, weight_s8 = (pad(t, (0, 0, 0, 0, 0, 1)) for t in (x_u8, weight_s8))
    image_size = (x_u8.shape[2], x_u8.shape[3])
    is_pointwise = (kernel_height, kernel_width, stride, padding, groups) == (1, 1, 1, 0, 1)
    if (
        is_pointwise
        and host_dot_product().num_lanes == NUM_LANES
        and image_size[0] * image_size[1] >= _MANY_PIXELS
        and num_outputs <= _FEW_OUTPUTS
    ):
        return quantized_conv1x1(
            x_u8,
            weight_s8,
            bias_s32,
            multiplier_f32.expand(num_outputs),
            x_zero_point=x_zero_point,
            y_zero_point=y_zero_point,
            y_min=y_min,
            y_max=y_max,
        )
    key = (image_size, stride, padding, x_zero_point, y_zero_point, y_min, y_max)

    def convolve(x: Tensor, weight: Tensor, bias: Tensor, multiplier: Tensor) -> Tensor:
        layer = _LAYERS.get(
            (weight, bias, multiplier),
            key,
            lambda: pack_conv2d(
                weight,
                bias,
                multiplier,
                image_size=image_size,
                x_zero_point=x_zero_point,
                y_zero_point=y_zero_point,
                y_min=y_min,
                y_max=y_max,
                stride=(stride, stride),
                padding=(padding, padding),
            ),
        )
        return run_conv2d(layer, x)

    if groups == 1:
        return convolve(x_u8, weight_s8, bias_s32, multiplier_f32)
    parts = zip(
        x_u8.chunk(groups, 1),
        weight_s8.chunk(groups),
        bias_s32.chunk(groups),
        multiplier_f32.expand(num_outputs).chunk(groups),
        strict=True,
    )
    return torch.cat([convolve(*part) for part in parts], dim=1)
