"""Dot products of bytes on x86 processors without 512-bit vectors, and on any processor.

AVX-VNNI has vpdpbusd for 256 bits. AVX2 multiplies pairs of int16 (vpmaddwd); its
instruction for bytes (vpmaddubsw) saturates, 255 * 127 * 2 being more than an int16 holds,
and is not used. The plain form asks for nothing but 32-bit integers. Bytes lie as
little-endian machines store them.
"""

from typing import Any

from tvm.script import tirx as T

__all__ = ["avx2_dot", "avx_vnni_dot", "plain_dot"]


def avx_vnni_dot(sums: Any, unsigned: Any, signed: Any) -> Any:
    """``sums + Σ₄ unsigned · signed`` in each of eight lanes, without saturation (vpdpbusd)."""
    return T.call_llvm_pure_intrin(
        T.llvm_lookup_intrinsic_id("llvm.x86.avx512.vpdpbusd.256"),
        sums,
        T.reinterpret(unsigned, dtype="int8x32"),
        T.reinterpret(signed, dtype="int8x32"),
        dtype="int32x8",
    )


def avx2_dot(sums: Any, unsigned: Any, signed: Any) -> Any:
    """``sums + Σ₄ unsigned · signed`` in each of eight lanes, from pairs of int16."""
    x, w = (T.reinterpret(vector, dtype="int16x16") for vector in (unsigned, signed))
    eight = T.broadcast(T.int16(8), 16)
    even = _multiply_pairs(
        T.bitwise_and(x, T.broadcast(T.int16(255), 16)),
        T.shift_right(T.shift_left(w, eight), eight),
    )
    odd = _multiply_pairs(
        T.reinterpret(
            T.shift_right(T.reinterpret(x, dtype="uint16x16"), T.broadcast(T.uint16(8), 16)),
            dtype="int16x16",
        ),
        T.shift_right(w, eight),
    )
    return sums + even + odd


def _multiply_pairs(first: Any, second: Any) -> Any:
    return T.call_llvm_pure_intrin(
        T.llvm_lookup_intrinsic_id("llvm.x86.avx2.pmadd.wd"), first, second, dtype="int32x8"
    )


def plain_dot(sums: Any, unsigned: Any, signed: Any) -> Any:
    """``sums + Σ₄ unsigned · signed`` in each of four lanes, in 32-bit arithmetic alone."""
    x, w = (T.reinterpret(vector, dtype="int32x4") for vector in (unsigned, signed))
    for byte in range(4):
        x_byte = T.bitwise_and(T.shift_right(x, _words(8 * byte)), _words(255))
        w_byte = T.shift_right(T.shift_left(w, _words(24 - 8 * byte)), _words(24))
        sums = sums + x_byte * w_byte
    return sums


def _words(value: int) -> Any:
    return T.broadcast(T.int32(value), 4)
