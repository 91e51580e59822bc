"""int8 convolutions on blocks of channels (`effdl.kernels.channel_blocks`), as loops to emit.

Each function emits the loops for one block of output channels into the TensorIR function
that is being built; AVX512-VNNI and VBMI are needed. Channels stand in the lanes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from effdl.kernels.channel_blocks import Block, channel_blocks
from effdl.kernels.tvm_vnni import (
    NUM_BYTES,
    NUM_LANES,
    broadcast_bytes,
    dot,
    interleave_rows,
    load,
    pack_lanes,
    requantize_lanes,
    round_lanes,
    store,
)

__all__ = [
    "Addition",
    "Output",
    "Vectors",
    "emit_bias",
    "emit_bytes",
    "emit_fill",
    "emit_fill_columns",
    "emit_finish",
    "for_blocks",
    "layer_arguments",
    "local_buffer",
    "emit_pointwise_block",
    "emit_products",
    "pixels_in_tile",
    "store_pixels",
    "tensor_argument",
    "vectors_at",
]

# The number of sums that hide an instruction's latency and still stay in registers.
_MAX_SUMS = 24
Put = Callable[[Any, int, Any], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """How sums become bytes.

    Attributes:
        zero_point: Of the output.
        y_min: Smallest output.
        y_max: Largest output.
        limits: Whether products of sums and multipliers may pass 2**31.
    """

    zero_point: int = 0
    y_min: int = 0
    y_max: int = 255
    limits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """A second summand of the output, added as ONNX Runtime adds quantized tensors.

    ``round(first * ratio + (second * ratio + offset))`` in float32, each product and sum
    rounded once.

    Attributes:
        other: Its buffer, in the layout of the output.
        y_ratio: Scale of the output before the addition over the scale of the sum.
        other_ratio: Scale of the other summand over the scale of the sum.
        offset: What the zero points amount to.
        other_first: Whether the other one is the first summand.
    """

    other: Any
    y_ratio: float
    other_ratio: float
    offset: float
    other_first: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """Weights, biases and multipliers of one block, in the order of the lanes.

    Attributes:
        weights: int8 buffer.
        weight_offset: Where the block's begin.
        bias: int32 buffer; the input's zero point is in it.
        multiplier: float32 buffer.
        offset: Where the block's begin, in both.
    """

    weights: Any
    weight_offset: Any
    bias: Any
    multiplier: Any
    offset: Any


def tensor_argument(name: str, size: int, dtype: str = "uint8", align: int = 64) -> Any:
    """A parameter of the function that is being built."""
    return T.match_buffer(T.arg(name, T.handle()), (size,), dtype, align=align)


def local_buffer(size: int, dtype: str) -> Any:
    """Memory of the function; registers, where all its indices are constant."""
    return T.alloc_buffer((size,), dtype, align=NUM_BYTES)


def _shuffle_words(value: Any, dtype: str, order: Sequence[int]) -> Any:
    words = T.reinterpret(value, dtype=dtype)
    return T.reinterpret(T.Shuffle([words], list(order)), dtype=f"uint8x{NUM_BYTES}")


def _to_pixels(value: Any, width: int) -> Any:
    """From `pack_lanes` of several pixels' vectors to pixel after pixel."""
    if width == 32:
        return _shuffle_words(value, "int64x8", [0, 2, 4, 6, 1, 3, 5, 7])
    if width == 16:
        return _shuffle_words(value, "int32x16", [4 * (i % 4) + i // 4 for i in range(16)])
    return value


def _from_pixels(value: Any, width: int) -> Any:
    if width == 32:
        return _shuffle_words(value, "int64x8", [0, 4, 1, 5, 2, 6, 3, 7])
    return _to_pixels(value, width)


def store_pixels(buffer: Any, offset: Any, value: Any, num_bytes: int, first: int = 0) -> None:
    """Write ``num_bytes`` bytes of uint8x64, from the byte ``first`` on."""
    if num_bytes < NUM_BYTES:
        value = T.Shuffle([value], list(range(first, first + num_bytes)))
    store(buffer, offset, value, num_bytes)


def emit_finish(
    sums: Sequence[Any],
    multipliers: Sequence[Any],
    output: Output,
    summand: tuple[Addition, Any] | None = None,
) -> Any:
    """Four int32x16 of sums as uint8x64, in the order of `pack_lanes`.

    Args:
        sums: Four vectors with the bias.
        multipliers: Their multipliers.
        output: How sums become bytes.
        summand: A second summand and its bytes in that order.
    """
    limit = 256.0 if output.limits else None
    if summand is None:
        lanes = [
            requantize_lanes(s, m, limit=limit) for s, m in zip(sums, multipliers, strict=True)
        ]
        return pack_lanes(
            *lanes, zero_point=output.zero_point, y_min=output.y_min, y_max=output.y_max
        )
    addition, other = summand
    nothing = T.broadcast(T.uint8(0), NUM_BYTES)
    added = []
    for part, (s, m) in enumerate(zip(sums, multipliers, strict=True)):
        y = requantize_lanes(s, m, limit=limit, zero_point=output.zero_point)
        y = T.max(T.min(y, _lanes(T.int32(output.y_max))), _lanes(T.int32(output.y_min)))
        apart = interleave_rows([other, nothing, nothing, nothing], part)
        others = T.cast(T.reinterpret(apart, dtype="int32x16"), "float32x16")
        summands = [(others, addition.other_ratio), (T.cast(y, "float32x16"), addition.y_ratio)]
        if not addition.other_first:
            summands.reverse()
        total = _lanes(T.float32(addition.offset))
        for value, ratio in reversed(summands):
            total = _fused(value, ratio, total)
        added.append(round_lanes(total))
    return pack_lanes(*added)


def _fused(value: Any, factor: float, summand: Any) -> Any:
    """``value * factor + summand`` with one rounding, float32x16."""
    return T.call_llvm_pure_intrin(
        T.llvm_lookup_intrinsic_id("llvm.fma"),
        value,
        _lanes(T.float32(factor)),
        summand,
        dtype="float32x16",
    )


def _lanes(value: Any) -> Any:
    return T.broadcast(value, NUM_LANES)


def pixels_in_tile(width: int, num_pixels: int) -> int:
    """How many pixels of a block are summed at once: few recomputed, registers full."""
    step = NUM_BYTES // width
    most = _MAX_SUMS * NUM_LANES // width
    choices = [n for n in range(most, most // 2, -step) if n <= num_pixels] or [num_pixels]
    return min(choices, key=lambda n: (-(-num_pixels // n) * n + 2 * -(-num_pixels // n), -n))


def emit_pointwise_block(
    *,
    x: Any,
    x_pixels: int,
    inputs: Sequence[Block],
    num_inputs: int,
    vectors: Vectors,
    width: int,
    tile: int,
    first_pixel: Any,
    num_pixels: Any,
    output: Output,
    put: Put,
    x_start: Any = 0,
    addition: Addition | None = None,
    addition_offset: Any = 0,
) -> None:
    """A 1x1 convolution for ``width`` output channels.

    Args:
        x: Buffer of the input, unpadded.
        x_pixels: Pixels of one of its blocks.
        inputs: Its blocks.
        num_inputs: Its channels.
        vectors: The block's weights.
        width: 64, 32 or 16.
        tile: From `pixels_in_tile`.
        first_pixel: Where to begin.
        num_pixels: How many pixels, at least ``tile``.
        output: How sums become bytes.
        put: Writes bytes: from the first pixel, the number of pixels, and uint8x64.
        x_start: Where the input begins.
        addition: A residual summand.
        addition_offset: Where its block begins.
    """
    with T.serial(0, (num_pixels + tile - 1) // tile) as step:
        pixel = T.bind(first_pixel + T.min(step * tile, num_pixels - tile))
        sums = emit_bias(vectors, width, tile)
        for block in inputs:
            with T.serial(0, -(-min(block.width, num_inputs - block.start) // 4)) as k:
                place = x_start + block.start * x_pixels + pixel * block.width + 4 * k
                emit_products(
                    sums, x, place, block.width, vectors, block.start // 4 + k, width, tile
                )
        emit_bytes(
            sums,
            vectors,
            width,
            tile,
            pixel,
            output,
            put,
            addition=addition,
            addition_offset=addition_offset,
        )


def emit_bias(vectors: Vectors, width: int, tile: int) -> Any:
    """Sums of ``tile`` pixels that hold the bias, a local buffer."""
    sums = local_buffer(tile * width, "int32")
    for i in range(tile):
        for lane in range(0, width, NUM_LANES):
            bias = load(vectors.bias, vectors.offset + lane, NUM_LANES)
            store(sums, i * width + lane, bias, NUM_LANES)
    return sums


def emit_products(
    sums: Any,
    x: Any,
    place: Any,
    pixel_bytes: int,
    vectors: Vectors,
    step: Any,
    width: int,
    tile: int,
) -> None:
    """Add the products of four inputs of each pixel.

    Args:
        sums: From `emit_bias`.
        x: Buffer of the input.
        place: Where the first pixel's four bytes stand.
        pixel_bytes: How much further the next pixel's do.
        vectors: The block's weights.
        step: Which four inputs.
        width: Output channels.
        tile: Pixels.
    """
    row = vectors.weight_offset + step * 4 * width
    for i in range(tile):
        given = broadcast_bytes(x, place + i * pixel_bytes)
        for v in range(width // NUM_LANES):
            at = i * width + NUM_LANES * v
            weights = load(vectors.weights, row + NUM_BYTES * v)
            store(sums, at, dot(load(sums, at, NUM_LANES), given, weights), NUM_LANES)


def emit_bytes(
    sums: Any,
    vectors: Vectors,
    width: int,
    tile: int,
    pixel: Any,
    output: Output,
    put: Put,
    *,
    addition: Addition | None = None,
    addition_offset: Any = 0,
) -> None:
    """Requantize the sums of ``tile`` pixels and write them; see `emit_pointwise_block`."""
    num_vectors, group = width // NUM_LANES, NUM_BYTES // width
    multipliers = [
        load(vectors.multiplier, vectors.offset + NUM_LANES * (j % num_vectors), NUM_LANES)
        for j in range(4)
    ]
    for i in range(0, tile, group):
        num = min(group, tile - i)
        # A group that is not full repeats its last pixel, which is not stored.
        members = [min(i + j, tile - 1) for j in range(group) for _ in range(num_vectors)]
        parts = [
            load(sums, member * width + NUM_LANES * (j % num_vectors), NUM_LANES)
            for j, member in enumerate(members)
        ]
        summand = None
        if addition is not None:
            other = _load_pixels(addition.other, addition_offset + (pixel + i) * width, num, width)
            summand = (addition, _from_pixels(other, width))
        put(pixel + i, num, _to_pixels(emit_finish(parts, multipliers, output, summand), width))


def _load_pixels(buffer: Any, offset: Any, num: int, width: int) -> Any:
    if num * width == NUM_BYTES:
        return load(buffer, offset)
    parts = [
        load(buffer, offset + min(i, num - 1) * width, width) for i in range(NUM_BYTES // width)
    ]
    return T.Shuffle(parts, list(range(NUM_BYTES)))


def emit_fill(buffer: Any, start: Any, num_bytes: Any, value: int) -> None:
    """Fill a multiple of 16 bytes."""
    with T.serial(0, num_bytes // NUM_LANES) as i:
        vector = T.broadcast(T.uint8(value), NUM_LANES)
        store(buffer, start + i * NUM_LANES, vector, NUM_LANES)


def emit_fill_columns(
    buffer: Any, start: Any, *, rows: int, columns: int, width: int, padding: int, value: int
) -> None:
    """Fill the columns left and right of an image that stands between borders."""
    with T.serial(0, rows) as row:
        for side in (0, columns - padding):
            emit_fill(buffer, start + (row * columns + side) * width, padding * width, value)


def layer_arguments(name: str, num_weights: int, num_outputs: int) -> tuple[Any, Any, Any]:
    """Parameters for a layer's weights, biases and multipliers."""
    return (
        tensor_argument(f"{name}_weights", num_weights, "int8"),
        tensor_argument(f"{name}_bias", num_outputs, "int32"),
        tensor_argument(f"{name}_multiplier", num_outputs, "float32"),
    )


def vectors_at(layer: tuple[Any, Any, Any], weight_offset: Any, offset: Any) -> Vectors:
    """A block's part of them."""
    weights, bias, multiplier = layer
    return Vectors(
        weights=weights,
        weight_offset=weight_offset,
        bias=bias,
        multiplier=multiplier,
        offset=offset,
    )


def for_blocks(
    num_channels: int, emit: Callable[[Any, Any, int], None], *, is_parallel: bool = False
) -> None:
    """Emit ``emit(index, first channel, width)``: a loop over the full blocks, then the rest."""
    blocks = channel_blocks(num_channels)
    num_full = sum(block.width == NUM_BYTES for block in blocks)
    if num_full:
        loop = T.parallel if is_parallel else T.serial
        with loop(0, num_full) as index:
            emit(index, index * NUM_BYTES, NUM_BYTES)
    for index in range(num_full, len(blocks)):
        emit(index, *blocks[index])
