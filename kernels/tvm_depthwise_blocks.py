"""int8 depthwise convolution on blocks of channels, as loops to emit.

Four rows of one column are interleaved, so that each lane holds four taps of one channel;
one ``vpdpbusd`` sums a column of taps. With stride 1 the same four rows serve two output
rows, and each column is interleaved once for all its outputs. AVX512-VNNI is needed.
"""

from collections.abc import Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from effdl.kernels.tvm_channel_blocks import Output, Vectors, emit_finish, local_buffer
from effdl.kernels.tvm_vnni import NUM_BYTES, NUM_LANES, dot, interleave_rows, load, store

__all__ = ["depthwise_block_bytes", "depthwise_rows", "emit_depthwise_block"]

# Which two of the four quarters of a column are summed at once, so that weights and sums
# stay in registers: whether they are the first, and which.
_HALVES = ((True, (0, 1)), (False, (2, 3)))


def depthwise_rows(out_height: int, stride: int) -> int:
    """Output rows that a depthwise convolution computes together: two share their loads."""
    return 2 if stride == 1 and out_height >= 2 else 1


def depthwise_block_bytes(kernel_size: int, *, num_rows: int, stride: int) -> int:
    """Bytes of one block's weights, as `pack_depthwise_weights` lays them."""
    num_groups = -(-((num_rows - 1) * stride + kernel_size) // 4)
    return kernel_size * num_rows * num_groups * 4 * NUM_BYTES


def emit_depthwise_block(
    *,
    x: Any,
    x_start: Any,
    x_columns: int,
    vectors: Vectors,
    width: int,
    kernel_size: int,
    stride: int,
    num_rows: int,
    y: Any,
    y_start: Any,
    height: Any,
    columns: int,
    output: Output,
) -> None:
    """A depthwise convolution for ``width`` channels of an input with its borders.

    Args:
        x: Buffer of the input.
        x_start: Where the block's row of the first output row's first tap begins.
        x_columns: Its columns, borders included.
        vectors: The block's weights.
        width: 64, 32 or 16.
        kernel_size: Rows and columns of the weights.
        stride: Of both.
        num_rows: Output rows that are computed together.
        y: Buffer of the output, without borders.
        y_start: Where the block's first output row begins.
        height: How many rows, at least ``num_rows``.
        columns: Output columns, at least 64 / width.
        output: How sums become bytes.
    """
    group = NUM_BYTES // width
    num_groups = -(-((num_rows - 1) * stride + kernel_size) // 4)
    num_taps = (num_rows - 1) * stride + kernel_size
    rolls = stride == 1 and group == 1
    num_units = 1 if rolls or num_rows > 1 or columns < 2 * group else 2
    nothing = T.broadcast(T.uint8(0), NUM_BYTES)

    def fetch(at: Any) -> Any:
        if stride == 1 or group == 1:
            return load(x, at)
        places = [load(x, at + i * stride * width, width) for i in range(group)]
        return T.Shuffle(places, list(range(NUM_BYTES)))

    def interleaved(at: Any, quarters: tuple[int, int]) -> Any:
        words = local_buffer(num_groups * 2 * NUM_BYTES, "uint8")
        for g in range(num_groups):
            rows = [
                fetch(at + row * x_columns * width) if row < num_taps else nothing
                for row in range(4 * g, 4 * g + 4)
            ]
            for v, quarter in enumerate(quarters):
                store(words, (2 * g + v) * NUM_BYTES, interleave_rows(rows, quarter))
        return words

    def accumulate(
        sums: Any, source: int, target: int, words: Any, tap: int, quarters: tuple[int, int]
    ) -> None:
        for r in range(num_rows):
            for v, quarter in enumerate(quarters):
                place = (2 * r + v) * NUM_LANES
                bias = vectors.offset + NUM_LANES * quarter
                total = load(vectors.bias, bias, 16) if tap == 0 else load(sums, source + place, 16)
                for g in range(num_groups):
                    first, last = r * stride, r * stride + kernel_size
                    if first < 4 * g + 4 and last > 4 * g:
                        taps = ((tap * num_rows + r) * num_groups + g) * 4 + quarter
                        weights = load(vectors.weights, vectors.weight_offset + taps * NUM_BYTES)
                        total = dot(total, load(words, (2 * g + v) * NUM_BYTES), weights)
                store(sums, target + place, total, 16)

    def finish(sums: Any, pairs: Sequence[int], places: Sequence[Any], first: bool) -> None:
        # Bytes of two places at once: the first two quarters wait in the output.
        quarters = (0, 1) if first else (2, 3)
        packed = emit_finish(
            [load(sums, at + v * NUM_LANES, 16) for at in pairs for v in range(2)],
            [load(vectors.multiplier, vectors.offset + NUM_LANES * q, 16) for q in quarters * 2],
            output,
        )
        if first:
            store(y, places[-1], packed)
            return
        halves = local_buffer(2 * NUM_BYTES, "uint8")
        store(halves, 0, load(y, places[-1]))
        store(halves, NUM_BYTES, packed)
        words = [T.reinterpret(load(halves, i * NUM_BYTES), dtype="int64x8") for i in (0, 1)]
        for side, place in enumerate(places):
            order = [side + 2 * (i // 2) + 8 * (i % 2) for i in range(8)]
            store(y, place, T.reinterpret(T.Shuffle(words, order), dtype="uint8x64"))

    row_bytes, size = columns * width, num_rows * 2 * NUM_LANES
    with T.serial(0, (height + num_rows - 1) // num_rows) as step:
        row = T.bind(T.min(step * num_rows, height - num_rows))
        x_row = T.bind(x_start + row * stride * x_columns * width)
        y_row = T.bind(y_start + row * row_bytes)
        if not rolls:
            # A last part that overlaps the one before must not find its first half gone.
            rest = columns % (num_units * group)
            apart = rest == 0 or (num_units == 2 and rest >= group)
            for halves in [(half,) for half in _HALVES] if apart else [_HALVES]:
                with T.serial(0, -(-columns // (num_units * group))) as part:
                    left = T.bind(T.min(part * (num_units * group), columns - num_units * group))
                    for first, quarters in halves:
                        sums = local_buffer(num_units * size, "int32")
                        for unit in range(num_units):
                            at = unit * size
                            for tap in range(kernel_size):
                                column = (left + unit * group) * stride + tap
                                words = interleaved(x_row + column * width, quarters)
                                accumulate(sums, at, at, words, tap, quarters)
                        ends = [
                            (unit * size + r * 2 * NUM_LANES, unit * NUM_BYTES + r * row_bytes)
                            for unit in range(num_units)
                            for r in range(num_rows)
                        ]
                        finish(
                            sums,
                            [ends[0][0], ends[-1][0]],
                            [y_row + left * width + place for _, place in ends],
                            first,
                        )
        for first, quarters in _HALVES if rolls else ():
            # Sums of tap t belong to the output t columns back: each column moves them on.
            sums = local_buffer(kernel_size * size, "int32")
            for column in range(kernel_size - 1):
                words = interleaved(x_row + column * width, quarters)
                for tap in reversed(range(column + 1)):
                    accumulate(sums, (tap - 1) * size, tap * size, words, tap, quarters)
            with T.serial(0, columns) as column:
                words = interleaved(x_row + (column + kernel_size - 1) * width, quarters)
                for tap in reversed(range(kernel_size)):
                    accumulate(sums, (tap - 1) * size, tap * size, words, tap, quarters)
                last = (kernel_size - 1) * size
                finish(
                    sums,
                    [last + r * 2 * NUM_LANES for r in (0, num_rows - 1)],
                    [y_row + r * row_bytes + column * width for r in range(num_rows)],
                    first,
                )
