"""Compiling TVM's functions for this machine, and calling them on PyTorch's tensors.

Kernels are compiled in the process when first called (tens of milliseconds each) with
the schedules that stand in their files: nothing is tuned or downloaded. A kernel runs
on as many threads as PyTorch does.

TVM puts a constant-size buffer of up to 1024 bytes on the stack, and LLVM takes it from
there into registers; a larger one comes from TVM's workspace and every access stays in
memory. So a tile's sums stand in buffers of at most 16 vectors of 64 bytes each.
"""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from effdl.compilers import check_tvm

__all__ = [
    "CompiledModule",
    "compile_module",
    "has_feature",
    "has_vnni",
    "host_processor",
    "host_target",
    "use_threads",
]


@cache
def _tvm() -> Any:
    check_tvm()
    # Read once, when TVM's pool of threads starts; `use_threads` can only lower it.
    os.environ.setdefault("TVM_NUM_THREADS", str(os.cpu_count() or 1))
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    import tvm

    return tvm


@cache
def host_processor() -> str:
    """This machine's processor as LLVM calls it, such as ``"znver5"``."""
    return str(_tvm().get_global_func("target.llvm_get_system_cpu")())


@cache
def host_target() -> Any:
    """TVM's target for this machine's processor."""
    return _tvm().target.Target({"kind": "llvm", "mcpu": host_processor()})


@cache
def has_feature(name: str) -> bool:
    """Whether this machine's processor has a feature, as LLVM calls it, such as ``"avx2"``."""
    return bool(_tvm().get_global_func("target.llvm_cpu_has_feature")(name, host_target()))


@cache
def has_vnni() -> bool:
    """Whether this machine multiplies bytes in 512-bit registers (AVX512-VNNI and VBMI)."""
    return has_feature("avx512vnni") and has_feature("avx512vbmi")


@cache
def _threads() -> tuple[Any, list[int]]:
    return _tvm().get_global_func("runtime.config_threadpool"), [0]


def use_threads(num_threads: int) -> None:
    """Let the parallel loops of TVM's functions run on so many threads from now on."""
    configure, current = _threads()
    if current[0] != num_threads:
        configure(1, num_threads)
        current[0] = num_threads


class CompiledModule:
    """Compiled functions by name.

    Arguments are contiguous CPU tensors: TVM reads and writes their memory directly
    and refuses other shapes and types. It does not check alignment: functions that
    take tensors of PyTorch declare their buffers with the alignment of one element.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._functions: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = self._library[name]
        return function

    def call(self, name: str, *arguments: torch.Tensor | int) -> None:
        """Run a function on as many threads as PyTorch uses now."""
        use_threads(torch.get_num_threads())
        self[name](*arguments)

    def write_object(self, path: Path) -> None:
        """The functions as an object file, to be linked for the target."""
        self._library.mod.write_to_file(str(path), "o")

    def source(self, kind: str = "asm") -> str:
        """The assembly (``"asm"``) or LLVM code (``"ll"``) of the functions."""
        return str(self._library.mod.inspect_source(kind))


@cache
def _plain_pipeline() -> str:
    tvm = _tvm()
    from tvm.tirx import compilation_pipeline as pipelines
    from tvm.tirx import transform

    passes = (
        transform.FlattenBuffer(),
        transform.NarrowDataType(32),
        transform.StorageRewrite(),
        transform.StmtSimplify(),
        transform.VerifyMemory(),
        transform.AnnotateEntryFunc(),
        transform.SplitHostDevice(),
        transform.MakePackedAPI(),
    )

    def make() -> tuple[Any, Any, Any]:
        return (
            tvm.ir.transform.Sequential(passes),
            pipelines.finalize_host_passes,
            pipelines.finalize_device_passes,
        )

    pipelines.register_tir_pipeline("effdl_plain", make)
    return "effdl_plain"


def compile_module(
    functions: Mapping[str, Any], *, target: Any = None, is_lowered: bool = False
) -> CompiledModule:
    """Compile TensorIR functions.

    Args:
        functions: TensorIR functions by name.
        target: A TVM target; None: this machine.
        is_lowered: Whether they are loops and vectors already, without blocks, schedules
            or loops to unroll or to vectorise: then a third of TVM's passes will do.

    Raises:
        BackendUnavailableError: TVM is not installed.
    """
    tvm = _tvm()
    named = {name: f.with_attr("global_symbol", name) for name, f in functions.items()}
    library = tvm.compile(
        tvm.IRModule(named),
        target=target or host_target(),
        tir_pipeline=_plain_pipeline() if is_lowered else "default",
    )
    return CompiledModule(library)
