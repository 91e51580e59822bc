"""Dot products of bytes on 64-bit ARM (NEON), which LLVM does not find in plain loops.

A vector of 128 bits holds four int32 sums, each over four products of neighbouring bytes.
``sdot`` and ``udot`` (Armv8.2 with dotprod) multiply bytes of one kind, ``usdot``
(Armv8.6 with i8mm) those of both.
"""

from collections.abc import Mapping
from typing import Any

from tvm.script import tirx as T

__all__ = ["DOTPROD_TARGET", "I8MM_TARGET", "sdot", "udot", "usdot"]

NUM_LANES = 4

_TARGET = {"kind": "llvm", "mtriple": "aarch64-linux-gnu"}
DOTPROD_TARGET: Mapping[str, Any] = {**_TARGET, "mattr": ["+neon", "+dotprod"]}
I8MM_TARGET: Mapping[str, Any] = {**_TARGET, "mattr": ["+neon", "+dotprod", "+i8mm"]}


def sdot(sums: Any, first: Any, second: Any) -> Any:
    """``sums + Σ₄ first · second`` in each of four lanes, both signed."""
    return _dot("sdot", sums, first, second)


def udot(sums: Any, first: Any, second: Any) -> Any:
    """``sums + Σ₄ first · second`` in each of four lanes, both unsigned."""
    return _dot("udot", sums, first, second)


def usdot(sums: Any, unsigned: Any, signed: Any) -> Any:
    """``sums + Σ₄ unsigned · signed`` in each of four lanes."""
    return _dot("usdot", sums, unsigned, signed)


def _dot(instruction: str, sums: Any, first: Any, second: Any) -> Any:
    return T.call_llvm_pure_intrin(
        T.llvm_lookup_intrinsic_id(f"llvm.aarch64.neon.{instruction}"),
        sums,
        T.reinterpret(first, dtype="int8x16"),
        T.reinterpret(second, dtype="int8x16"),
        dtype="int32x4",
    )
