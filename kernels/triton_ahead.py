"""Compiling Triton's kernels for GPUs that are not here, and what each kernel then takes of them.

``python -m effdl.kernels.triton_ahead`` compiles every kernel in its default
configurations and writes what came out as JSON. No GPU is needed, but a process in which
Triton's interpreter was never asked for.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from effdl.errors import EffdlError, UnknownNameError

__all__ = [
    "GPU_NAMES",
    "AheadOfTimeCase",
    "KernelResources",
    "compile_ahead",
    "compile_all",
    "find_cases",
]

_TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
GPU_NAMES = tuple(_TARGETS)
_SMEM_BYTES = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}


@dataclass(frozen=True, slots=True, kw_only=True)
class AheadOfTimeCase:
    """One kernel in one configuration.

    Attributes:
        name: Unique among all cases, such as ``"shift_conv1x1.forward.float16"``.
        function: What ``triton.jit`` returned.
        signature: Types of the arguments that are no constants, as Triton spells them
            (``"*fp16"``, ``"i32"``), by name and in the order of the function.
        constexprs: Values of the constants by name.
        num_warps: Warps of a program.
        num_stages: Depth of the software pipeline.
        divisible: Arguments known to be multiples of 16, beside the pointers (where
            PyTorch's memory always begins at one).
        gpus: What it is compiled for; fewer than all where a GPU lacks the arithmetic.
    """

    name: str
    function: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, object]
    num_warps: int = 4
    num_stages: int = 3
    divisible: tuple[str, ...] = ()
    gpus: tuple[str, ...] = GPU_NAMES


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelResources:
    """What a compiled kernel takes of a GPU.

    Attributes:
        name: Of the case.
        gpu: It was compiled for, such as ``"sm_90"``.
        num_registers: Of each thread.
        num_spilled: Registers that did not fit and went to memory (AMD).
        stack_bytes: Memory of each thread: spilled registers, or local arrays (NVIDIA).
        shared_bytes: Shared memory of each program.
        matrix_instructions: The matrix instructions found in the code, in alphabetical
            order; empty: none.
    """

    name: str
    gpu: str
    num_registers: int
    num_spilled: int
    stack_bytes: int
    shared_bytes: int
    matrix_instructions: tuple[str, ...]

    @property
    def spills(self) -> bool:
        """Whether anything that belongs into registers lies in memory."""
        return self.num_spilled > 0 or self.stack_bytes > 0

    @property
    def fits(self) -> bool:
        """Whether the GPU has that much shared memory."""
        return self.shared_bytes <= _SMEM_BYTES[self.gpu]


def find_cases() -> list[AheadOfTimeCase]:
    """The cases of every Triton kernel of the package.

    A kernel's file gives them as ``ahead_of_time_cases()``.
    """
    cases: list[AheadOfTimeCase] = []
    here = Path(__file__).parent
    for path in sorted([*here.glob("triton_*.py"), *here.glob("*/triton_*.py")]):
        parts = path.relative_to(here).with_suffix("").parts
        module = importlib.import_module(".".join(["effdl", "kernels", *parts]))
        if hasattr(module, "ahead_of_time_cases"):
            cases += module.ahead_of_time_cases()
    return cases


def compile_ahead(case: AheadOfTimeCase, gpu: str) -> KernelResources:
    """Compile one case for one GPU, which need not be here.

    Args:
        case: The kernel and its configuration.
        gpu: One of `GPU_NAMES`.
    """
    from triton import compiler
    from triton.backends.compiler import GPUTarget

    target = GPUTarget(*_TARGETS[gpu])
    names = [*case.function.arg_names]
    known = {**case.signature, **dict.fromkeys(case.constexprs, "constexpr")}
    aligned = [n for n, t in case.signature.items() if t.startswith("*") or n in case.divisible]
    source = compiler.ASTSource(
        fn=case.function,
        signature={name: known[name] for name in names},
        constexprs={(names.index(name),): value for name, value in case.constexprs.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {
        "num_warps": case.num_warps,
        "num_stages": case.num_stages,
        "enable_fp_fusion": False,
    }
    kernel = compiler.compile(source, target=target, options=options)
    read = _read_nvidia if target.backend == "cuda" else _read_amd
    return read(case.name, gpu, kernel.asm, kernel.metadata.shared)


def compile_all(
    gpus: Sequence[str] = GPU_NAMES, *, names: Iterable[str] | None = None
) -> tuple[KernelResources, ...]:
    """Compile the cases of the package, each GPU's in a process without the interpreter.

    Args:
        gpus: What to compile for.
        names: Of the cases; None: all.

    Raises:
        UnknownNameError: Nothing is compiled for such a GPU.
        EffdlError: A kernel did not compile; with the compiler's words.
    """
    for gpu in gpus:
        if gpu not in GPU_NAMES:
            raise UnknownNameError("GPU", gpu, GPU_NAMES)
    wished = None if names is None else list(names)
    with ThreadPoolExecutor(min(len(gpus), os.cpu_count() or 1) or 1) as pool:
        compiled = pool.map(lambda gpu: _compile_in_child(gpu, wished), gpus)
        return tuple(resources for each in compiled for resources in each)


def _compile_in_child(gpu: str, names: list[str] | None) -> list[KernelResources]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    wish = json.dumps({"gpus": [gpu], "names": names})
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "effdl.kernels.triton_ahead", wish],
            capture_output=True,
            text=True,
            env={**environment, "TRITON_CACHE_DIR": cache},
            check=False,
        )
    if done.returncode != 0:
        raise EffdlError(f"Triton's kernels do not compile:\n{done.stderr[-8000:]}")
    return [
        KernelResources(**{**row, "matrix_instructions": tuple(row["matrix_instructions"])})
        for row in json.loads(done.stdout)
    ]


def _read_nvidia(name: str, gpu: str, asm: Mapping[str, Any], shared_bytes: int) -> KernelResources:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        dump = subprocess.run(  # noqa: S603
            [str(tool), "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return KernelResources(
        name=name,
        gpu=gpu,
        num_registers=_number(r"REG:(\d+)", dump),
        num_spilled=0,
        stack_bytes=_number(r"STACK:(\d+)", dump),
        shared_bytes=shared_bytes,
        matrix_instructions=_found(
            r"\b((?:wgmma\.mma_async|tcgen05\.mma|mma)\.[\w.:]+)", asm["ptx"]
        ),
    )


def _read_amd(name: str, gpu: str, asm: Mapping[str, Any], shared_bytes: int) -> KernelResources:
    code = asm["amdgcn"]
    return KernelResources(
        name=name,
        gpu=gpu,
        num_registers=_number(r"\.vgpr_count:\s+(\d+)", code),
        num_spilled=_number(r"\.vgpr_spill_count:\s+(\d+)", code),
        stack_bytes=_number(r"\.private_segment_fixed_size:\s+(\d+)", code),
        shared_bytes=shared_bytes,
        matrix_instructions=_found(r"\b(v_mfma_\w+)", code),
    )


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"no {pattern} in:\n{text[:2000]}")
    return int(found.group(1))


def _found(pattern: str, text: str) -> tuple[str, ...]:
    return tuple(sorted(set(re.findall(pattern, text))))


def _main(wish: str) -> None:
    asked = json.loads(wish)
    rows = [
        asdict(compile_ahead(case, gpu))
        for case in find_cases()
        if asked["names"] is None or case.name in asked["names"]
        for gpu in asked["gpus"]
        if gpu in case.gpus
    ]
    sys.stdout.write(json.dumps(rows, indent=1))


if __name__ == "__main__":
    _main(sys.argv[1] if len(sys.argv) > 1 else json.dumps({"gpus": GPU_NAMES, "names": None}))
