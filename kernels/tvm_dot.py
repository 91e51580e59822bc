"""The instruction sets that int8 matrix kernels are written for, behind one interface.

Kernels keep output channels in the lanes: a vector of weights holds four neighbouring
inputs of each of ``num_lanes`` outputs, and four activation bytes are broadcast to all
lanes. Only the width of a vector and the instruction differ from processor to processor.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm.script import tirx as T
from tvm.target import Target

from effdl.errors import UnknownNameError
from effdl.kernels.tvm_aarch64 import DOTPROD_TARGET, I8MM_TARGET, sdot, udot, usdot
from effdl.kernels.tvm_portable import avx2_dot, avx_vnni_dot, plain_dot
from effdl.kernels.tvm_runtime import has_feature
from effdl.kernels.tvm_vnni import dot as vnni_dot

__all__ = ["DOT_PRODUCTS", "DotProduct", "find_dot_product", "host_dot_product"]

Emit = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class DotProduct:
    """How one instruction set adds up products of bytes.

    Attributes:
        name: What a caller asks for it by.
        num_lanes: int32 sums in a vector.
        num_registers: Vectors that the processor holds.
        emit: ``(sums, unsigned, signed) -> sums``, exact for all bytes unless
            ``x_offset`` says otherwise.
        emit_small_unsigned: The same, exact where all unsigned bytes are at most 127.
        emit_small_signed: The same, exact where all signed bytes are at least 0.
        x_offset: 128 where ``emit`` takes its unsigned bytes for ``byte - 128``; the
            caller then adds 128 times the sum of the signed ones. 0 otherwise.
        features: What the processor must have, as LLVM calls it.
        target: TVM's target to compile for; None: this machine.
    """

    name: str
    num_lanes: int
    num_registers: int
    emit: Emit
    emit_small_unsigned: Emit
    emit_small_signed: Emit
    x_offset: int = 0
    features: tuple[str, ...] = ()
    target: Mapping[str, Any] | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes in a vector."""
        return 4 * self.num_lanes

    def to_tvm(self) -> Target | None:
        """What `effdl.kernels.tvm_runtime.compile_module` takes."""
        return None if self.target is None else Target(dict(self.target))

    def broadcast_word(self, word: Any) -> Any:
        """Four bytes, given as an int32, in every lane."""
        return T.reinterpret(T.broadcast(word, self.num_lanes), dtype=f"int8x{self.num_bytes}")


def _shifted_sdot(sums: Any, unsigned: Any, signed: Any) -> Any:
    words = T.reinterpret(unsigned, dtype="int32x4")
    flipped = T.bitwise_xor(words, T.broadcast(T.int32(-0x7F7F7F80), 4))
    return sdot(sums, flipped, signed)


def _host_x86(processor: str) -> Mapping[str, Any]:
    return {"kind": "llvm", "mcpu": processor}


# In order of preference; each but the first is compiled for the plainest processor that
# has it, so that a wider machine runs what a narrower one would.
DOT_PRODUCTS = (
    DotProduct(
        name="avx512-vnni",
        num_lanes=16,
        num_registers=32,
        emit=vnni_dot,
        emit_small_unsigned=vnni_dot,
        emit_small_signed=vnni_dot,
        features=("avx512vnni", "avx512vl", "avx512bw"),
    ),
    DotProduct(
        name="avx-vnni",
        num_lanes=8,
        num_registers=16,
        emit=avx_vnni_dot,
        emit_small_unsigned=avx_vnni_dot,
        emit_small_signed=avx_vnni_dot,
        features=("avxvnni",),
        target=_host_x86("alderlake"),
    ),
    DotProduct(
        name="avx2",
        num_lanes=8,
        num_registers=16,
        emit=avx2_dot,
        emit_small_unsigned=avx2_dot,
        emit_small_signed=avx2_dot,
        features=("avx2",),
        target=_host_x86("haswell"),
    ),
    DotProduct(
        name="neon-i8mm",
        num_lanes=4,
        num_registers=32,
        emit=usdot,
        emit_small_unsigned=usdot,
        emit_small_signed=usdot,
        features=("i8mm",),
        target=I8MM_TARGET,
    ),
    DotProduct(
        name="neon-dotprod",
        num_lanes=4,
        num_registers=32,
        emit=_shifted_sdot,
        emit_small_unsigned=sdot,
        emit_small_signed=udot,
        x_offset=128,
        features=("dotprod",),
        target=DOTPROD_TARGET,
    ),
    DotProduct(
        name="plain",
        num_lanes=4,
        num_registers=16,
        emit=plain_dot,
        emit_small_unsigned=plain_dot,
        emit_small_signed=plain_dot,
    ),
)


def find_dot_product(name: str) -> DotProduct:
    """One of them by name.

    Raises:
        UnknownNameError: There is none of that name.
    """
    for dot_product in DOT_PRODUCTS:
        if dot_product.name == name:
            return dot_product
    raise UnknownNameError("instruction set", name, [d.name for d in DOT_PRODUCTS])


@cache
def host_dot_product() -> DotProduct:
    """The best one that this machine has."""
    return next(d for d in DOT_PRODUCTS if all(map(has_feature, d.features)))
