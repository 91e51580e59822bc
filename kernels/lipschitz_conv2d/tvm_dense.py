"""int8 convolution with requantization, as TensorIR functions.

Three steps: the image is put into words of four channels, [C/4][H][W][4], with its border
of zero points; the product runs over those words, output channels in the lanes; the result
comes out in words, [O/4][H][W][4], and is put back into planes. Between convolutions that
need no border the second step stands alone.
"""

from collections.abc import Mapping
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from effdl.kernels.lipschitz_conv2d.dense_shape import DenseShape
from effdl.kernels.lipschitz_conv2d.tvm_words import emit_to_planes, emit_to_words
from effdl.kernels.tvm_dot import DotProduct
from effdl.kernels.tvm_panels import NUM_LIMITS, alloc_sums, lanes, requantize_tile, set_lanes
from effdl.kernels.tvm_vnni import NUM_LANES, pack_lanes

__all__ = ["choose_tile", "dense_function"]

# Image words that stay in the second-level cache while the weights pass by.
_BLOCK_BYTES = 256 * 1024
# Tasks to share out among threads, where there are so many.
_MIN_TASKS = 8

Tensors = Mapping[str, Any]


def choose_tile(shape: DenseShape, dot_product: DotProduct) -> tuple[int, int]:
    """Pixels and panels whose sums stay in registers together."""
    sizes = (8, 4, 1) if dot_product.num_registers > 16 else (4, 1)
    return next(size for size in sizes if size <= shape.num_pixels), 2


def dense_function(
    dot_product: DotProduct,
    shape: DenseShape,
    *,
    tile_pixels: int,
    tile_panels: int,
    in_words: bool = False,
) -> Any:
    """``dense(x, weight, bias, multiplier, limits, x_words, y_words, y)`` for any batch.

    Args:
        dot_product: Instructions to use.
        shape: Of the convolution.
        tile_pixels: Pixels computed together, at most all of a plane. The last tile
            overlaps the one before it.
        tile_panels: Panels of output channels computed together.
        in_words: The second step alone, from ``x_words`` to ``y_words``, which then have
            exactly the bytes of the batch; ``x`` and ``y`` are left out.
    """
    num_lanes, num_bytes = dot_product.num_lanes, dot_product.num_bytes
    num_words, plane_bytes, num_pixels = shape.input_words, shape.plane_bytes, shape.num_pixels
    num_outputs, output_words = shape.num_outputs, shape.output_words
    x_bytes, y_bytes = shape.x_words_bytes, shape.y_words_bytes
    columns, output_columns = shape.padded[1], shape.output[1]
    num_panels = -(-num_outputs // num_lanes)
    num_whole = num_panels // tile_panels
    num_groups = num_whole + (num_whole * tile_panels < num_panels)
    kernel_rows, kernel_columns = shape.kernel
    row_stride, column_stride = shape.stride
    num_steps = kernel_rows * kernel_columns * num_words
    num_tiles = -(-num_pixels // tile_pixels)
    num_blocks = max(-(-num_words * plane_bytes // _BLOCK_BYTES), -(-_MIN_TASKS // num_groups))
    block_tiles = -(-num_tiles // min(num_blocks, num_tiles))
    num_blocks = -(-num_tiles // block_tiles)
    is_row_aligned = output_columns % tile_pixels == 0 or (
        shape.kernel == (1, 1) and column_stride == 1 and columns == output_columns
    )

    def place_of(pixel: Any) -> Any:
        """Byte of an output pixel's first tap in its plane."""
        row, column = pixel // output_columns, pixel % output_columns
        return T.bind(4 * (row * row_stride * columns + column * column_stride))

    def emit_tile(tensors: Tensors, image: Any, pixel: Any, panel: Any, *, width: int) -> None:
        x, weight, limits = tensors["x_words"], tensors["weight"], tensors["limits"]
        sums = [alloc_sums(width, num_lanes) for _ in range(tile_pixels)]
        if is_row_aligned:
            first = place_of(pixel)
            places = [first + 4 * i * column_stride for i in range(tile_pixels)]
        else:
            places = [place_of(pixel + i) for i in range(tile_pixels)]
        for v in range(width):
            start = lanes(tensors["bias"], (panel + v) * num_lanes, num_lanes)
            for i in range(tile_pixels):
                set_lanes(sums[i][v], start, 0, num_lanes)
        with T.grid(kernel_rows, kernel_columns, num_words) as (ky, kx, word):
            step = (ky * kernel_columns + kx) * num_words + word
            tap = image * x_bytes + word * plane_bytes + 4 * (ky * columns + kx)
            for i in range(tile_pixels):
                activation = dot_product.broadcast_word(
                    T.reinterpret(lanes(x, tap + places[i], 4), dtype="int32")
                )
                for v in range(width):
                    vector = weight[panel + v, step, T.ramp(0, 1, num_bytes)]
                    after = dot_product.emit(lanes(sums[i][v], 0, num_lanes), activation, vector)
                    set_lanes(sums[i][v], after, 0, num_lanes)
        for v in range(width):
            quantized = [
                requantize_tile(
                    lanes(sums[i][v], 0, num_lanes),
                    lanes(tensors["multiplier"], (panel + v) * num_lanes, num_lanes),
                    limits,
                    num_lanes,
                )
                for i in range(tile_pixels)
            ]
            emit_words(tensors["y_words"], quantized, image, pixel, panel + v)

    def emit_words(y: Any, quantized: list[Any], image: Any, pixel: Any, panel: Any) -> None:
        """Store a panel's channels of neighbouring pixels, word by word."""
        words_each = num_lanes // 4
        together = 4 if num_lanes == NUM_LANES and len(quantized) % 4 == 0 else 1
        for i in range(0, len(quantized), together):
            if together == 4:
                # The pack interleaves within 128 bits: four pixels of one word each.
                whole = pack_lanes(*(T.cast(q, "int32x16") for q in quantized[i : i + 4]))
            else:
                whole = T.cast(quantized[i], f"uint8x{num_lanes}")
            num = 4 * together
            whole = T.bind(whole)
            for word in range(words_each):
                part = T.Shuffle([whole], list(range(word * num, (word + 1) * num)))
                place = panel * words_each + word
                offset = image * y_bytes + 4 * (place * num_pixels + pixel + i)
                if output_words % words_each == 0:
                    set_lanes(y, part, offset, num)
                else:
                    with T.If(place < output_words), T.Then():
                        set_lanes(y, part, offset, num)

    def emit_group(tensors: Tensors, image: Any, pixel: Any, group: Any) -> None:
        """Panels of one task; the last takes what is left over."""
        pixel = T.bind(pixel)
        with T.If(group < num_whole):
            with T.Then():
                emit_tile(tensors, image, pixel, group * tile_panels, width=tile_panels)
            with T.Else():
                for panel in range(num_whole * tile_panels, num_panels):
                    emit_tile(tensors, image, pixel, panel, width=1)

    def emit_product(tensors: Tensors, num_images: Any) -> None:
        with T.parallel(num_images * num_blocks * num_groups) as task:
            block = task // num_groups % num_blocks
            with T.serial(T.min(block_tiles, num_tiles - block * block_tiles)) as t:
                first = (block * block_tiles + t) * tile_pixels
                emit_group(
                    tensors,
                    task // (num_groups * num_blocks),
                    T.min(first, num_pixels - tile_pixels),
                    task % num_groups,
                )

    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("dense")
        num_images, num_x_bytes, num_y_bytes = T.int64(), T.int64(), T.int64()
        image = (num_images, shape.num_inputs, shape.height, shape.width)
        result = (num_images, num_outputs, *shape.output)
        arguments: dict[str, tuple[tuple[Any, ...], str, int]] = {
            "x": (image, "uint8", 1),
            "weight": ((num_panels, num_steps, num_bytes), "int8", 16),
            "bias": ((num_panels * num_lanes,), "int32", 4),
            "multiplier": ((num_panels * num_lanes,), "float32", 4),
            "limits": ((NUM_LIMITS,), "float32", 4),
            "x_words": ((num_x_bytes,), "uint8", 1),
            "y_words": ((num_y_bytes,), "uint8", 1),
            "y": (result, "uint8", 1),
        }
        if in_words:
            num_images = num_x_bytes // x_bytes
            del arguments["x"], arguments["y"]
        tensors = {
            name: T.match_buffer(T.arg(name, T.handle()), size, dtype, align=align)
            for name, (size, dtype, align) in arguments.items()
        }
        if not in_words:
            emit_to_words(shape, tensors["x"], tensors["limits"], tensors["x_words"], num_images)
        emit_product(tensors, num_images)
        if not in_words:
            emit_to_planes(shape, tensors["y_words"], tensors["y"], num_images)
    return builder.get()
