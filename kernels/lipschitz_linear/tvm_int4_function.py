"""Products with weights of four bits, as TensorIR functions.

A byte of weights holds inputs k and k + 4 of one output, so that after a mask and a shift
four neighbouring activation bytes meet their weights. Weights stand as 0..15 and are taken
for -8..7 by subtracting eight times the sum of the activations. Four panels lie side by
side and are read as one stream: at a few rows the time goes into reading them.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from effdl.kernels.tvm_dot import DotProduct
from effdl.kernels.tvm_panels import NUM_LIMITS, alloc_sums, lanes, requantize_tile, set_lanes

__all__ = [
    "NUM_PANELS",
    "NUM_PARTS",
    "int4_float_function",
    "int4_integer_function",
    "padded_group",
]

# Bytes of a quantized activation, high and low, and its largest integer.
NUM_PARTS = 2
_LARGEST = 127 * 256

NUM_PANELS = 4


def padded_group(num_inputs: int, num_groups: int) -> int:
    """Inputs of a group, filled up to whole steps of eight, and to one at the least."""
    return max(1, -(-(num_inputs // num_groups) // 8)) * 8


def int4_float_function(
    dot_product: DotProduct,
    *,
    num_inputs: int,
    num_outputs: int,
    num_groups: int,
    tile_rows: int,
) -> Any:
    """``int4(x, weight, scale, x_bytes, x_sums, x_scale, y)`` for any number of rows.

    Args:
        dot_product: Instructions to use.
        num_inputs: K.
        num_outputs: N, a multiple of the outputs in four panels.
        num_groups: Parts of a row of weights with a scale each.
        tile_rows: Rows computed together. The last tile overlaps the one before it.
    """
    num_lanes = dot_product.num_lanes
    group_inputs = num_inputs // num_groups
    group_bytes = padded_group(num_inputs, num_groups)
    row_bytes = num_groups * group_bytes
    num_steps = group_bytes // 8
    num_tiles = num_outputs // (NUM_PANELS * num_lanes)
    vector = f"float32x{num_lanes}"

    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("int4")
        m, num_x_bytes, num_sums, num_scales = T.int64(), T.int64(), T.int64(), T.int64()
        x = _argument("x", (m, num_inputs), "float32")
        weight = _weight_argument(dot_product, num_tiles, num_groups * num_steps)
        scale = _argument("scale", (num_groups, num_outputs), "float32")
        x_bytes = _argument("x_bytes", (num_x_bytes,), "int8")
        x_sums = _argument("x_sums", (num_sums,), "int32")
        x_scale = _argument("x_scale", (num_scales,), "float32")
        y = _argument("y", (m, num_outputs), "float32")
        with T.serial(m) as row:
            _emit_scale(x, x_scale, row, num_inputs)
            with T.serial(num_groups) as group:
                starts = [
                    (row * NUM_PARTS + part) * row_bytes + group * group_bytes
                    for part in range(NUM_PARTS)
                ]
                _emit_bytes(x, x_scale, x_bytes, row, group * group_inputs, group_inputs, starts)
                for part, start in enumerate(starts):
                    place = (row * NUM_PARTS + part) * num_groups + group
                    _emit_sum(x_sums, place, x_bytes, start, group_inputs, group_bytes)
        with T.parallel(num_tiles) as tile, T.serial(T.ceildiv(m, tile_rows)) as row_tile:
            first = T.bind(T.min(row_tile * tile_rows, m - tile_rows))
            total = [alloc_sums(NUM_PANELS, num_lanes, "float32") for _ in range(tile_rows)]
            for panels in total:
                for panel in panels:
                    set_lanes(panel, T.broadcast(T.float32(0), num_lanes), 0, num_lanes)
            parts = [first * NUM_PARTS + i for i in range(tile_rows * NUM_PARTS)]
            with T.serial(num_groups) as group:
                sums = _emit_product(
                    dot_product,
                    num_steps,
                    x_bytes,
                    [part * row_bytes + group * group_bytes for part in parts],
                    [x_sums[part * num_groups + group] * -8 for part in parts],
                    lambda step, panel: weight[
                        tile, group * num_steps + step, panel, T.ramp(0, 1, dot_product.num_bytes)
                    ],
                    x_is_signed=True,
                )
                for i, panels in enumerate(total):
                    for panel, accumulated in enumerate(panels):
                        values = [
                            T.cast(lanes(row[panel], 0, num_lanes), vector)
                            for row in sums[i * NUM_PARTS : (i + 1) * NUM_PARTS]
                        ]
                        # Exact but for the sum: a product with a power of two.
                        value = values[0] * T.broadcast(T.float32(256), num_lanes) + values[1]
                        column = (tile * NUM_PANELS + panel) * num_lanes
                        by = scale[group, T.ramp(column, 1, num_lanes)]
                        before = lanes(accumulated, 0, num_lanes)
                        set_lanes(accumulated, _fma(value, by, before, vector), 0, num_lanes)
            for i, panels in enumerate(total):
                for panel, accumulated in enumerate(panels):
                    column = (tile * NUM_PANELS + panel) * num_lanes
                    by = T.broadcast(x_scale[first + i], num_lanes)
                    value = lanes(accumulated, 0, num_lanes) * by
                    T.buffer_store(y, value, [first + i, T.ramp(column, 1, num_lanes)])
    return builder.get()


def int4_integer_function(
    dot_product: DotProduct, *, num_inputs: int, num_outputs: int, tile_rows: int
) -> Any:
    """``int4(x, weight, bias, multiplier, limits, x_sums, y)`` for any number of rows.

    Args:
        dot_product: Instructions to use.
        num_inputs: K, a multiple of eight.
        num_outputs: N, a multiple of the outputs in four panels.
        tile_rows: Rows computed together. The last tile overlaps the one before it.
    """
    num_lanes = dot_product.num_lanes
    num_steps = num_inputs // 8
    num_tiles = num_outputs // (NUM_PANELS * num_lanes)

    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("int4")
        m, num_bytes, num_sums = T.int64(), T.int64(), T.int64()
        x = _argument("x", (num_bytes,), "uint8")
        weight = _weight_argument(dot_product, num_tiles, num_steps)
        bias = _argument("bias", (num_outputs,), "int32")
        multiplier = _argument("multiplier", (num_outputs,), "float32")
        limits = _argument("limits", (NUM_LIMITS,), "float32")
        x_sums = _argument("x_sums", (num_sums,), "int32")
        y = _argument("y", (m, num_outputs), "uint8")
        with T.serial(m) as row:
            _emit_sum(x_sums, row, x, row * num_inputs, num_inputs, num_inputs)
        with T.parallel(num_tiles) as tile, T.serial(T.ceildiv(m, tile_rows)) as row_tile:
            first = T.bind(T.min(row_tile * tile_rows, m - tile_rows))
            sums = _emit_product(
                dot_product,
                num_steps,
                x,
                [(first + i) * num_inputs for i in range(tile_rows)],
                [x_sums[first + i] * -8 for i in range(tile_rows)],
                lambda step, panel: weight[tile, step, panel, T.ramp(0, 1, dot_product.num_bytes)],
                x_is_signed=False,
            )
            for i, row in enumerate(sums):
                for panel, total in enumerate(row):
                    column = (tile * NUM_PANELS + panel) * num_lanes
                    real = requantize_tile(
                        lanes(total, 0, num_lanes) + lanes(bias, column, num_lanes),
                        lanes(multiplier, column, num_lanes),
                        limits,
                        num_lanes,
                    )
                    quantized = T.cast(real, f"uint8x{num_lanes}")
                    T.buffer_store(y, quantized, [first + i, T.ramp(column, 1, num_lanes)])
    return builder.get()


def _argument(name: str, shape: tuple[Any, ...], dtype: str) -> Any:
    align = 4 if dtype.endswith("32") else 1
    return T.match_buffer(T.arg(name, T.handle()), shape, dtype, align=align)


def _weight_argument(dot_product: DotProduct, num_tiles: int, num_steps: int) -> Any:
    shape = (num_tiles, num_steps, NUM_PANELS, dot_product.num_bytes)
    return T.match_buffer(T.arg("weight", T.handle()), shape, "uint8", align=16)


def _fma(first: Any, second: Any, third: Any, dtype: str) -> Any:
    operator = T.llvm_lookup_intrinsic_id("llvm.fma")
    return T.call_llvm_pure_intrin(operator, first, second, third, dtype=dtype)


def _emit_product(
    dot_product: DotProduct,
    num_steps: int,
    x: Any,
    places: Sequence[Any],
    starts: Sequence[Any],
    weight: Callable[[Any, int], Any],
    *,
    x_is_signed: bool,
) -> list[list[Any]]:
    """Sums of four panels for each row of bytes.

    Args:
        dot_product: Instructions to use.
        num_steps: Of eight inputs.
        x: Bytes, flat.
        places: Where each row begins.
        starts: What each row's sums begin with, int32.
        weight: ``(step, panel)`` to a vector of bytes.
        x_is_signed: Whether x is int8, not uint8.
    """
    num_lanes, num_bytes = dot_product.num_lanes, dot_product.num_bytes
    emit = dot_product.emit_small_unsigned if x_is_signed else dot_product.emit_small_signed
    mask = T.broadcast(T.uint8(15), num_bytes)
    four = T.broadcast(T.uint16(4), num_bytes // 2)
    sums = [alloc_sums(NUM_PANELS, num_lanes) for _ in places]
    places = [T.bind(place) for place in places]
    for row, start in zip(sums, starts, strict=True):
        for total in row:
            set_lanes(total, T.broadcast(start, num_lanes), 0, num_lanes)
    with T.serial(num_steps) as step:
        for panel in range(NUM_PANELS):
            both = T.bind(weight(step, panel))
            pairs = T.reinterpret(both, dtype=f"uint16x{num_bytes // 2}")
            high = T.reinterpret(T.shift_right(pairs, four), dtype=f"uint8x{num_bytes}")
            for half, part in enumerate((both, high)):
                nibbles = T.bind(T.bitwise_and(part, mask))
                for row, place in zip(sums, places, strict=True):
                    word = T.reinterpret(lanes(x, place + step * 8 + half * 4, 4), dtype="int32")
                    activation = dot_product.broadcast_word(word)
                    factors = (nibbles, activation) if x_is_signed else (activation, nibbles)
                    after = emit(lanes(row[panel], 0, num_lanes), *factors)
                    set_lanes(row[panel], after, 0, num_lanes)
    return sums


def _vector_width(size: int) -> int:
    return next(width for width in (16, 8, 4, 2) if width <= size)


def _emit_scale(x: Any, x_scale: Any, row: Any, num_inputs: int) -> None:
    """A row's scale: its largest size over the largest integer; not a number if any is not."""
    width = _vector_width(num_inputs)
    sizes, faults = alloc_sums(2, width, "float32")
    zero = T.broadcast(T.float32(0), width)
    set_lanes(sizes, zero, 0, width)
    set_lanes(faults, zero, 0, width)
    with T.serial(-(-num_inputs // width)) as i:
        start = T.min(i * width, num_inputs - width)
        values = T.bind(x[row, T.ramp(start, 1, width)])
        size = T.max(values, zero - values)
        set_lanes(sizes, T.max(lanes(sizes, 0, width), size), 0, width)
        set_lanes(faults, lanes(faults, 0, width) + values * zero, 0, width)
    size, fault = alloc_sums(2, 1, "float32")
    T.buffer_store(size, T.float32(0), [0])
    T.buffer_store(fault, T.float32(0), [0])
    for lane in range(width):
        T.buffer_store(size, T.max(size[0], sizes[lane]), [0])
        T.buffer_store(fault, fault[0] + faults[lane], [0])
    scale = size[0] / T.float32(_LARGEST)
    safe = T.if_then_else(size[0] > T.float32(0), scale, T.float32(1))
    T.buffer_store(x_scale, safe + fault[0], [row])


def _emit_bytes(
    x: Any, x_scale: Any, x_bytes: Any, row: Any, first: Any, num: int, starts: Sequence[Any]
) -> None:
    """``num`` inputs of a row, quantized: the high byte and the low one of each."""
    width = _vector_width(num)
    with T.serial(-(-num // width)) as i:
        offset = T.bind(T.min(i * width, num - width))
        scale = T.broadcast(x_scale[row], width)
        rounded = T.nearbyint(x[row, T.ramp(first + offset, 1, width)] / scale)
        integer = T.bind(T.cast(rounded, f"int32x{width}"))
        half, eight = (T.broadcast(T.int32(value), width) for value in (128, 8))
        high = T.bind(T.shift_right(integer + half, eight))
        low = integer - T.shift_left(high, eight)
        for part, start in zip((high, low), starts, strict=True):
            set_lanes(x_bytes, T.cast(part, f"int8x{width}"), start + offset, width)


def _emit_sum(sums: Any, place: Any, x: Any, start: Any, num: int, num_filled: int) -> None:
    """The sum of ``num`` bytes; those up to ``num_filled`` are set to zero."""
    if num < num_filled:
        with T.serial(num, num_filled) as i:
            T.buffer_store(x, T.int8(0), [start + i])
    (total,) = alloc_sums(1, 1)
    T.buffer_store(total, T.int32(0), [0])
    with T.serial(num) as i:
        T.buffer_store(total, total[0] + T.cast(x[start + i], "int32"), [0])
    T.buffer_store(sums, total[0], [place])
