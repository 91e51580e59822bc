"""int8 depthwise convolution on NCHW bytes, 16 output columns in the lanes.

With AVX512-VNNI and VBMI a plane is copied between borders of the zero point; then each
row of it is loaded once for 16 outputs, ``vpermb`` brings the (up to four) neighbouring
taps of each output together, and one ``vpdpbusd`` for each row of the kernel sums them.
Other processors run plain loops, which LLVM vectorises.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from effdl.kernels.tvm_runtime import CompiledModule, compile_module, has_vnni, use_threads
from effdl.kernels.tvm_vnni import (
    NUM_BYTES,
    NUM_LANES,
    dot,
    load,
    pack_lanes,
    permute_bytes,
    requantize_lanes,
    store,
)

__all__ = ["bind_depthwise_conv2d", "quantized_depthwise_conv2d"]

# Rows of outputs that are packed into bytes together, and those that stay in registers.
_PACKED_ROWS = 4
_MAX_ROWS = 8


def quantized_depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    *,
    x_zero_point: int,
    y_zero_point: int,
    y_min: int = 0,
    y_max: int = 255,
    stride: int = 1,
    padding: int = 0,
    vnni: bool | None = None,
) -> Tensor:
    """``clip(round(conv(x - x_zero_point) * multiplier) + y_zero_point, y_min, y_max)``.

    Args:
        x: uint8, [N, C, H, W].
        weight: int8, [C, 1, k, k].
        bias: int32, [C], at the scale of the sums.
        multiplier: float32, [C].
        x_zero_point: Of the input; it also stands in the borders.
        y_zero_point: Of the output.
        y_min: Smallest output.
        y_max: Largest output.
        stride: Of both axes.
        padding: Rows and columns around the input.
        vnni: Whether to use AVX512-VNNI; None: where the machine has it.

    Returns:
        uint8, [N, C, H', W'].
    """
    num_images, num_channels, height, width = x.shape
    size = weight.shape[2]
    out_height = (height + 2 * padding - size) // stride + 1
    out_width = (width + 2 * padding - size) // stride + 1
    y = torch.empty((num_images, num_channels, out_height, out_width), dtype=torch.uint8)
    if y.numel() == 0:
        return y
    fits = (NUM_LANES - 1) * stride + 4 * (-(-size // 4)) <= NUM_BYTES
    vnni = has_vnni() if vnni is None else vnni
    function = _compiled(
        num_channels, height, width, size, stride, padding, torch.get_num_threads(), vnni and fits
    )
    function.call(
        "depthwise",
        x.contiguous(),
        weight.contiguous(),
        bias.contiguous(),
        multiplier.contiguous(),
        y,
        x_zero_point,
        y_zero_point,
        y_min,
        y_max,
    )
    return y


def bind_depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    y: Tensor,
    *,
    x_zero_point: int,
    y_zero_point: int,
    stride: int = 1,
    padding: int = 0,
) -> Callable[[], None]:
    """`quantized_depthwise_conv2d` into ``y``, with all that is done once done before.

    Args:
        x: As there, contiguous like all others.
        weight: As there.
        bias: As there.
        multiplier: As there.
        y: uint8, [N, C, H', W'].
        x_zero_point: As there.
        y_zero_point: As there.
        stride: As there.
        padding: As there.
    """
    channels, height, width = x.shape[1:]
    size, num_threads = weight.shape[2], torch.get_num_threads()
    module = _compiled(channels, height, width, size, stride, padding, num_threads, has_vnni())
    use_threads(num_threads)
    return partial(
        module["depthwise"], x, weight, bias, multiplier, y, x_zero_point, y_zero_point, 0, 255
    )


@cache
def _compiled(
    num_channels: int,
    height: int,
    width: int,
    size: int,
    stride: int,
    padding: int,
    num_threads: int,
    vnni: bool,
) -> CompiledModule:
    make = _vnni_function if vnni else _plain_function
    function = make(num_channels, height, width, size, stride, padding, num_threads)
    return compile_module({"depthwise": function}, is_lowered=True)


def _flat(whole: Any, shape: tuple[Any, ...], dtype: str, align: int) -> Any:
    """A parameter seen as one row: a view of the tensor would cost the caller."""
    total = shape[0]
    for length in shape[1:]:
        total = total * length
    return T.decl_buffer((total,), dtype, data=whole.data, align=align)


class _Planes:
    """The arguments and sizes that both forms share; made inside a function's frame."""

    def __init__(
        self, num_channels: int, height: int, width: int, size: int, stride: int, padding: int
    ) -> None:
        self.out_height = (height + 2 * padding - size) // stride + 1
        self.out_width = (width + 2 * padding - size) // stride + 1
        num_images = T.int64()
        channels = num_channels
        out = (num_images, channels, self.out_height, self.out_width)
        shapes: dict[str, tuple[tuple[Any, ...], str, int]] = {
            "x": ((num_images, channels, height, width), "uint8", 1),
            "weight": ((channels, 1, size, size), "int8", 1),
            "bias": ((channels,), "int32", 4),
            "multiplier": ((channels,), "float32", 4),
            "y": (out, "uint8", 1),
        }
        tensors = {
            name: T.match_buffer(T.arg(name, T.handle()), shape, dtype, align=align)
            for name, (shape, dtype, align) in shapes.items()
        }
        names = ("x_zero_point", "y_zero_point", "y_min", "y_max")
        self.points = [T.arg(name, T.int32()) for name in names]
        flat = {name: _flat(tensor, *shapes[name]) for name, tensor in tensors.items()}
        self.x, self.weight, self.bias = flat["x"], flat["weight"], flat["bias"]
        self.multiplier, self.y = flat["multiplier"], flat["y"]
        self.num_planes = T.cast(num_images, "int32") * channels

    def folded_bias(self, channel: Any, words: Any, num_words: int) -> Any:
        """The bias without the input's zero point, from weights in words; a local int32."""
        total = T.broadcast(T.int32(0), NUM_LANES)
        ones = T.broadcast(T.int8(1), NUM_BYTES)
        for start in range(0, num_words, NUM_LANES):
            total = dot(total, ones, load(words, start, NUM_LANES))
        reduce = T.llvm_lookup_intrinsic_id("llvm.vector.reduce.add")
        total = T.call_llvm_pure_intrin(reduce, total, dtype="int32")
        bias = T.alloc_buffer((1,), "int32")
        T.buffer_store(bias, self.bias[channel] - self.points[0] * total, [0])
        return bias


def _emit_copy(target: Any, at: Any, source: Any, start: Any, num_bytes: int) -> None:
    chunk = next(n for n in (64, 32, 16, 8, 4, 2, 1) if n <= num_bytes)
    for i in (*range(0, num_bytes - chunk, chunk), num_bytes - chunk):
        store(target, at + i, load(source, start + i, chunk), chunk)


def _vnni_function(
    num_channels: int,
    height: int,
    width: int,
    size: int,
    stride: int,
    padding: int,
    num_threads: int,
) -> Any:
    row_bytes = -(-(width + 2 * padding) // NUM_BYTES) * NUM_BYTES
    num_rows = height + 2 * padding
    # The last rows are read beyond their end.
    scratch_bytes = (num_rows + 1) * row_bytes + 2 * NUM_BYTES
    num_groups = -(-size // 4)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("depthwise")
        T.func_attr({"tirx.noalias": True})
        planes = _Planes(num_channels, height, width, size, stride, padding)
        loop = T.parallel if num_threads > 1 else T.serial
        with loop(0, num_threads) as worker:
            padded = T.alloc_buffer((scratch_bytes,), "uint8", align=NUM_BYTES)
            point = T.broadcast(T.cast(planes.points[0], "uint8"), NUM_LANES)
            with T.serial(0, scratch_bytes // NUM_LANES) as i:
                store(padded, i * NUM_LANES, point, NUM_LANES)
            first = T.truncdiv(worker * planes.num_planes, num_threads)
            last = T.truncdiv((worker + 1) * planes.num_planes, num_threads)
            with T.serial(0, last - first) as index:
                plane = T.bind(first + index)
                channel = T.bind(T.truncmod(plane, num_channels))
                with T.serial(0, height) as row:
                    at = (row + padding) * row_bytes + padding
                    _emit_copy(padded, at, planes.x, (plane * height + row) * width, width)
                num_words = -(-size * num_groups // NUM_LANES) * NUM_LANES
                words = T.alloc_buffer((num_words,), "int32", align=NUM_BYTES)
                for tap in range(num_words):
                    word = T.int32(0)
                    if tap < size * num_groups:
                        word = _weight_word(planes.weight, channel, size, tap)
                    T.buffer_store(words, word, [tap])
                bias = planes.folded_bias(channel, words, num_words)
                _emit_plane(planes, padded, row_bytes, plane, channel, bias, words, size, stride)
    return builder.get()


def _weight_word(weight: Any, channel: Any, size: int, tap: int) -> Any:
    """Up to four neighbouring taps of one row as the bytes of an int32, without branches."""
    row, group = divmod(tap, -(-size // 4))
    start = (channel * size + row) * size + 4 * group
    num = min(4, size - 4 * group)
    if num == 4:
        return T.reinterpret(load(weight, start, 4), dtype="int32")
    if size * size < 4:
        return T.cast(weight[start], "int32") & 255
    # Four bytes that all lie in this channel's weights.
    before = 4 - num if tap else 0
    word = T.reinterpret(load(weight, start - before, 4), dtype="uint32")
    if before:
        return T.reinterpret(word >> T.uint32(8 * before), dtype="int32")
    return T.reinterpret(word & T.uint32(2 ** (8 * num) - 1), dtype="int32")


def _rows_together(out_height: int, size: int, stride: int) -> int:
    """How many output rows share the rows that are loaded: fewest instructions in all."""

    def cost(num_rows: int) -> int:
        num_groups = -(-size // 4)
        gathered = ((num_rows - 1) * stride + size) * num_groups
        summed = num_rows * size * num_groups
        packed = 16 * -(-num_rows // _PACKED_ROWS)
        return -(-out_height // num_rows) * (gathered + summed + packed)

    return min(range(1, min(_MAX_ROWS, out_height) + 1), key=cost)


def _emit_plane(
    planes: _Planes,
    padded: Any,
    row_bytes: int,
    plane: Any,
    channel: Any,
    bias: Any,
    words: Any,
    size: int,
    stride: int,
) -> None:
    out_height, out_width = planes.out_height, planes.out_width
    num_rows = _rows_together(out_height, size, stride)
    num_columns = min(NUM_LANES, out_width)
    num_groups = -(-size // 4)
    # Half a vector, where that will do, crosses fewer cache lines.
    num_needed = 32 if (NUM_LANES - 1) * stride + 4 * num_groups <= 32 else NUM_BYTES
    ones = 0x01010101
    with T.serial(0, -(-out_height // num_rows)) as row_step:
        row = T.bind(T.min(row_step * num_rows, out_height - num_rows))
        with T.serial(0, -(-out_width // num_columns)) as column_step:
            column = T.bind(T.min(column_step * num_columns, out_width - num_columns))
            sums = T.alloc_buffer((num_rows * NUM_LANES,), "int32", align=NUM_BYTES)
            for r in range(num_rows):
                store(sums, r * NUM_LANES, T.broadcast(bias[0], NUM_LANES), NUM_LANES)
            for line in range((num_rows - 1) * stride + size):
                given = load(
                    padded, (row * stride + line) * row_bytes + column * stride, num_needed
                )
                if num_needed < NUM_BYTES:
                    given = T.Shuffle([given, given], list(range(NUM_BYTES)))
                for group in range(num_groups):
                    # Lane l takes bytes stride * l + 4 * group and the three after it.
                    indices = T.ramp(
                        T.int32(4 * group * ones + 0x03020100), T.int32(stride * ones), NUM_LANES
                    )
                    taps = T.alloc_buffer((NUM_BYTES,), "int8", align=NUM_BYTES)
                    store(taps, 0, permute_bytes(indices, given))
                    for r in range(num_rows):
                        kernel_row = line - r * stride
                        if 0 <= kernel_row < size:
                            word = words[kernel_row * num_groups + group]
                            total = dot(
                                load(sums, r * NUM_LANES, NUM_LANES),
                                load(taps, 0),
                                T.broadcast(word, NUM_LANES),
                            )
                            store(sums, r * NUM_LANES, total, NUM_LANES)
            multiplier = T.broadcast(planes.multiplier[channel], NUM_LANES)
            for r in range(0, num_rows, _PACKED_ROWS):
                members = range(r, min(r + _PACKED_ROWS, num_rows))
                packed = pack_lanes(
                    *(
                        requantize_lanes(
                            load(sums, min(member, members[-1]) * NUM_LANES, NUM_LANES),
                            multiplier,
                            limit=256.0,
                        )
                        for member in range(r, r + _PACKED_ROWS)
                    ),
                    zero_point=planes.points[1],
                    y_min=planes.points[2],
                    y_max=planes.points[3],
                )
                in_rows = T.Shuffle(
                    [T.reinterpret(packed, dtype="int32x16")],
                    [4 * (i % 4) + i // 4 for i in range(NUM_LANES)],
                )
                done = T.alloc_buffer((NUM_BYTES,), "uint8", align=NUM_BYTES)
                store(done, 0, T.reinterpret(in_rows, dtype="uint8x64"))
                for i, member in enumerate(members):
                    at = (plane * out_height + row + member) * out_width + column
                    _emit_copy(planes.y, at, done, i * NUM_LANES, num_columns)


def _plain_function(
    num_channels: int,
    height: int,
    width: int,
    size: int,
    stride: int,
    padding: int,
    num_threads: int,
) -> Any:
    num_rows, num_columns = height + 2 * padding, width + 2 * padding
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("depthwise")
        T.func_attr({"tirx.noalias": True})
        planes = _Planes(num_channels, height, width, size, stride, padding)
        out_height, out_width = planes.out_height, planes.out_width
        loop = T.parallel if num_threads > 1 else T.serial
        with loop(0, planes.num_planes) as plane:
            channel = T.bind(T.truncmod(plane, num_channels))
            padded = T.alloc_buffer((num_rows * num_columns,), "uint8")
            with T.serial(0, num_rows * num_columns) as i:
                T.buffer_store(padded, T.cast(planes.points[0], "uint8"), [i])
            with T.serial(0, height) as row, T.serial(0, width) as column:
                at = (row + padding) * num_columns + padding + column
                T.buffer_store(padded, planes.x[(plane * height + row) * width + column], [at])
            bias = T.alloc_buffer((1,), "int32")
            T.buffer_store(bias, planes.bias[channel], [0])
            with T.serial(0, size * size) as tap:
                weight = T.cast(planes.weight[channel * (size * size) + tap], "int32")
                T.buffer_store(bias, bias[0] - planes.points[0] * weight, [0])
            sums = T.alloc_buffer((out_width,), "int32")
            with T.serial(0, out_height) as row:
                with T.serial(0, out_width) as column:
                    T.buffer_store(sums, bias[0], [column])
                with T.serial(0, size) as i, T.serial(0, size) as j:
                    weight = T.bind(T.cast(planes.weight[(channel * size + i) * size + j], "int32"))
                    with T.serial(0, out_width) as column:
                        at = (row * stride + i) * num_columns + column * stride + j
                        product = T.cast(padded[at], "int32") * weight
                        T.buffer_store(sums, sums[column] + product, [column])
                with T.serial(0, out_width) as column:
                    scaled = T.cast(sums[column], "float32") * planes.multiplier[channel]
                    low, zero, high = (T.cast(planes.points[i], "float32") for i in (2, 1, 3))
                    value = T.max(T.min(T.nearbyint(scaled) + zero, high), low)
                    at = (plane * out_height + row) * out_width + column
                    T.buffer_store(planes.y, T.cast(value, "uint8"), [at])
    return builder.get()
