"""Byte arithmetic on AVX512-VNNI and VBMI, as pieces that kernels are written from.

All functions take and return TensorIR expressions, so they serve in TVMScript as well as
under an ``IRBuilder``; a result that is used twice belongs in a local buffer, since an
expression is emitted wherever it stands. A vector of 512 bits holds 16 int32 sums, each
over four products of neighbouring bytes (``dot``): what lies four bytes together is
reduced. Two arrangements follow:

* pixels in the lanes, layout [C/4][P][4], four weight bytes broadcast;
* channels in the lanes, weights [K/4][O][4], four activation bytes broadcast.

`pack_lanes` brings the sums of either back to bytes. It interleaves within 128 bits, in
the order that `packed_order` states; weights or pixels laid out in that order from the
start make the bytes come out in natural order without a shuffle.

TVM's own VNNI intrinsic passes vectors of int32, which LLVM 22 refuses.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.script import tirx as T

__all__ = [
    "NUM_BYTES",
    "NUM_LANES",
    "broadcast_bytes",
    "dot",
    "interleave_rows",
    "load",
    "merge_lanes",
    "pack_lanes",
    "packed_order",
    "permute_bytes",
    "requantize_lanes",
    "round_lanes",
    "store",
]

NUM_LANES = 16
NUM_BYTES = 64


def _call(name: str, dtype: str, *arguments: Any) -> Any:
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *arguments, dtype=dtype)


def load(buffer: Any, offset: Any, num: int = NUM_BYTES) -> Any:
    """``num`` neighbouring elements of a flat buffer, as one vector."""
    return buffer[T.ramp(offset, 1, num) if num > 1 else offset]


def store(buffer: Any, offset: Any, value: Any, num: int = NUM_BYTES) -> None:
    """Write a vector of ``num`` elements; under an ``IRBuilder``."""
    T.buffer_store(buffer, value, [T.ramp(offset, 1, num) if num > 1 else offset])


def broadcast_bytes(buffer: Any, offset: Any) -> Any:
    """Four neighbouring bytes of a flat buffer in every lane, int8x64."""
    word = T.reinterpret(load(buffer, offset, 4), dtype="int32")
    return T.reinterpret(T.broadcast(word, NUM_LANES), dtype="int8x64")


def dot(sums: Any, unsigned: Any, signed: Any) -> Any:
    """``sums + Σ₄ unsigned · signed`` in each lane, without saturation (vpdpbusd).

    Args:
        sums: int32x16.
        unsigned: 64 bytes read as uint8.
        signed: 64 bytes read as int8.
    """
    return _call(
        "llvm.x86.avx512.vpdpbusd.512",
        "int32x16",
        sums,
        T.reinterpret(unsigned, dtype="int8x64"),
        T.reinterpret(signed, dtype="int8x64"),
    )


def permute_bytes(indices: Any, vector: Any) -> Any:
    """``vector[indices[i] % 64]`` for 64 bytes (vpermb)."""
    return _call(
        "llvm.x86.avx512.permvar.qi.512",
        "int8x64",
        T.reinterpret(vector, dtype="int8x64"),
        T.reinterpret(indices, dtype="int8x64"),
    )


def round_lanes(values: Any) -> Any:
    """float32x16 to int32x16, half to even, in one instruction.

    Values beyond int32 become its smallest number: limit them first where they can occur.
    """
    return _call("llvm.lrint", "int32x16", values)


def requantize_lanes(
    sums: Any, multiplier: Any, *, limit: float | None = None, zero_point: int = 0
) -> Any:
    """``round(sums · multiplier) + zero_point``, not yet limited to the bytes, int32x16.

    Args:
        sums: int32x16 with the bias.
        multiplier: float32x16; `T.broadcast` it where it is one for all lanes.
        limit: Where products may pass 2**31, anything from y_max - zero_point upwards.
        zero_point: Added after the rounding; `pack_lanes` adds one more cheaply.
    """
    product = T.cast(sums, "float32x16") * multiplier
    if limit is not None:
        product = T.min(product, T.broadcast(T.float32(limit), NUM_LANES))
    rounded = round_lanes(product)
    if zero_point:
        rounded = rounded + T.broadcast(T.int32(zero_point), NUM_LANES)
    return rounded


def pack_lanes(
    first: Any,
    second: Any,
    third: Any,
    fourth: Any,
    *,
    zero_point: Any = 0,
    y_min: Any = 0,
    y_max: Any = 255,
) -> Any:
    """Four int32x16 as uint8x64, ``clip(value + zero_point, y_min, y_max)``.

    Byte 16 L + 4 v + i is lane 4 L + i of vector v: see `packed_order`. The bounds are
    numbers, which cost nothing at 0 and 255, or int32 expressions.
    """
    halves = [
        _call("llvm.x86.avx512.packssdw.512", "int16x32", low, high)
        for low, high in ((first, second), (third, fourth))
    ]
    if not _is(zero_point, 0):
        point = T.broadcast(T.cast(zero_point, "int16"), 2 * NUM_LANES)
        halves = [_call("llvm.sadd.sat", "int16x32", half, point) for half in halves]
    packed = T.reinterpret(
        _call("llvm.x86.avx512.packuswb.512", "int8x64", *halves), dtype="uint8x64"
    )
    if not _is(y_min, 0):
        packed = T.max(packed, T.broadcast(T.cast(y_min, "uint8"), NUM_BYTES))
    if not _is(y_max, 255):
        packed = T.min(packed, T.broadcast(T.cast(y_max, "uint8"), NUM_BYTES))
    return packed


def _is(value: Any, number: int) -> bool:
    return isinstance(value, int) and value == number


def packed_order() -> NDArray[np.int64]:
    """Where `pack_lanes` puts things, [4][16]: the byte that lane l of vector v becomes.

    So vector v of the weights of 64 output channels holds the channels ``packed_order()[v]``.
    `interleave_rows` takes bytes apart in the same order.
    """
    vector, lane = np.meshgrid(np.arange(4), np.arange(NUM_LANES), indexing="ij")
    return 16 * (lane // 4) + 4 * vector + lane % 4


def merge_lanes(values: Sequence[Any], *, y_min: int = 0, y_max: int = 255) -> Any:
    """Four int32x16 as uint8x64, ``clip(value, y_min, y_max)``, byte 4 l + v from lane l.

    So four channels with pixels in the lanes become 16 pixels of [C/4][P][4].
    """
    low, high = (T.broadcast(T.int32(bound), NUM_LANES) for bound in (y_min, y_max))
    merged = None
    for place, value in enumerate(values):
        clipped = T.min(T.max(value, low), high)
        shifted = T.shift_left(clipped, T.broadcast(T.int32(8 * place), NUM_LANES))
        merged = shifted if merged is None else T.bitwise_or(merged, shifted)
    return T.reinterpret(merged, dtype="uint8x64")


def interleave_rows(rows: Sequence[Any], part: int) -> Any:
    """A quarter of four rows of 64 bytes, four bytes (one of each row) in every lane.

    Args:
        rows: Four vectors of 64 bytes.
        part: 0..3: lane l holds the bytes ``packed_order()[part][l]`` of the rows.
    """
    byte_order = [
        16 * group + 8 * (part // 2) + i + NUM_BYTES * side
        for group in range(4)
        for i in range(8)
        for side in range(2)
    ]
    word_order = [
        8 * group + 4 * (part % 2) + i + 2 * NUM_LANES * side
        for group in range(4)
        for i in range(4)
        for side in range(2)
    ]
    pairs = [
        T.reinterpret(T.Shuffle([rows[i], rows[i + 1]], byte_order), dtype="int16x32")
        for i in (0, 2)
    ]
    return T.reinterpret(T.Shuffle(pairs, word_order), dtype="uint8x64")
