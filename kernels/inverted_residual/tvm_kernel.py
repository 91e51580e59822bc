"""The int8 inverted residual as one TVM function, its wide tensor never leaving the cache.

The image is cut in bands of rows so that a band of 64 hidden channels, with the rows that
the depthwise convolution reads around it, stays in the second-level cache at most. For
each block of hidden channels the expansion writes the band with its borders, the
depthwise convolution reads it; the projection follows when all blocks are there.
"""

from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from effdl.kernels.channel_blocks import channel_blocks, padded_channels
from effdl.kernels.tvm_channel_blocks import (
    Addition,
    Output,
    emit_fill,
    emit_fill_columns,
    emit_pointwise_block,
    for_blocks,
    layer_arguments,
    pixels_in_tile,
    store_pixels,
    tensor_argument,
    vectors_at,
)
from effdl.kernels.tvm_depthwise_blocks import (
    depthwise_block_bytes,
    depthwise_rows,
    emit_depthwise_block,
)
from effdl.kernels.tvm_plain_blocks import emit_plain_depthwise_block, emit_plain_pointwise_block

__all__ = ["BlockShape", "can_use_vnni", "inverted_residual_function"]

# Half of a common second-level cache, for one block of hidden channels.
_BAND_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockShape:
    """Everything that is fixed when an inverted residual is compiled.

    Attributes:
        in_channels: Channels of the input.
        hidden_channels: Channels of the depthwise convolution.
        out_channels: Channels of the output.
        height: Rows of the input.
        width: Its columns.
        kernel_size: Of the depthwise convolution.
        stride: Of the depthwise convolution.
        expands: Whether there is an expansion; without one the input has its borders.
        hidden_zero_point: What stands in the borders of the depthwise convolution.
        expansion: Output of the expansion.
        depthwise: Output of the depthwise convolution.
        projection: Output of the projection.
        addition: Ratios of input and projection in the residual addition, its offset, and
            whether the input is the first summand; or None.
        vnni: Whether for AVX512-VNNI and VBMI; see `can_use_vnni`.
        num_threads: How many threads share the bands of rows.
    """

    in_channels: int
    hidden_channels: int
    out_channels: int
    height: int
    width: int
    kernel_size: int
    stride: int
    expands: bool
    hidden_zero_point: int
    expansion: Output
    depthwise: Output
    projection: Output
    addition: tuple[float, float, float, bool] | None
    vnni: bool
    num_threads: int = 1

    @property
    def padding(self) -> int:
        """Rows and columns around the input of the depthwise convolution."""
        return self.kernel_size // 2

    @property
    def has_shortcut(self) -> bool:
        """Whether the input is needed twice, with borders and without."""
        return self.addition is not None and not self.expands

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        return (self.height - 1) // self.stride + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        return (self.width - 1) // self.stride + 1

    @property
    def num_bands(self) -> int:
        """Bands of output rows, as many for each thread."""
        row_bytes = self.stride * (self.width + 2 * self.padding) * 64
        needed = -(-self.out_height * row_bytes // _BAND_BYTES) if self.expands else 1
        return min(self.out_height, -(-needed // self.num_threads) * self.num_threads)

    @property
    def _num_scratches(self) -> int:
        return self.num_bands if self.num_threads > 1 else 1

    @property
    def band_rows(self) -> int:
        """Output rows of a band."""
        return -(-self.out_height // self.num_bands)

    @property
    def padded_rows(self) -> int:
        """Rows of the depthwise convolution's input that a band needs."""
        return (self.band_rows - 1) * self.stride + self.kernel_size

    @property
    def padded_columns(self) -> int:
        """Columns of the depthwise convolution's input."""
        return self.width + 2 * self.padding

    @property
    def wide_bytes(self) -> int:
        """Bytes of the scratch memory behind the expansion."""
        return self._num_scratches * self.wide_stride

    @property
    def wide_stride(self) -> int:
        """Bytes of it for one band."""
        return self.padded_rows * self.padded_columns * 112 if self.expands else 64

    @property
    def deep_bytes(self) -> int:
        """Bytes of the scratch memory behind the depthwise convolution."""
        return self._num_scratches * self.deep_stride

    @property
    def deep_stride(self) -> int:
        """Bytes of it for one band."""
        return self.band_rows * self.out_width * padded_channels(self.hidden_channels)


def can_use_vnni(*, hidden_channels: int, out_width: int) -> bool:
    """Whether rows are wide enough: narrow blocks take up to four pixels to a vector."""
    return all(64 // block.width <= out_width for block in channel_blocks(hidden_channels))


def inverted_residual_function(shape: BlockShape) -> Any:
    """The TensorIR function of one inverted residual.

    Its arguments: the input, weights, biases and multipliers of the expansion (where there
    is one), of the depthwise convolution and of the projection, scratch memory of
    ``wide_bytes`` and of ``deep_bytes``, the input without borders where it is added but
    not expanded, and the output.
    """
    num_hidden = padded_channels(shape.hidden_channels)
    num_out = padded_channels(shape.out_channels)
    num_blocks = len(channel_blocks(shape.hidden_channels))
    rows = depthwise_rows(shape.band_rows, shape.stride)
    in_steps = _steps(shape, shape.in_channels)
    hidden_steps = _steps(shape, shape.hidden_channels)
    depthwise_bytes = shape.kernel_size**2 * num_hidden
    depthwise_vectors = num_hidden
    if shape.vnni:
        block_bytes = depthwise_block_bytes(shape.kernel_size, num_rows=rows, stride=shape.stride)
        depthwise_bytes, depthwise_vectors = num_blocks * block_bytes, num_blocks * 64
    in_pixels = shape.height * shape.width
    if not shape.expands:
        in_pixels = (shape.height + 2 * shape.padding) * shape.padded_columns
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("inverted_residual")
        T.func_attr({"tirx.noalias": True})
        x = tensor_argument("x", padded_channels(shape.in_channels) * in_pixels)
        expansion = None
        if shape.expands:
            expansion = layer_arguments("expansion", num_hidden * in_steps, num_hidden)
        depthwise = layer_arguments("depthwise", depthwise_bytes, depthwise_vectors)
        projection = layer_arguments("projection", num_out * hidden_steps, num_out)
        wide = tensor_argument("wide", shape.wide_bytes)
        deep = tensor_argument("deep", shape.deep_bytes)
        shortcut = x
        if shape.has_shortcut:
            shortcut = tensor_argument(
                "shortcut", padded_channels(shape.in_channels) * shape.height * shape.width
            )
        y = tensor_argument("y", num_out * shape.out_height * shape.out_width)
        loop = T.parallel if shape.num_threads > 1 else T.serial
        with loop(0, shape.num_bands) as band:
            scratch = band if shape.num_threads > 1 else 0
            wide_at = T.bind(scratch * shape.wide_stride)
            deep_at = T.bind(scratch * shape.deep_stride)
            first_row = T.bind(T.min(band * shape.band_rows, shape.out_height - shape.band_rows))

            def hidden_block(index: Any, start: Any, width: int, /) -> None:
                source, source_start, columns = x, start * in_pixels, shape.padded_columns
                if expansion is not None:
                    source, source_start = wide, wide_at + _wide_start(shape, width)
                    _emit_expansion(
                        shape, x, expansion, in_steps, wide, wide_at, first_row, start, width
                    )
                else:
                    source_start += first_row * shape.stride * columns * width
                sizes: dict[str, Any] = {
                    "x": source,
                    "x_start": source_start,
                    "x_columns": columns,
                    "width": width,
                    "kernel_size": shape.kernel_size,
                    "stride": shape.stride,
                    "y": deep,
                    "y_start": deep_at + start * shape.band_rows * shape.out_width,
                    "height": shape.band_rows,
                    "columns": shape.out_width,
                    "output": shape.depthwise,
                }
                if shape.vnni:
                    place = index * (depthwise_bytes // num_blocks)
                    vectors = vectors_at(depthwise, place, index * 64)
                    emit_depthwise_block(vectors=vectors, num_rows=rows, **sizes)
                else:
                    vectors = vectors_at(depthwise, start * shape.kernel_size**2, start)
                    emit_plain_depthwise_block(vectors=vectors, **sizes)

            if shape.expands:
                for width in {block.width for block in channel_blocks(shape.hidden_channels)}:
                    emit_fill_columns(
                        wide,
                        wide_at + _wide_start(shape, width),
                        rows=shape.padded_rows,
                        columns=shape.padded_columns,
                        width=width,
                        padding=shape.padding,
                        value=shape.hidden_zero_point,
                    )
            for_blocks(shape.hidden_channels, hidden_block)
            _emit_projection(shape, deep, deep_at, projection, hidden_steps, shortcut, y, first_row)
    return builder.get()


def _steps(shape: BlockShape, num_channels: int) -> int:
    """Weights of one output channel."""
    return -(-num_channels // 4) * 4 if shape.vnni else num_channels


def _emit_pointwise(shape: BlockShape, fewest_pixels: int, **sizes: Any) -> None:
    if shape.vnni:
        tile = pixels_in_tile(sizes["width"], max(1, fewest_pixels))
        emit_pointwise_block(tile=tile, **sizes)
    else:
        emit_plain_pointwise_block(**sizes)


def _wide_start(shape: BlockShape, width: int) -> int:
    # Each width has its own place, so that the borders stay.
    return shape.padded_rows * shape.padded_columns * {64: 0, 32: 64, 16: 96}[width]


def _emit_expansion(
    shape: BlockShape,
    x: Any,
    layer: tuple[Any, Any, Any],
    in_steps: int,
    wide: Any,
    wide_at: Any,
    first_row: Any,
    start: Any,
    width: int,
) -> None:
    place = wide_at + _wide_start(shape, width)
    row_bytes = shape.padded_columns * width
    top = first_row * shape.stride - shape.padding
    low = T.bind(T.max(top, 0))
    high = T.bind(T.min(top + shape.padded_rows, shape.height))
    emit_fill(wide, place, (low - top) * row_bytes, shape.hidden_zero_point)
    emit_fill(
        wide,
        place + (high - top) * row_bytes,
        (top + shape.padded_rows - high) * row_bytes,
        shape.hidden_zero_point,
    )

    def put(pixel: Any, num: int, value: Any) -> None:
        for i in range(num):
            row = T.truncdiv(pixel + i, shape.width)
            column = pixel + i - row * shape.width + shape.padding
            at = place + ((row - top) * shape.padded_columns + column) * width
            store_pixels(wide, at, value, width, i * width)

    fewest = (shape.padded_rows - 2 * shape.padding) * shape.width
    _emit_pointwise(
        shape,
        fewest,
        x=x,
        x_pixels=shape.height * shape.width,
        inputs=channel_blocks(shape.in_channels),
        num_inputs=shape.in_channels,
        vectors=vectors_at(layer, start * in_steps, start),
        width=width,
        first_pixel=low * shape.width,
        num_pixels=(high - low) * shape.width,
        output=shape.expansion,
        put=put,
    )


def _emit_projection(
    shape: BlockShape,
    deep: Any,
    deep_at: Any,
    layer: tuple[Any, Any, Any],
    hidden_steps: int,
    shortcut: Any,
    y: Any,
    first_row: Any,
) -> None:
    num_pixels = shape.band_rows * shape.out_width
    out_pixels = shape.out_height * shape.out_width
    addition = None
    if shape.addition is not None:
        x_ratio, y_ratio, offset, x_first = shape.addition
        addition = Addition(
            other=shortcut, y_ratio=y_ratio, other_ratio=x_ratio, offset=offset, other_first=x_first
        )

    def out_block(index: Any, start: Any, width: int, /) -> None:
        place = start * out_pixels + first_row * shape.out_width * width
        _emit_pointwise(
            shape,
            num_pixels,
            x=deep,
            x_start=deep_at,
            x_pixels=num_pixels,
            inputs=channel_blocks(shape.hidden_channels),
            num_inputs=shape.hidden_channels,
            vectors=vectors_at(layer, start * hidden_steps, start),
            width=width,
            first_pixel=0,
            num_pixels=num_pixels,
            output=shape.projection,
            put=lambda pixel, num, value: store_pixels(
                y, place + pixel * width, value, num * width
            ),
            addition=addition,
            addition_offset=place,
        )

    for_blocks(shape.out_channels, out_block)
