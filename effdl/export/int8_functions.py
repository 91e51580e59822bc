"""The TensorIR functions of an int8 network that no kernel's folder has.

The image that enters, the first convolution, single 1x1 convolutions, means and sums, all
on the layout of `effdl.kernels.channel_blocks`. The image stands as four bytes a pixel.
"""

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from effdl.kernels.channel_blocks import channel_blocks, padded_channels
from effdl.kernels.tvm_channel_blocks import (
    Output,
    Vectors,
    emit_bias,
    emit_bytes,
    emit_fill,
    emit_fill_columns,
    emit_pointwise_block,
    emit_products,
    for_blocks,
    layer_arguments,
    pixels_in_tile,
    store_pixels,
    tensor_argument,
    vectors_at,
)
from effdl.kernels.tvm_plain_blocks import emit_plain_bytes, emit_plain_pointwise_block
from effdl.kernels.tvm_vnni import load, merge_lanes, store

__all__ = [
    "PIXEL_BYTES",
    "add_function",
    "image_function",
    "logits_function",
    "mean_function",
    "pad_function",
    "pointwise_function",
    "stem_function",
]

PIXEL_BYTES = 4
_LANES = 16


def _function(name: str, emit: Callable[[], None]) -> Any:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        emit()
    return builder.get()


def _constant(value: float, lanes: int = _LANES) -> Any:
    return T.broadcast(T.float32(value), lanes)


def _rounded(values: Any, zero_point: int) -> Any:
    """float32x16 to int32x16 within the bytes."""
    limited = T.max(T.min(values, _constant(255 - zero_point)), _constant(-zero_point))
    whole = T.Cast(f"int32x{_LANES}", T.nearbyint(limited))
    return whole + T.broadcast(T.int32(zero_point), _LANES)


def image_function(
    *,
    shape: tuple[int, int, int],
    padding: int,
    scale: float,
    zero_point: int,
    num_threads: int = 1,
) -> Any:
    """float32 [C, H, W], C <= 4, to bytes [H + 2 p][W + 2 p][4] between its zero point."""
    num_channels, height, width = shape
    rows, columns = height + 2 * padding, width + 2 * padding

    def emit() -> None:
        x = tensor_argument("x", num_channels * height * width, "float32", align=4)
        y = tensor_argument("y", rows * columns * PIXEL_BYTES)
        edge = padding * columns * PIXEL_BYTES
        words = T.decl_buffer((rows * columns,), "int32", data=y.data, align=64)
        border = T.int32(zero_point * 0x010101)
        for start in (0, rows * columns - edge // PIXEL_BYTES):
            with T.serial(0, edge // PIXEL_BYTES) as i:
                T.buffer_store(words, border, [start + i])
        chunk = min(_LANES, width)
        loop = T.parallel if num_threads > 1 else T.serial
        with loop(0, height) as row:
            for i in range(padding):
                for column in (i, columns - 1 - i):
                    T.buffer_store(words, border, [(row + padding) * columns + column])
            with T.serial(0, -(-width // chunk)) as part:
                column = T.bind(T.min(part * chunk, width - chunk))
                at = (row + padding) * columns + padding + column
                if chunk == _LANES:
                    quantized = [
                        _rounded(
                            load(x, (channel * height + row) * width + column, _LANES)
                            / _constant(scale),
                            zero_point,
                        )
                        for channel in range(num_channels)
                    ]
                    merged = T.reinterpret(merge_lanes(quantized), dtype=f"int32x{_LANES}")
                    store(words, at, merged, _LANES)
                else:
                    for i in range(chunk):
                        word = T.int32(0)
                        for channel in range(num_channels):
                            value = x[(channel * height + row) * width + column + i]
                            rounded = T.nearbyint(value / T.float32(scale)) + float(zero_point)
                            byte = T.Cast("int32", T.max(T.min(rounded, 255.0), 0.0))
                            word = word | (byte << (8 * channel))
                        T.buffer_store(words, word, [at + i])

    return _function("image", emit)


def stem_function(
    *,
    num_outputs: int,
    height: int,
    width: int,
    x_padding: int,
    kernel_size: int,
    stride: int,
    y_padding: int,
    y_point: int,
    output: Output,
    vnni: bool,
    num_threads: int = 1,
) -> Any:
    """A convolution of the image, to blocks of channels.

    Args:
        num_outputs: Output channels.
        height: Rows of the image.
        width: Its columns.
        x_padding: Its borders.
        kernel_size: Of the weights, [k * k][4] for each output.
        stride: Of both axes.
        y_padding: Borders of the output.
        y_point: What they hold.
        output: How sums become bytes.
        vnni: Whether for AVX512-VNNI.
        num_threads: How many threads share the rows.
    """
    rows, columns = height + 2 * x_padding, width + 2 * x_padding
    out_height = (rows - kernel_size) // stride + 1
    out_width = (columns - kernel_size) // stride + 1
    y_rows, y_columns = out_height + 2 * y_padding, out_width + 2 * y_padding
    num_padded = padded_channels(num_outputs)
    num_weights = PIXEL_BYTES * kernel_size**2

    def emit() -> None:
        x = tensor_argument("x", rows * columns * PIXEL_BYTES)
        layer = layer_arguments("layer", num_padded * num_weights, num_padded)
        y = tensor_argument("y", num_padded * y_rows * y_columns)

        def block(index: Any, start: Any, block_width: int, /) -> None:
            base = start * y_rows * y_columns
            _emit_borders(y, base, y_rows, y_columns, block_width, y_padding, y_point)
            vectors = vectors_at(layer, start * num_weights, start)
            tile = pixels_in_tile(block_width, out_width) if vnni else 1
            loop = T.parallel if num_threads > 1 else T.serial
            with loop(0, out_height) as row, T.serial(0, -(-out_width // tile)) as part:
                column = T.bind(T.min(part * tile, out_width - tile))
                at = (row + y_padding) * y_columns + y_padding

                def put(pixel: Any, num: int, value: Any, /) -> None:
                    place = base + (at + pixel) * block_width
                    store_pixels(y, place, value, num * block_width)

                start_byte = (row * stride * columns + column * stride) * PIXEL_BYTES
                if not vnni:
                    _emit_plain_taps(
                        x,
                        start_byte,
                        columns,
                        kernel_size,
                        vectors,
                        block_width,
                        output,
                        lambda value: put(column, 1, value),
                    )
                    return
                sums = emit_bias(vectors, block_width, tile)
                with T.serial(0, kernel_size) as i:
                    for j in range(kernel_size):
                        place = start_byte + (i * columns + j) * PIXEL_BYTES
                        step = i * kernel_size + j
                        emit_products(
                            sums, x, place, stride * PIXEL_BYTES, vectors, step, block_width, tile
                        )
                emit_bytes(sums, vectors, block_width, tile, column, output, put)

        for_blocks(num_outputs, block)

    return _function("stem", emit)


def _emit_plain_taps(
    x: Any,
    start: Any,
    columns: int,
    kernel_size: int,
    vectors: Vectors,
    width: int,
    output: Output,
    put: Callable[[Any], None],
) -> None:
    sums = T.alloc_buffer((width,), "int32", align=64)
    store(sums, 0, load(vectors.bias, vectors.offset, width), width)
    with T.serial(0, kernel_size) as i, T.serial(0, kernel_size * PIXEL_BYTES) as j:
        given = T.Cast("int32", x[start + i * columns * PIXEL_BYTES + j])
        at = vectors.weight_offset + (i * kernel_size * PIXEL_BYTES + j) * width
        taps = T.Cast(f"int32x{width}", load(vectors.weights, at, width))
        store(sums, 0, load(sums, 0, width) + T.broadcast(given, width) * taps, width)
    put(emit_plain_bytes(sums, vectors, width, output))


def _emit_borders(
    y: Any, base: Any, rows: int, columns: int, width: int, padding: int, value: int
) -> None:
    if not padding:
        return
    edge = padding * columns * width
    emit_fill(y, base, edge, value)
    emit_fill(y, base + rows * columns * width - edge, edge, value)
    emit_fill_columns(
        y, base, rows=rows, columns=columns, width=width, padding=padding, value=value
    )


def pad_function(*, num_channels: int, height: int, width: int, padding: int, point: int) -> Any:
    """A tensor between borders."""
    rows, columns = height + 2 * padding, width + 2 * padding

    def emit() -> None:
        num_padded = padded_channels(num_channels)
        x = tensor_argument("x", num_padded * height * width)
        y = tensor_argument("y", num_padded * rows * columns)
        for start, block_width in channel_blocks(num_channels):
            base = start * rows * columns
            _emit_borders(y, base, rows, columns, block_width, padding, point)
            with T.serial(0, height) as row, T.serial(0, width * block_width // _LANES) as i:
                at = base + ((row + padding) * columns + padding) * block_width
                value = load(x, start * height * width + row * width * block_width + i * _LANES, 16)
                store(y, at + i * _LANES, value, _LANES)

    return _function("pad", emit)


def pointwise_function(
    *,
    num_inputs: int,
    num_outputs: int,
    num_pixels: int,
    output: Output,
    vnni: bool,
    num_threads: int = 1,
) -> Any:
    """A 1x1 convolution, or on one pixel a linear layer."""
    num_padded = padded_channels(num_outputs)
    num_weights = -(-num_inputs // 4) * 4 if vnni else num_inputs

    def emit() -> None:
        x = tensor_argument("x", padded_channels(num_inputs) * num_pixels)
        layer = layer_arguments("layer", num_padded * num_weights, num_padded)
        y = tensor_argument("y", num_padded * num_pixels)

        def block(index: Any, start: Any, width: int, /) -> None:
            sizes: dict[str, Any] = {
                "x": x,
                "x_pixels": num_pixels,
                "inputs": channel_blocks(num_inputs),
                "num_inputs": num_inputs,
                "vectors": vectors_at(layer, start * num_weights, start),
                "width": width,
                "first_pixel": 0,
                "num_pixels": num_pixels,
                "output": output,
                "put": lambda pixel, num, value: store_pixels(
                    y, start * num_pixels + pixel * width, value, num * width
                ),
            }
            if vnni:
                emit_pointwise_block(tile=pixels_in_tile(width, num_pixels), **sizes)
            else:
                emit_plain_pointwise_block(**sizes)

        for_blocks(num_outputs, block, is_parallel=num_threads > 1)

    return _function("pointwise", emit)


def logits_function(*, num_inputs: int, num_outputs: int, vnni: bool) -> Any:
    """A linear layer on one pixel to ``sums * multiplier``, float32 in the order of its weights."""
    num_padded = padded_channels(num_outputs)
    num_weights = -(-num_inputs // 4) * 4 if vnni else num_inputs

    def emit() -> None:
        x = tensor_argument("x", padded_channels(num_inputs))
        layer = layer_arguments("layer", num_padded * num_weights, num_padded)
        y = tensor_argument("y", num_padded, "float32")

        def block(index: Any, start: Any, width: int, /) -> None:
            vectors = vectors_at(layer, start * num_weights, start)
            sums = emit_bias(vectors, width, 1)
            if vnni:
                with T.serial(0, num_weights // 4) as k:
                    emit_products(sums, x, 4 * k, PIXEL_BYTES, vectors, k, width, 1)
            else:
                with T.serial(0, num_inputs) as k:
                    taps = load(vectors.weights, vectors.weight_offset + k * width, width)
                    given = T.broadcast(T.Cast("int32", x[k]), width)
                    product = given * T.Cast(f"int32x{width}", taps)
                    store(sums, 0, load(sums, 0, width) + product, width)
            for lane in range(0, width, _LANES):
                multiplier = load(vectors.multiplier, start + lane, _LANES)
                value = T.Cast(f"float32x{_LANES}", load(sums, lane, _LANES)) * multiplier
                store(y, start + lane, value, _LANES)

        for_blocks(num_outputs, block)

    return _function("logits", emit)


def mean_function(
    *,
    num_channels: int,
    num_pixels: int,
    x_zero_point: int,
    multiplier: float,
    y_zero_point: int,
) -> Any:
    """``round((sum - num_pixels * x_zero_point) * multiplier) + y_zero_point``."""

    def emit() -> None:
        num_padded = padded_channels(num_channels)
        x = tensor_argument("x", num_padded * num_pixels)
        y = tensor_argument("y", num_padded)
        for start, width in channel_blocks(num_channels):
            for lane in range(0, width, _LANES):
                total = T.alloc_buffer((_LANES,), "int32", align=64)
                point = T.int32(-num_pixels * x_zero_point)
                store(total, 0, T.broadcast(point, _LANES), _LANES)
                with T.serial(0, num_pixels) as pixel:
                    given = load(x, start * num_pixels + pixel * width + lane, _LANES)
                    added = load(total, 0, _LANES) + T.Cast(f"int32x{_LANES}", given)
                    store(total, 0, added, _LANES)
                scaled = T.Cast(f"float32x{_LANES}", load(total, 0, _LANES)) * _constant(multiplier)
                value = T.Cast(f"uint8x{_LANES}", _rounded(scaled, y_zero_point))
                store(y, start + lane, value, _LANES)

    return _function("mean", emit)


def add_function(*, num_bytes: int, a_ratio: float, b_ratio: float, offset: float) -> Any:
    """``round(fma(a, a_ratio, fma(b, b_ratio, offset)))`` of two tensors of one layout."""

    def emit() -> None:
        a, b, y = (tensor_argument(name, num_bytes) for name in ("a", "b", "y"))
        fma = T.llvm_lookup_intrinsic_id("llvm.fma")
        dtype = f"float32x{_LANES}"
        with T.serial(0, num_bytes // _LANES) as i:
            total = _constant(offset)
            for given, ratio in ((b, b_ratio), (a, a_ratio)):
                value = T.Cast(dtype, load(given, i * _LANES, _LANES))
                total = T.call_llvm_pure_intrin(fma, value, _constant(ratio), total, dtype=dtype)
            store(y, i * _LANES, T.Cast(f"uint8x{_LANES}", _rounded(total, 0)), _LANES)

    return _function("add", emit)
