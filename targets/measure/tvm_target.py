"""What TVM compiles for, and the tools that must be here for it. Imports no TVM."""

import importlib.util
import platform
import shutil
import sys
from dataclasses import dataclass

from effdl.compilers import check_tvm
from effdl.errors import BackendUnavailableError, UnknownNameError
from effdl.targets.host import RuntimeBuild, find_runtime

__all__ = [
    "GLIBC_VERSION",
    "TRIPLES",
    "TvmTarget",
    "find_linker",
    "find_tvm",
    "host_triple",
]

# The C library that TVM's own aarch64 runtime asks of a board.
GLIBC_VERSION = "2.28"

# Vector instructions that every processor of the triple has, as LLVM calls them.
_FEATURES: dict[str, tuple[str, ...]] = {
    "aarch64-linux-gnu": ("+neon",),
    "x86_64-linux-gnu": (),
}
TRIPLES = tuple(_FEATURES)


@dataclass(frozen=True, slots=True, kw_only=True)
class TvmTarget:
    """A processor that TVM compiles for.

    Attributes:
        triple: Architecture, system and C library, such as ``aarch64-linux-gnu``.
        processor: As LLVM calls it, such as ``cortex-a72``; empty: any of the triple.
        features: Instruction sets beyond, such as ``+dotprod``; those that every
            processor of the triple has are added.

    Raises:
        UnknownNameError: There is no such triple.
    """

    triple: str = "aarch64-linux-gnu"
    processor: str = ""
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.triple not in TRIPLES:
            raise UnknownNameError("triple", self.triple, TRIPLES)

    @property
    def machine(self) -> str:
        """The architecture, as the kernel calls it."""
        return self.triple.partition("-")[0]

    def to_tvm(self) -> dict[str, object]:
        """The description that TVM's ``Target`` takes."""
        target: dict[str, object] = {"kind": "llvm", "mtriple": self.triple}
        if self.processor:
            target["mcpu"] = self.processor
        features = sorted({*_FEATURES[self.triple], *self.features})
        return {**target, "mattr": features} if features else target


def host_triple() -> str | None:
    """The triple of this machine, or None where TVM code for it cannot be run here."""
    triple = f"{platform.machine()}-linux-gnu"
    return triple if sys.platform == "linux" and triple in TRIPLES else None


def find_tvm() -> RuntimeBuild:
    """The installed TVM, without importing it.

    Raises:
        BackendUnavailableError: It is not installed, or with a companion that makes
            it crash.
    """
    check_tvm()
    return find_runtime("apache-tvm")


def find_linker(triple: str, *, cpp: bool = False) -> tuple[str, ...]:
    """The start of a command line that links for a triple.

    For this machine a compiler of the system, else PyPI's ziglang, which brings every
    triple's C library with it. For a board the other way round: what a system's
    compiler links may ask for a newer C library than the board has.

    Args:
        triple: What to link for.
        cpp: Whether to compile C++, too. ziglang then compiles its C++ library first,
            once, which takes a minute.

    Raises:
        BackendUnavailableError: There is none.
    """
    native = triple == host_triple()
    names = [f"{triple}-g++", *(("g++", "clang++") if native else ())]
    compilers: list[tuple[str, ...]] = [
        (path,) for name in names if (path := shutil.which(name)) is not None
    ]
    if importlib.util.find_spec("ziglang") is not None:
        zig = (sys.executable, "-m", "ziglang", "c++" if cpp else "cc", "-target")
        zig += (f"{triple}.{GLIBC_VERSION}",)
        compilers.insert(len(compilers) if native else 0, zig)
    if compilers:
        return compilers[0]
    package = "g++" if native else f"g++-{triple.replace('_', '-')}"
    raise BackendUnavailableError(
        f"nothing here links for {triple}: wanted {' or '.join(names)}, or the package ziglang",
        hint=f"pip install ziglang (or, on Debian: apt-get install {package})",
    )
