"""int8 matrix product with requantization, as a TensorIR function.

Output channels stand in the lanes; each weight vector serves several rows and each
broadcast of four activation bytes several panels. Rows come in blocks that stay in the
second-level cache while the weights pass by.
"""

from typing import Any

from tvm.script import tirx as T

from effdl.kernels.tvm_dot import DotProduct
from effdl.kernels.tvm_panels import NUM_LIMITS, alloc_sums, lanes, requantize_tile, set_lanes

__all__ = ["choose_tile", "linear_function"]

Tensors = tuple[Any, Any, Any, Any, Any, Any]

_ROW_BLOCK_BYTES = 256 * 1024


def choose_tile(num_rows: int, dot_product: DotProduct) -> tuple[int, int]:
    """Rows and panels whose sums stay in registers together.

    A matrix-vector product reads its weights as four streams; products of many rows
    prefer few panels, whose weights stay in the first-level cache.
    """
    is_wide = dot_product.num_registers > 16
    if num_rows < 4:
        return num_rows, 4 if is_wide or num_rows == 1 else 2
    if not is_wide:
        return 4, 2
    return (4, 4) if num_rows < 8 else (8, 3)


def linear_function(
    dot_product: DotProduct,
    *,
    num_inputs: int,
    num_outputs: int,
    tile_rows: int,
    tile_panels: int,
) -> Any:
    """``linear(x, weight, bias, multiplier, limits, y)`` for any number of rows >= ``tile_rows``.

    Args:
        dot_product: Instructions to use.
        num_inputs: K, a multiple of four.
        num_outputs: N.
        tile_rows: Rows computed together. The last tile overlaps the one before it.
        tile_panels: Panels computed together.
    """
    num_lanes, num_bytes = dot_product.num_lanes, dot_product.num_bytes
    num_words = num_inputs // 4
    num_panels = -(-num_outputs // num_lanes)
    num_whole = num_outputs // num_lanes // tile_panels
    num_groups = num_whole + (num_whole * tile_panels < num_panels)
    block_tiles = max(1, _ROW_BLOCK_BYTES // (num_inputs * tile_rows))

    def emit_tile(
        tensors: Tensors, row: Any, panel: Any, *, width: int = 1, num_valid: int = num_lanes
    ) -> None:
        x, weight, bias, multiplier, limits, y = tensors
        sums = [alloc_sums(width, num_lanes) for _ in range(tile_rows)]
        for v in range(width):
            start = lanes(bias, (panel + v) * num_lanes, num_lanes)
            for i in range(tile_rows):
                set_lanes(sums[i][v], start, 0, num_lanes)
        with T.serial(num_words) as k:
            for i in range(tile_rows):
                word = T.reinterpret(x[row + i, T.ramp(k * 4, 1, 4)], dtype="int32")
                activation = dot_product.broadcast_word(word)
                for v in range(width):
                    vector = weight[panel + v, k, T.ramp(0, 1, num_bytes)]
                    before = lanes(sums[i][v], 0, num_lanes)
                    after = dot_product.emit(before, activation, vector)
                    set_lanes(sums[i][v], after, 0, num_lanes)
        for i in range(tile_rows):
            for v in range(width):
                column = (panel + v) * num_lanes
                real = requantize_tile(
                    lanes(sums[i][v], 0, num_lanes),
                    lanes(multiplier, column, num_lanes),
                    limits,
                    num_lanes,
                )
                quantized = T.cast(real, f"uint8x{num_lanes}")
                if num_valid == num_lanes:
                    T.buffer_store(y, quantized, [row + i, T.ramp(column, 1, num_lanes)])
                else:
                    for lane in range(num_valid):
                        T.buffer_store(y, T.Shuffle([quantized], [lane]), [row + i, column + lane])

    def emit_group(tensors: Tensors, row: Any, group: Any) -> None:
        """Panels of one step of the outer loop; the last takes what is left over."""
        row = T.bind(row)
        with T.If(group < num_whole):
            with T.Then():
                emit_tile(tensors, row, group * tile_panels, width=tile_panels)
            with T.Else():
                for panel in range(num_whole * tile_panels, num_panels):
                    valid = min(num_lanes, num_outputs - panel * num_lanes)
                    emit_tile(tensors, row, panel, num_valid=valid)

    @T.prim_func(s_tir=True)
    def linear(
        x_ptr: T.handle,
        weight_ptr: T.handle,
        bias_ptr: T.handle,
        multiplier_ptr: T.handle,
        limits_ptr: T.handle,
        y_ptr: T.handle,
    ):
        m = T.int64()
        x = T.match_buffer(x_ptr, (m, num_inputs), "uint8", align=1)
        weight = T.match_buffer(weight_ptr, (num_panels, num_words, num_bytes), "int8", align=16)
        bias = T.match_buffer(bias_ptr, (num_panels * num_lanes,), "int32", align=4)
        multiplier = T.match_buffer(multiplier_ptr, (num_panels * num_lanes,), "float32", align=4)
        limits = T.match_buffer(limits_ptr, (NUM_LIMITS,), "float32", align=4)
        y = T.match_buffer(y_ptr, (m, num_outputs), "uint8", align=1)
        for block in T.serial(T.ceildiv(m, tile_rows * block_tiles)):
            for group in T.parallel(num_groups):
                for t in T.serial(
                    T.min(block_tiles, T.ceildiv(m, tile_rows) - block * block_tiles)
                ):
                    emit_group(
                        (x, weight, bias, multiplier, limits, y),
                        T.min((block * block_tiles + t) * tile_rows, m - tile_rows),
                        group,
                    )

    return linear
